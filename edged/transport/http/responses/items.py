"""Items: what a client sends as `input`, and what a response's output is. Both are stored as they are here, and become
messages when a later request goes on from them. Pure.

https://platform.openai.com/docs/api-reference/responses/create
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from edged.types import JSON, Message
from edged.wire import dialogue
from edged.wire.dialogue import BadParameter, convert

Item = dict[str, JSON]
Note = Callable[[str], None]  # gets the name of what has no effect

TEXTS = ("input_text", "output_text", "text", "refusal")  # kinds of parts that hold text; "text" is chat completions'
MESSAGE_FIELDS = {"type", "id", "role", "content", "status", "phase"}
CALL_FIELDS = {"type", "id", "call_id", "name", "arguments", "status"}
RESULT_FIELDS = {"type", "id", "call_id", "output", "status"}
PART_FIELDS = {"type", "text", "refusal", "annotations", "logprobs"}
# What is no part of the dialogue for a model that sees none of it.
THOUGHTS = ("reasoning", "compaction")
# The parameter in an error of the parser of messages: which message, which of its calls, and what of it.
OWN = re.compile(r"messages\[(\d+)\](?:\.tool_calls\[(\d+)\])?(.*)")


class _Message(Struct):
    role: str
    content: str | list[dict[str, JSON]]


class _Call(Struct):
    call_id: str
    name: str
    arguments: str = ""


class _Result(Struct):
    call_id: str
    output: str | list[dict[str, JSON]] = ""


def read(given: JSON, new_id: Callable[[str], str], note: Note) -> tuple[Item, ...]:
    """The items of a request's `input`, as they are stored. Thoughts are left out.

    Args:
        new_id: makes the id of an item that has none, by the beginning that such ids have.
        note: gets the names of fields that mean nothing here.

    Raises:
        BadParameter: with the item, as "input[0].content[1]", and what is allowed.
    """
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise BadParameter("input", "is required: a text, or a list of items that is not empty")
    found = []
    for i, raw in enumerate(given):
        if not isinstance(raw, dict):
            raise BadParameter(f"input[{i}]", "is an item: an object with a type")
        item = _read(f"input[{i}]", raw, new_id, note)
        found += [] if item is None else [item]
    return tuple(found)


def _read(where: str, raw: Item, new_id: Callable[[str], str], note: Note) -> Item | None:
    kind = raw.get("type", "message")
    if kind in THOUGHTS:
        return None
    if kind == "message":
        _note_others(raw, MESSAGE_FIELDS, "input", note)
        message = convert(raw, _Message, where)
        parts = _parts(f"{where}.content", message.content, note, by_model=message.role == "assistant")
        return {
            "type": "message",
            "id": raw.get("id") or new_id("msg"),
            "role": message.role,
            "content": parts,
            "status": "completed",
        }
    if kind == "function_call":
        _note_others(raw, CALL_FIELDS, "input", note)
        call = convert(raw, _Call, where)
        id = raw.get("id") or new_id("fc")
        return {**_fields(call), "type": "function_call", "id": id, "status": "completed"}
    if kind == "function_call_output":
        _note_others(raw, RESULT_FIELDS, "input", note)
        result = convert(raw, _Result, where)
        parts = _parts(f"{where}.output", result.output, note, by_model=False)
        text = "".join(str(part["text"]) for part in parts)
        id = raw.get("id") or new_id("fco")
        return {"type": "function_call_output", "id": id, "call_id": result.call_id, "output": text}
    allowed = "message, function_call, function_call_output and reasoning"
    raise BadParameter(f"{where}.type", f"{kind!r} is not supported; allowed are {allowed}")


def _fields(call: _Call) -> Item:
    return {"call_id": call.call_id, "name": call.name, "arguments": call.arguments}


def _note_others(raw: Item, known: set[str], where: str, note: Note) -> None:
    for name, value in raw.items():
        if name not in known and value is not None:
            note(f"{where}.{name}")


def _parts(where: str, given: str | list[dict[str, JSON]], note: Note, *, by_model: bool) -> list[Item]:
    kind = "output_text" if by_model else "input_text"
    if isinstance(given, str):
        return [_part(kind, given)]
    made = []
    for i, part in enumerate(given):
        of_part = part.get("type")
        if of_part not in TEXTS:
            problem = f"{of_part!r} is not supported: the models read text; allowed are {', '.join(TEXTS)}"
            raise BadParameter(f"{where}[{i}].type", problem)
        _note_others(part, PART_FIELDS, "input.content", note)
        text = part.get("refusal" if of_part == "refusal" else "text")
        if not isinstance(text, str):
            raise BadParameter(f"{where}[{i}].text", "is required, a text")
        made.append(_part(kind, text))
    return made


def _part(kind: str, text: str) -> Item:
    return {"type": kind, "text": text, **({"annotations": []} if kind == "output_text" else {})}


def messages(instructions: str | None, earlier: Sequence[Item], own: Sequence[Item]) -> tuple[Message, ...]:
    """The dialogue: instructions, what came before, what was sent now. Calls are answered, each by an item after it.

    Args:
        earlier: items of the responses that this one goes on from; of the instructions then nothing is left.

    Raises:
        BadParameter: as `wire.dialogue`, with the item that is wrong.
    """
    system = [{"role": "system", "content": instructions}] if instructions else []
    made: list[dict[str, Any]] = [*system]
    places: list[list[int]] = [[-1]] * len(made)  # of the items that a message came from
    for place, item in enumerate((*earlier, *own), -len(earlier)):
        if item["type"] == "function_call" and made and made[-1]["role"] == "assistant":
            made[-1].setdefault("tool_calls", []).append(_call(item))
            places[-1].append(place)
        elif item["type"] not in THOUGHTS:
            made.append(_message(item))
            places.append([place])
    try:
        return dialogue.read(made, strict=True)
    except BadParameter as error:
        raise _in_items(error, made, places) from None


def _call(item: Item) -> Item:
    function = {"name": item["name"], "arguments": item["arguments"]}
    return {"id": item["call_id"], "type": "function", "function": function}


def _message(item: Item) -> dict[str, Any]:
    if item["type"] == "function_call":
        return {"role": "assistant", "content": None, "tool_calls": [_call(item)]}
    if item["type"] == "function_call_output":
        return {"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]}
    return {"role": item["role"], "content": "".join(part["text"] for part in item["content"])}


def _in_items(error: BadParameter, made: Sequence[dict[str, Any]], places: Sequence[list[int]]) -> BadParameter:
    """The same error, about the item that the message came from; about all of them where it is none of this request."""
    found, param = OWN.fullmatch(error.param), "input"
    if found and int(found[1]) < len(made):
        message, of = made[int(found[1])], places[int(found[1])]
        calls = len(message.get("tool_calls", ()))
        place = of[0] if found[2] is None else of[len(of) - calls + int(found[2])]
        if place >= 0:
            what = ".arguments" if found[2] else ".role" if found[3] == ".role" and message["role"] != "tool" else ""
            param = f"input[{place}]{what}"
    problem = error.message.removeprefix(f"{error.param}: ")
    problem = problem.replace("no message of role tool answers", "no item of type function_call_output answers")
    problem = problem.replace("a tool's message follows the assistant's", "a function_call_output follows the call")
    return type(error)(param, problem)
