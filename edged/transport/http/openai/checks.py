"""How the parts of an OpenAI request are checked, so that an error names the parameter. Pure."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from edged.errors import BadRequest, TooLarge
from edged.types import JSON
from edged.wire import ALLOWED, MAX_DEPTH, depth, is_json

T = TypeVar("T")


class Wrong(BadRequest):
    """A parameter is wrong. param: its name, with the path to it."""

    def __init__(self, param: str, problem: str) -> None:
        super().__init__(f"{param}: {problem}")
        self.param = param


def convert(value: object, kind: type[T], where: str) -> T:
    """A part of the request, found at `where`, as a Struct. Raises Wrong."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _wrong(str(error), where) from None


def decoded(payload: bytes, holds: str) -> dict[str, JSON]:
    """The object that a request is. holds: what, in words. Raises BadRequest, TooLarge."""
    try:
        body = msgspec.json.decode(payload)
    except RecursionError:
        raise TooLarge(f"the request is nested deeper than {MAX_DEPTH} levels") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the request is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise BadRequest(f"the request is a JSON object with {holds}")
    if depth(body) > MAX_DEPTH:
        raise TooLarge(f"the request is nested deeper than {MAX_DEPTH} levels")
    if not is_json(body):
        raise BadRequest(f"a request {ALLOWED}")
    return body


def _wrong(error: str, where: str) -> Wrong:
    """msgspec's message, with the parameter in front."""
    text, _, path = error.partition(" - at ")
    at = where + path.strip("`").removeprefix("$")
    if named := re.fullmatch(r"Object (contains unknown|missing required) field `(.*)`", text):
        problem = "is not a parameter that is known here" if named[1] == "contains unknown" else "is required"
        return Wrong(f"{at}.{named[2]}".strip("."), problem)
    return Wrong(at.strip(".") or "request", text[:1].lower() + text[1:])
