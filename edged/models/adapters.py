"""Which adapter belongs to which weights: by the sha256 of the file, however a configuration named it.

An adapter lies in `models/adapters` as a GGUF file with a TOML file of the same name beside it, which says what it
belongs to.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from edged.agent.calibration import Calibration
from edged.errors import ConfigError
from edged.models import catalog
from edged.models.catalog import Sha256

FOLDER = "adapters"
AUTO, NONE = "auto", "none"
FILE = "file:"


class Adapter(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of an adapter.

    weights: sha256 of the model file it was trained on, and works with alone. sha256, bytes: of the adapter itself.
    dialect: what it teaches.
    calibration: how often it is right, by how sure it is, on plants that it was not trained on; None: not known.
    """

    weights: Sha256
    sha256: Sha256
    bytes: int
    dialect: Literal["compact"]
    licence: str
    trained: str
    calibration: Calibration | None = None


def manifest(adapter: Path) -> Adapter | None:
    """What is known of an adapter's file; None: nothing lies beside it. ConfigError: it cannot be read, or says
    something else."""
    path = adapter.with_suffix(".toml")
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Adapter)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(str(path), "", str(error)) from None


def load(where: Path) -> dict[str, Path]:
    """All adapters of a folder, by the sha256 of their weights. ConfigError: a file says something else."""
    found: dict[str, Path] = {}
    for path in sorted(where.glob("*.toml")):
        if (adapter := manifest(path)) is not None:
            found[adapter.weights] = path.with_suffix(".gguf")
    return found


@cache
def shipped() -> dict[str, Path]:
    """Those that come with edged."""
    return load(catalog.folder() / FOLDER)


def chosen(wanted: str, weights: str | None) -> str:
    """The adapter file that a configuration means; empty: none.

    Args:
        wanted: "auto", "none" or "file:PATH".
        weights: sha256 of the model's file; None: nobody has looked yet.
    """
    if wanted.startswith(FILE):
        return wanted.removeprefix(FILE)
    path = shipped().get(weights) if wanted == AUTO and weights is not None else None
    return str(path) if path is not None else ""
