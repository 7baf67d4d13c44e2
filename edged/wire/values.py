"""What a request may hold: values that JSON can say and everybody can read, nested only so deep. Pure."""

from __future__ import annotations

import math
from typing import Any

from edged.errors import BadRequest, TooLarge
from edged.types import JSON

MAX_DEPTH = 32  # CONTRACT section 5; deeper nesting has no use here and costs stack wherever it is walked
MAX_INT_BITS = 1024  # of an integer: beyond it nobody who reads numbers as floats, as most of the world, has one for it

# What is checked by `is_json`, in words.
ALLOWED = (
    "holds maps with text keys, lists, text, numbers, booleans and null, nothing else; numbers are finite and integers "
    f"have at most {MAX_INT_BITS} bits, text has no halves of surrogate pairs"
)


def checked(body: object, what: str) -> dict[str, JSON]:
    """The map that a request is.

    Args:
        what: the request is, in words: "a map with ...".

    Raises:
        TooLarge: it is nested deeper than MAX_DEPTH.
        BadRequest: it is no map, or holds what JSON cannot say.
    """
    if not isinstance(body, dict):
        raise BadRequest(f"the request is {what}, not {_kind(body)}")
    if depth(body) > MAX_DEPTH:
        raise TooLarge(f"the request is nested deeper than {MAX_DEPTH} levels")
    if not is_json(body):
        raise BadRequest(f"a request {ALLOWED}")
    return body


def depth(value: object, limit: int = MAX_DEPTH + 1) -> int:
    """Levels of maps and lists in a value, counted at most to `limit`; no recursion, so no stack to overflow."""
    level, row = 0, [value]
    while row and level < limit:
        nested = [item for item in row if isinstance(item, dict | list | tuple)]
        if not nested:
            break
        level += 1
        row = [child for item in nested for child in (item.values() if isinstance(item, dict) else item)]
    return level


def is_json(value: object) -> bool:
    """Whether a value can be written as JSON, and read by everybody: MessagePack also has bytes, dates, extensions,
    keys of any kind and numbers that are none; headers of HTTP have bytes that are no text."""
    rest = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, dict):
            if not all(isinstance(key, str) and _is_text(key) for key in item):
                return False
            rest += item.values()
        elif isinstance(item, list | tuple):
            rest += item
        elif not _is_plain(item):
            return False
    return True


def _is_plain(value: object) -> bool:
    """Whether a value without others in it is JSON's."""
    match value:
        case str():
            return _is_text(value)
        case float():
            return math.isfinite(value)
        case int():
            return value.bit_length() <= MAX_INT_BITS
        case _:
            return value is None


def _is_text(text: str) -> bool:
    """Whether it can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", type(None): "nothing"}.get(type(value), type(value).__name__)
