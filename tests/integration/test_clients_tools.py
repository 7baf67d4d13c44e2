"""Clients that bring their own tools, and a model that was taught the compact dialect: OpenAI's SDK against the real
daemon."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletionMessage

from tests.support.daemon import Daemon, entry


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


def tool(name: str, properties: dict[str, Any], *required: str, **more: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": [*required], **more}
    return {"type": "function", "function": {"name": name, "description": f"{name}.", "parameters": parameters}}


LIGHT = tool("light", {"room": {"enum": ["hall", "attic"]}, "level": {"type": "integer"}}, "room")
OVEN = tool("oven", {"celsius": {"type": "number", "minimum": 30, "maximum": 300}}, "celsius")
WRITE = tool("write_file", {"path": {"type": "string"}, "text": {"type": "string"}}, "path", "text")
TOOLS = [LIGHT, OVEN, WRITE]
TEXT = 'a, b) {c} "d" = \\ é\n'
HALL, ATTIC = call("light", room="hall"), call("light", room="attic")
SCRIPT = 'dialect = "compact"\n' + "".join(
    (
        entry("both", HALL, call("oven", celsius=200), text="Both are on."),
        entry("hall and attic", HALL, ATTIC, text="Both are lit."),
        entry("hall", HALL, text="The hall is lit."),
        entry("write", call("write_file", path="a.txt", text=TEXT), text="It is written."),
        entry("too hot", HALL, call("oven", celsius=3500)),
        entry("again", HALL, HALL, text="The hall is lit."),
        entry("ferry|fähre", call("unable")),
        entry("nested", call("nested", who=[1, "x"])),
        entry("hello", text="Hello there, you."),
    )
)


@asynccontextmanager
async def clients(folder: Path, script: str = SCRIPT) -> AsyncIterator[openai.AsyncOpenAI]:
    """A client of a daemon whose model decides in the compact dialect."""
    async with Daemon(folder, script=script, config='[http]\nlisten = ["unix:http.sock"]\n') as daemon:
        transport = httpx2.AsyncHTTPTransport(uds=str(daemon.folder / "run" / "http.sock"))
        async with httpx2.AsyncClient(transport=transport) as http:
            yield openai.AsyncOpenAI(api_key="x", base_url="http://edged/v1", http_client=http, max_retries=0)


async def ask(client: openai.AsyncOpenAI, text: str, *later: Any, **more: Any) -> ChatCompletionMessage:
    """The message that answers, and its finish reason fits it."""
    messages: Any = [{"role": "system", "content": "You run a house."}, {"role": "user", "content": text}, *later]
    done = await client.chat.completions.create(model="small", messages=messages, **{"tools": TOOLS, **more})
    message: ChatCompletionMessage = done.choices[0].message
    assert done.choices[0].finish_reason == ("tool_calls" if message.tool_calls else "stop")
    return message


def made(message: ChatCompletionMessage) -> list[tuple[str, Any]]:
    """Its calls, each with an id of its own."""
    calls: list[Any] = message.tool_calls or []
    assert len({each.id for each in calls}) == len(calls)
    return [(each.function.name, json.loads(each.function.arguments)) for each in calls]


def told(*results: tuple[dict[str, Any], str]) -> list[Any]:
    """Calls that were made in one turn, and what came of each."""
    calls = [
        {"id": f"c{i}", "type": "function", "function": {"name": c["name"], "arguments": json.dumps(c["arguments"])}}
        for i, (c, _) in enumerate(results)
    ]
    answers = [{"role": "tool", "tool_call_id": f"c{i}", "content": said} for i, (_, said) in enumerate(results)]
    return [{"role": "assistant", "content": None, "tool_calls": calls}, *answers]


async def test_calls_of_a_decision_come_as_openais(tmp_path: Path) -> None:
    """Several at once unless the client wants one; what was left out is not there."""
    async with clients(tmp_path) as client:
        assert made(await ask(client, "both")) == [("light", {"room": "hall"}), ("oven", {"celsius": 200})]
        assert made(await ask(client, "both", parallel_tool_calls=False)) == [("light", {"room": "hall"})]
        assert (await ask(client, "hello")).content == "Hello there, you."


async def test_choice_is_honoured(tmp_path: Path) -> None:
    async with clients(tmp_path) as client:
        named: Any = {"type": "function", "function": {"name": "oven"}}
        assert made(await ask(client, "both", tool_choice=named)) == [("oven", {"celsius": 200})]
        assert len(made(await ask(client, "both", tool_choice="required"))) == 2
        answer = await ask(client, "both", tool_choice="none")
        assert (answer.content, answer.tool_calls) == ("Both are on.", None)
        with pytest.raises(openai.InternalServerError, match="made no call"):
            await ask(client, "hello", tool_choice="required")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("When does the ferry go?", "I can neither do that here nor find it out: “When does the ferry go?”"),
        ("Wann geht die fähre?", "Das kann ich hier weder tun noch herausfinden: „Wann geht die fähre?“"),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_what_no_tool_can_do_is_said_by_edged(tmp_path: Path, text: str, said: str, stream: bool) -> None:
    async with clients(tmp_path) as client:
        if not stream:
            assert (await ask(client, text)).content == said
            return
        assert await streamed(client, text) == (said, [])


async def test_number_out_of_range_is_told_and_no_call_goes_out(tmp_path: Path) -> None:
    """Also not the one before it, in no stream either."""
    async with clients(tmp_path) as client:
        said = "That is not done: 3500 is outside what is allowed for celsius."
        answer = await ask(client, "too hot")
        assert (answer.content, answer.tool_calls) == (said, None)
        assert await streamed(client, "too hot") == (said, [])


async def streamed(client: openai.AsyncOpenAI, text: str, *later: Any, **more: Any) -> tuple[str, list[list[str]]]:
    """(the words, of each call its name and the pieces of its arguments)."""
    messages: Any = [{"role": "user", "content": text}, *later]
    stream = await client.chat.completions.create(
        model="small", messages=messages, stream=True, **{"tools": TOOLS, **more}
    )
    words, calls = "", list[list[str]]()
    async for chunk in stream:
        delta = chunk.choices[0].delta
        words += delta.content or ""
        for piece in delta.tool_calls or []:
            if piece.function.name:
                assert piece.index == len(calls)
                assert piece.id
                calls.append([piece.function.name])
            calls[piece.index].append(piece.function.arguments or "")
    return words, calls


async def test_calls_stream_as_they_are_written(tmp_path: Path) -> None:
    """Each name once, then the arguments in pieces that are one JSON object."""
    script = SCRIPT.replace('text = "It is written."\ntoken_s = 0.0', 'text = "It is written."\ntoken_s = 0.05')
    assert script != SCRIPT
    async with clients(tmp_path, script) as client:
        words, [[name, *pieces]] = await streamed(client, "write", tools=[LIGHT, WRITE])
        assert (words, name, json.loads("".join(pieces))) == ("", "write_file", {"path": "a.txt", "text": TEXT})
        assert len([piece for piece in pieces if piece]) > 3
        words, calls = await streamed(client, "hall and attic", tools=[LIGHT])
        assert (words, [(each[0], json.loads("".join(each[1:]))) for each in calls]) == (
            "",
            [("light", {"room": "hall"}), ("light", {"room": "attic"})],
        )


async def test_after_a_result_the_next_call_or_the_answer_comes(tmp_path: Path) -> None:
    """A call whose result is there does not come again."""
    async with clients(tmp_path) as client:
        one = {"parallel_tool_calls": False}
        assert made(await ask(client, "hall and attic", *told((HALL, "ok")), **one)) == [("light", {"room": "attic"})]
        answer = await ask(client, "hall and attic", *told((HALL, "ok")), *told((ATTIC, "ok")), **one)
        assert (answer.content, answer.tool_calls) == ("Both are lit.", None)
        assert (await ask(client, "again", *told((HALL, "ok")))).content == "The hall is lit."
        assert await streamed(client, "again", *told((HALL, "ok"))) == ("The hall is lit.", [])


async def test_any_schema_has_its_calls(tmp_path: Path) -> None:
    """Nested, in unions, with references; a tool that is called as a pseudo-call is is called, too."""
    node = {"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "array", "items": {"$ref": "#/$defs/node"}}]}
    nested = tool("nested", {"who": {"$ref": "#/$defs/node"}}, "who", **{"$defs": {"node": node}})
    free = {"type": "function", "function": {"name": "nested", "parameters": {"type": "object"}}}
    either = [{"type": "object", "properties": {"who": node}, "required": ["who"]}, {"type": "object"}]
    joined = {"$defs": {"node": node}, "anyOf": either}
    union = {"type": "function", "function": {"name": "nested", "parameters": joined}}
    async with clients(tmp_path) as client:
        for each in (nested, free, union):
            assert made(await ask(client, "nested", tools=[each])) == [("nested", {"who": [1, "x"]})]
        own = tool("unable", {})
        assert made(await ask(client, "ferry", tools=[own])) == [("unable", {})]


async def test_temperature_changes_no_call(tmp_path: Path) -> None:
    async with clients(tmp_path) as client:
        calls = [made(await ask(client, "both", temperature=2)) for _ in range(10)]
        assert calls == [[("light", {"room": "hall"}), ("oven", {"celsius": 200})]] * 10


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_call_that_failed_is_told_in_the_language_of_the_question(tmp_path: Path, stream: bool) -> None:
    """Also by a client that shows its tools no more; behind what worked stands what the model words."""
    no_power = '{"success": false, "message": "no power"}'
    failed = "light (room: hall) ist fehlgeschlagen: no power."
    async with clients(tmp_path) as client:

        async def said(*results: tuple[dict[str, Any], str], **more: Any) -> str:
            text = "Schalte bitte das Licht in der hall ein"
            if stream:
                return (await streamed(client, text, *told(*results), **more))[0]
            return str((await ask(client, text, *told(*results), **more)).content)

        assert await said((HALL, no_power)) == failed
        assert await said((HALL, no_power), tools=openai.NOT_GIVEN) == failed
        assert await said((HALL, no_power), (ATTIC, "ok")) == f"{failed} The hall is lit."
