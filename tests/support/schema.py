"""The schema of the configuration, held against the loader: what one accepts or refuses, the other does too."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator
from typing import Any

import jsonschema

from edged.config import loader, schema
from edged.config.origins import Origins
from edged.config.settings import Config
from edged.config.values import Wrong

VALIDATOR = jsonschema.Draft202012Validator(schema.schema())
# What no JSON Schema can say: what other keys say, and what JSON does not have or cannot tell apart.
BEYOND = re.compile(
    r"not the first of `variants`|names a source twice|is no number of JSON|is no value of JSON|more than 64 bits"
    r"|is a list of at least one value|^nan is outside|got `float`: -?[0-9.e+]+$|a very (?:large|small) number"
)


def faults(table: dict[str, Any]) -> list[str]:
    """What the schema says of a configuration."""
    return [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(table)]


@contextlib.contextmanager
def compared() -> Iterator[None]:
    """Meanwhile everything that is loaded is shown to the schema as well."""
    build = loader.build

    def both(raw: dict[str, Any], origins: Origins, files: tuple[str, ...]) -> Config:
        whole = copy.deepcopy(raw)
        try:
            made = build(raw, origins, files)
        except Wrong as wrong:
            is_said = wrong.key in origins or wrong.key[0] != "node"  # and does not come from the environment
            assert not is_said or BEYOND.search(wrong.problem) or faults(whole), f"only the loader refuses it: {wrong}"
            raise
        assert not faults(whole), "only the schema refuses it"
        return made

    loader.build = both
    try:
        yield
    finally:
        loader.build = build
