"""Results of a client's tools: whether one says that its call failed, by its structure and never by its words. Pure.

Small models read `{"error": true}` and say "done". Such a result stands behind a sentence that says what it means; what
the client sent stays as it is otherwise. A text ("Error: no answer") says itself what it is: which words of which
language mean a failure is not for edged to guess.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from typing import Any

from msgspec import structs

from edged.types import JSON, Message

MARK = "This call FAILED. It did not work.\n"
# What tools, their libraries and MCP name it; a truth value under one of them is the tool's own verdict.
WORKED = ("success", "ok", "succeeded", "successful")
BROKE = ("isError", "is_error", "failed")
ERRORS = ("error", "errors", "exception")  # what went wrong, where something did
STATUSES = ("status", "result")
FAILED_STATUSES = {"error", "failed", "failure", "fail"}
CODES = ("status", "statusCode", "status_code", "http_status", "code")
HTTP_ERRORS = range(400, 600)
MESSAGES = ("message", "msg", "error", "detail", "details", "reason", "error_message")
SAYS = ("message", "msg", "error_message", "error_text", "detail", "details", "reason", "text")  # clearest first
# Beside these alone a status is the call's own. Beside others it may be that of a job, which was read with success.
OF_A_CALL = {*MESSAGES, *CODES, *STATUSES, "data", "body", "type", "traceback", "tool"}
MAX_LITERAL = 8192  # characters of a text that is read as Python writes its values; results of failures are short
MAX_WRAPPED = 4  # objects around the one that tells


def marked(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The dialogue with a sentence before each result that says that its call failed."""
    return tuple(
        structs.replace(message, content=MARK + message.content)
        if message.role == "tool" and says_failed(message.content)
        else message
        for message in messages
    )


def says_failed(content: str) -> bool:
    """Whether a result says so."""
    return _failed(_value(content), MAX_WRAPPED)


def reason(content: str) -> str:
    """Why a call failed, in the words of its result; empty: it has none."""
    value = _value(content)
    return content.strip() if value is None else _words(value, MAX_WRAPPED)


def _words(value: Any, wrapped: int) -> str:
    """The first text where results have their messages, or within what is there."""
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if not isinstance(value, dict) or wrapped < 0:
        return ""
    places = [name for name in (*SAYS, *ERRORS) if name in value]
    for inside in [value[name] for name in places] + [each for each in value.values() if isinstance(each, dict | list)]:
        if found := inside.strip() if isinstance(inside, str) else _words(inside, wrapped - 1):
            return found
    return ""


def _value(content: str) -> Any:
    """What a text stands for. Programs in Python often send `str(result)`, which is no JSON. None: only a text."""
    text = content.strip()
    if not text.startswith(("{", "[")):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if len(text) > MAX_LITERAL:
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _failed(value: Any, wrapped: int) -> bool:
    if isinstance(value, list | tuple):
        return len(value) == 1 and _failed(value[0], wrapped)  # more are a list of what was read
    if not isinstance(value, dict):
        return False
    verdicts = [value[name] for name in WORKED if isinstance(value.get(name), bool)]
    verdicts += [not value[name] for name in BROKE if isinstance(value.get(name), bool)]
    if verdicts:
        return not all(verdicts)
    if any(_is_error(value[name], value) for name in ERRORS if name in value):
        return True
    if OF_A_CALL.issuperset(value) and any(str(value.get(name)).lower() in FAILED_STATUSES for name in STATUSES):
        return True
    if any(_is_code(value.get(name), name, value) for name in CODES):
        return True
    # {"result": {...}} and the like: the object inside tells
    [*inside] = value.values()
    return wrapped > 0 and len(inside) == 1 and isinstance(inside[0], dict) and _failed(inside[0], wrapped - 1)


def _is_error(told: JSON, beside: dict[str, JSON]) -> bool:
    """A number beside other numbers is how far a measurement may be wrong."""
    if isinstance(told, bool) or not isinstance(told, int | float):
        return bool(told)
    others = [number for name, number in beside.items() if name not in (*ERRORS, *CODES)]
    return bool(told) and not any(isinstance(number, int | float) for number in others)


def _is_code(told: JSON, name: str, beside: dict[str, JSON]) -> bool:
    """Of HTTP. A bare `code` may be anything: it counts beside a message only."""
    if isinstance(told, bool) or not isinstance(told, int) or told not in HTTP_ERRORS:
        return False
    return name != "code" or any(word in beside for word in MESSAGES)
