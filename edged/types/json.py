"""JSON."""

from __future__ import annotations

from typing import Any

JSON = Any  # what json.loads may return; narrowed where it is used


def spelled(value: JSON) -> JSON:
    """A copy of a value in which halves of surrogate pairs, which no UTF-8 text can hold, are written as `\\udcfc`.

    Such texts come from names of files and from programs' messages.
    """
    match value:
        case str():
            return value.encode(errors="backslashreplace").decode()
        case dict():
            return {spelled(key): spelled(item) for key, item in value.items()}
        case list() | tuple():
            return [spelled(item) for item in value]
    return value
