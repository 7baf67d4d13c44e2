"""Which results of a client's tools say that the call failed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edged.completions.results import MARK, marked, says_failed
from edged.types import Message, ToolCall

FAILED: list[Any] = [
    {"error": True},
    {"error": "entity not found"},
    {"error": "HomeAssistantError", "error_text": "Unexpected error"},
    {"error": {"code": -32603, "message": "Internal error"}},
    {"errors": [{"message": "no such field"}], "data": None},
    {"error": 5},
    {"error": 110, "message": "timed out"},
    {"success": False},
    {"success": False, "data": {"error": None}},
    {"ok": False, "description": "Bad Request: chat not found"},
    {"isError": True, "content": [{"type": "text", "text": "timeout"}]},
    {"content": [{"type": "text", "text": "timeout"}], "isError": True},
    {"is_error": True, "content": "x"},
    {"status": "error", "message": "offline"},
    {"status": "FAILED"},
    {"result": "failure"},
    {"statusCode": 503, "body": ""},
    {"status": 404},
    {"code": 500, "message": "Internal Server Error"},
    {"detail": "Not Found", "status_code": 404},
    {"result": {"error": True}},
    {"output": {"response": {"success": False}}},
    [{"error": "not found"}],
]
WORKED: list[Any] = [
    {"success": True},
    {"success": True, "error": None},
    {"success": True, "error": "none"},
    {"ok": True, "errors": []},
    {"error": None, "value": 3},
    {"error": False},
    {"error": ""},
    {"error": 0},
    {"value": 21.3, "error": 0.2},
    {"isError": False, "content": [{"type": "text", "text": "{}"}]},
    {"status": "ok"},
    {"status": "on"},
    {"status": 200},
    {"code": 404},
    {"code": 450, "name": "paint"},
    {"count": 500},
    {"errors_today": 3},
    {"events": [{"error": "yesterday"}], "n": 1},
    {"job": 12, "status": "failed"},
    {"entity": "lock.door", "state": "error"},
    {"rows": [{"status": "failed"}]},
    [{"ok": True}, {"ok": False}],
    [{"status": "failed"}, {"status": "failed"}],
    [],
    {},
]


@pytest.mark.parametrize("value", FAILED, ids=json.dumps)
def test_result_that_says_it_failed_is_marked(value: Any) -> None:
    """As JSON, with spaces around it, and as Python writes it."""
    for text in (json.dumps(value), f"\n {json.dumps(value, indent=2)}\n", str(value)):
        assert says_failed(text), text


@pytest.mark.parametrize("value", WORKED, ids=json.dumps)
def test_result_that_does_not_say_so_is_not(value: Any) -> None:
    """An error of yesterday, of a measurement or of nothing is none of this call."""
    assert not says_failed(json.dumps(value))
    assert not says_failed(str(value))


@pytest.mark.parametrize(
    "text",
    [
        "Error: no answer",
        "Traceback (most recent call last):\n",
        "",
        "null",
        "false",
        "{not json",
        "{" * 9000,
        "[" * 9000,
        "{-" * 400,
    ],
    ids=lambda text: text[:12],
)
def test_text_says_itself_what_it_is(text: str) -> None:
    """Whatever it holds, it is only shown."""
    assert not says_failed(text)


def test_only_the_results_are_marked_and_what_was_sent_stays_behind_the_mark() -> None:
    """Others may quote one."""
    failed = '{"error": true}'
    call = Message("assistant", tool_calls=(ToolCall("f", {}),))
    dialogue = (
        Message("user", failed),
        call,
        Message("tool", failed),
        Message("tool", "{}"),
        Message("assistant", failed),
    )
    shown = marked(dialogue)
    assert shown[2] == Message("tool", MARK + failed)
    assert (*shown[:2], *shown[3:]) == (*dialogue[:2], *dialogue[3:])
