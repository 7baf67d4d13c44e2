"""The folder of the weights, as commands find it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from edged import config

ModelsDir = Annotated[
    Path | None, typer.Option("--models-dir", envvar="EDGED_MODELS_DIR", help="Folder that holds the models.")
]


def models_dir(given: Path | None) -> Path:
    """The folder the commands work on: --models-dir or $EDGED_MODELS_DIR, else that of the configuration where there
    is one, else the user's cache folder."""
    if given is not None:
        return given.expanduser().absolute()
    if config.find(None).exists():
        return config.load().models_dir
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edged" / "models"
