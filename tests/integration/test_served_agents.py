"""Agents whose model a server on this board runs: the daemon, its tools and the server's HTTP are real."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from aiohttp import web

from tests.support import cloud as clouds
from tests.support.cli import edged
from tests.support.cloud import ScriptedCloud
from tests.support.cloud_daemon import ask, upstream
from tests.support.daemon import Daemon, Wired
from tests.support.timing import assert_adds_up

OPEN_NORTH = ("set_valve", {"valve": "north", "position": "open"})
LEVEL = ("tank_level", {"tank": "south"})
NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}

# Runs first in every Python of the daemon's: writes down where it connects to.
LISTENER = """
import os, sys

def hook(event, arguments):
    if event == "socket.connect":
        with open(os.environ["EDGED_HEARD"], "a") as heard:
            heard.write(repr(arguments[1]) + "\\n")

sys.addaudithook(hook)
"""


@pytest.fixture
async def server() -> AsyncIterator[ScriptedCloud]:
    """On this board; answers "ok"."""
    async with ScriptedCloud() as scripted:
        yield scripted


def served(folder: Path, server: ScriptedCloud, *more: str, agent: str = "", **options: Any) -> Daemon:
    """A daemon whose agent has the model `npu`; it is not started."""
    daemon = Daemon(folder, **options)
    model = f'[models.npu]\nengine = "openai"\nbase_url = "{server.base_url}"\nmodel = "large"\n'
    daemon.drop_in(f'{model}{"".join(more)}[agents.house]\nmodel = "npu"\n{agent}')
    return daemon


async def test_agent_acts_and_answers_as_with_a_model_of_the_board(tmp_path: Path, server: ScriptedCloud) -> None:
    """The same tools and journal, the same reply: it is local, and the alias is the model's name."""
    server.will(clouds.calls(LEVEL), clouds.by(lambda body: f"It is {body['messages'][-1]['content']}."))
    async with served(tmp_path, server) as daemon:
        reply = await ask(daemon, "how full is it?")
    assert reply["status"] == "done"
    assert "41" in reply["output"]
    assert [(call["name"], call["ok"]) for call in reply["tool_calls"]] == [("tank_level", True)]
    assert reply["route"] == {"where": "local", "model": "npu", "reason": "local_ok", "confidence": None, "score": None}
    assert reply["usage"] == {"prompt_tokens": 22, "cached_tokens": 8, "completion_tokens": 14, "decode_steps": 0}
    assert reply["timing"]["prefill_ms"] > 0
    assert_adds_up(reply["timing"])
    assert [tool["function"]["name"] for tool in server.chats[0].body["tools"]] == ["tank_level", "set_valve", "note"]
    assert "escalate" not in json.dumps(server.chats[0].body)


async def test_wrong_call_goes_back_and_the_same_call_again_ends_the_acting(
    tmp_path: Path, server: ScriptedCloud
) -> None:
    """Small models do both. The words then come without tools in sight."""
    wrong = ("set_valve", {"valve": "west", "position": "open"})
    server.will(clouds.calls(wrong), clouds.calls(LEVEL), clouds.calls(LEVEL), clouds.text("41 percent."))
    async with served(tmp_path, server) as daemon:
        reply = await ask(daemon, "how full is it?")
        assert daemon.rows("valve_commands") == []
    assert (reply["output"], len(reply["tool_calls"])) == ("41 percent.", 1)
    assert "'west' is not one of" in server.chats[1].body["messages"][-1]["content"]
    assert "tools" not in server.chats[3].body


NOTHING = [
    ("SELECT level FROM tank_levels WHERE level > 100 AND tank = :tank", "", {}, "Nothing was found."),
    ("SELECT max(level) AS level FROM tank_levels WHERE level > 100 AND :tank", "", {}, "Nothing was found."),
    ("SELECT NULL AS level WHERE :tank", "", {"language": "de-AT"}, "Es wurde nichts gefunden."),
    ("SELECT NULL AS level WHERE :tank", 'say_none = "No {tank} tank."', {"language": "de"}, "No south tank."),
]


@pytest.mark.parametrize(("sql", "say_none", "fields", "said"), NOTHING)
async def test_what_holds_nothing_is_not_worded_by_a_server(
    tmp_path: Path, server: ScriptedCloud, sql: str, say_none: str, fields: dict[str, Any], said: str
) -> None:
    """No rows, or NULLs only: edged says so itself, in the words and the language that were asked for."""
    server.will(clouds.calls(LEVEL), clouds.text("It is 55 percent full."))
    async with served(tmp_path, server, f"[tools.tank_level]\nsql = {json.dumps(sql)}\n{say_none}\n") as daemon:
        reply = await ask(daemon, "how full is it?", **fields)
    assert (reply["status"], reply["output"], reply["tool_calls"][0]["ok"]) == ("done", said, True)
    assert len(server.chats) == 1


@pytest.mark.parametrize(("language", "said"), [("de", "Es wurde nichts gefunden."), ("auto", "Nothing was found.")])
async def test_language_of_an_agent_holds_with_a_server(
    tmp_path: Path, server: ScriptedCloud, language: str, said: str
) -> None:
    """The agent's own language, where it has one, goes before that of the question."""
    nothing = '[tools.tank_level]\nsql = "SELECT 1 AS level WHERE :tank = 0"\n'
    server.will(clouds.calls(LEVEL), clouds.text("It is 55 percent full."))
    async with served(tmp_path, server, nothing, agent=f'language = "{language}"\n') as daemon:
        reply = await ask(daemon, "how full is it?")
    assert (reply["output"], len(server.chats)) == (said, 1)


@pytest.mark.parametrize(
    ("answer", "schema", "says"),
    [(" ", None, "the answer was empty"), ("4", NUMBER, "the answer does not match the schema: 4 is not of type")],
)
async def test_reply_of_a_model_that_does_not_learn_is_for_people(
    tmp_path: Path, server: ScriptedCloud, answer: str, schema: Any, says: str
) -> None:
    """What the model was asked to do stays between it and edged."""
    server.will(*[clouds.text(answer)] * 4)  # for the decision, for the answer, and for two corrections
    async with served(tmp_path, server) as daemon:
        reply = await ask(daemon, "how full is it?", **({"response_schema": schema} if schema else {}))
    assert (reply["status"], reply["error"]["code"]) == ("failed", "tool_failed")
    assert reply["error"]["message"].startswith(f"model 'npu': {says}")
    assert "Answer" in server.chats[-1].body["messages"][-1]["content"]
    assert "Answer" not in reply["error"]["message"]


async def test_shape_is_asked_for_apart_from_the_tools_and_checked(tmp_path: Path, server: ScriptedCloud) -> None:
    """What does not fit goes back."""
    server.will(clouds.calls(LEVEL), clouds.text("Enough."), clouds.text('{"n": "x"}'), clouds.text('{"n": 41}'))
    async with served(tmp_path, server) as daemon:
        reply = await ask(daemon, "how full is it?", response_schema=NUMBER)
    assert json.loads(reply["output"]) == {"n": 41}
    shaped = [("tools" in chat.body, "response_format" in chat.body) for chat in server.chats]
    assert shaped == [(True, False), (True, False), (False, True), (False, True)]


async def test_answer_streams_and_a_cancelled_request_lets_the_server_go(tmp_path: Path, server: ScriptedCloud) -> None:
    """Piece by piece; who cancels gets what every cancelled request gets."""
    async with served(tmp_path, server) as daemon, Wired(daemon.socket) as client:
        server.will(clouds.text("one two three"), clouds.stalled_body())
        await client.call(1, "agent.ask", {"input": "count", "stream": True})
        pieces = [frame[2][2] for frame in client.notifications if frame[1] == "agent.delta"]
        assert "".join(pieces) == "one two three"
        assert len(pieces) > 1
        client.send([0, 2, "agent.ask", [{"input": "count", "id": "c"}]])
        await server.asked(2)
        await client.call(3, "request.cancel", {"name": "c"})
        _, reply = await client.answer(2)
        assert reply["status"] == "cancelled"
        await server.until(lambda: server.gone == 1)


async def test_server_that_is_away_is_told_in_reply_status_and_event(tmp_path: Path, server: ScriptedCloud) -> None:
    """Nobody waits for a link: the request is refused with the reason, and may be asked again."""
    async with served(tmp_path, server) as daemon, Wired(daemon.socket) as client:
        await client.call(1, "events.subscribe")
        await ask(daemon, "hello")
        await server.stop()
        reply = await ask(daemon, "hello")
        assert (reply["status"], reply["error"]["code"]) == ("refused", "model_unavailable")
        assert reply["error"]["retryable"]
        assert server.base_url in reply["error"]["message"]
        assert reply["route"]["reason"] == "no_local_model"
        _, status = await client.call(2, "status")
        model = status["models"]["npu"]
        assert (model["state"], model["server"]["up"]) == ("missing", False)
        assert "Cannot connect" in model["server"]["reason"]
        assert "npu" in status["models"]
        await server.start()
        assert (await ask(daemon, "hello"))["output"] == "ok"
        error, _ = await client.call(3, "models.load", {"name": "npu"})
        assert error["code"] == "bad_request"
        assert "which loads and unloads it" in error["message"]
        events = [frame[2][0]["event"] for frame in client.notifications if frame[1] == "event"]
        assert [name for name in events if name.startswith("server_")][-2:] == ["server_down", "server_up"]


async def test_model_is_preloaded_explained_and_shown(tmp_path: Path, server: ScriptedCloud) -> None:
    """One token at the start makes a server load; what it would call is told and not done."""
    async with served(tmp_path, server, "preload = true\n") as daemon, Wired(daemon.socket) as client:
        await server.asked()
        assert server.chats[0].body["max_tokens"] == 1
        server.will(clouds.calls(OPEN_NORTH))
        error, told = await client.call(1, "route.explain", {"input": "open the north valve", "decide": True})
        assert error is None
        assert (told["go"], told["call"]["name"], told["call"]["confidence"]) == ("local", "set_valve", None)
        assert daemon.rows("valve_commands") == []
        shown = await edged("status", config=daemon.config)
        assert f"model  npu: answers, large at {server.base_url}" in shown.out


async def test_plain_model_is_asked_through_the_openai_api(tmp_path: Path, server: ScriptedCloud) -> None:
    """By its alias, with the SDK; a refusal of the server's has OpenAI's code, one that may pass says so."""
    async with served(tmp_path, server) as daemon:
        transport = httpx2.AsyncHTTPTransport(uds=str(tmp_path / "run" / "http.sock"))
        async with openai.AsyncOpenAI(
            base_url="http://edged/v1",
            api_key="none",
            max_retries=0,
            http_client=httpx2.AsyncClient(transport=transport),
        ) as client:
            assert "npu" in [model.id async for model in client.models.list()]
            question: Any = {"model": "npu", "messages": [{"role": "user", "content": "hello"}]}
            server.will(clouds.text("one two"))
            stream = await client.chat.completions.create(**question, stream=True)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
            assert "".join(pieces) == "one two"
            server.will(clouds.status(400, "This model's maximum context length is 512"))
            with pytest.raises(openai.APIStatusError) as caught:
                await client.chat.completions.create(**question)
            assert caught.value.code == "context_length_exceeded"
            await server.stop()
            with pytest.raises(openai.APIStatusError) as caught:
                await client.chat.completions.create(**question)
            assert (caught.value.status_code, caught.value.code) == (503, "model_unavailable")
            assert caught.value.response.headers["Retry-After"]
        assert daemon.states() == []  # nothing of it is stored


THINKS = "<think>\nIs it full?\n</think>\n\nIt is full."
ASK_FOR_IT: list[dict[str, Any]] = [
    {"include_reasoning": True},
    {"reasoning_effort": "low"},
    {"chat_template_kwargs": {"enable_thinking": True}},
    {"reasoning": {"effort": "high"}},
    {"think": True},
]
DO_NOT: list[dict[str, Any]] = [
    {},
    {"include_reasoning": False, "reasoning_effort": "high"},
    {"reasoning_effort": "none"},
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"reasoning": {"exclude": True}},
]


@pytest.mark.parametrize("split", [False, True], ids=["in-the-text", "split-off-by-the-server"])
async def test_what_a_plain_model_thinks_is_told_where_it_is_asked_for(
    tmp_path: Path, server: ScriptedCloud, split: bool
) -> None:
    """In a field of its own, whole and streamed; never in the content."""
    deltas = [{"content": THINKS[at : at + 5]} for at in range(0, len(THINKS), 5)]
    whole: dict[str, Any] = {"role": "assistant", "content": THINKS}
    if split:
        deltas = [{"reasoning_content": "Is it "}, {"reasoning_content": "full?"}, {"content": "It is full."}]
        whole = {"role": "assistant", "content": "It is full.", "reasoning_content": "Is it full?"}

    async def behave(wanted: clouds.Asked) -> Any:
        if wanted.streamed:
            return await clouds.stream(*map(clouds.event, deltas))(wanted)
        return web.json_response(clouds.completion(whole, "stop", None))

    server.otherwise = behave
    async with served(tmp_path, server) as daemon:
        transport = httpx2.AsyncHTTPTransport(uds=str(tmp_path / "run" / "http.sock"))
        http = httpx2.AsyncClient(transport=transport)
        async with openai.AsyncOpenAI(
            base_url="http://edged/v1", api_key="k", max_retries=0, http_client=http
        ) as client:
            for number, extra in enumerate((*ASK_FOR_IT, *DO_NOT)):
                thought = "Is it full?" if number < len(ASK_FOR_IT) else None
                fields: Any = {"model": "npu", "messages": [{"role": "user", "content": "hm"}], "extra_body": extra}
                message = (await client.chat.completions.create(**fields)).choices[0].message
                assert (message.content, getattr(message, "reasoning_content", None)) == ("It is full.", thought), extra
                stream = await client.chat.completions.create(**fields, stream=True)
                parts = [chunk.choices[0].delta async for chunk in stream if chunk.choices]
                assert "".join(part.content or "" for part in parts) == "It is full."
                thoughts = "".join(getattr(part, "reasoning_content", None) or "" for part in parts)
                assert thoughts.strip() == (thought or ""), extra
        assert await daemon.stop() == 0


async def test_request_goes_to_the_cloud_where_it_may_and_the_server_cannot(
    tmp_path: Path, server: ScriptedCloud
) -> None:
    """As from any model of the board: it is away, the prompt is too long for it, or it hands over."""
    any_privacy = 'privacy = "any"\n'
    async with ScriptedCloud() as cloud:
        cloud.otherwise = clouds.text("from the cloud")
        reasons = []
        async with served(tmp_path, server, upstream("far", cloud), agent=any_privacy) as daemon:
            server.will(clouds.calls(("escalate", {})))
            reasons.append((await ask(daemon, "plan my year"))["route"]["reason"])
            server.will(clouds.status(400, "too long", code="context_length_exceeded"))
            reasons.append((await ask(daemon, "hello"))["route"]["reason"])
            await server.stop()
            reply = await ask(daemon, "hello")
            reasons.append(reply["route"]["reason"])
    assert reasons == ["escalated", "context", "no_local_model"]
    assert (reply["output"], reply["route"]["where"]) == ("from the cloud", "cloud")


async def test_conversation_that_outgrows_the_context_loses_its_oldest_turn(
    tmp_path: Path, server: ScriptedCloud
) -> None:
    """`context` bounds what is sent, as far as characters tell; the question stays."""
    async with served(tmp_path, server, "context = 512\n", agent="max_tokens = 64\n") as daemon:
        for text in ("first " * 100, "second " * 100, "third " * 100):
            await ask(daemon, text, conversation="k")
    said = json.dumps(server.chats[-1].body["messages"])
    assert ("first" in said, "third" in said) == (False, True)


async def test_private_agent_works_and_nothing_but_loopback_is_contacted(tmp_path: Path, server: ScriptedCloud) -> None:
    """With proxies configured that would lead away."""
    (tmp_path / "sitecustomize.py").write_text(LISTENER)
    heard = tmp_path / "heard"
    environment = {
        "PYTHONPATH": os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", ""))),
        "EDGED_HEARD": str(heard),
        "HTTP_PROXY": "http://192.0.2.1:3128",
        "http_proxy": "http://192.0.2.1:3128",
    }
    server.will(clouds.calls(OPEN_NORTH))
    async with served(tmp_path, server, agent='privacy = "device"\n', environment=environment) as daemon:
        reply = await ask(daemon, "open the north valve")
        assert (reply["status"], reply["output"]) == ("done", "Valve north is now open.")
        assert daemon.rows("valve_commands") == [("north", "open")]
    assert len(server.chats) == 1  # the tool's `say` is the answer
    where = set(heard.read_text().splitlines())
    assert f"('127.0.0.1', {server.port})" in where
    assert not {one for one in where if not one.startswith(("('127.0.0.1'", "'"))}


async def test_server_that_hangs_does_not_hold_up_the_boards_own_models(tmp_path: Path, server: ScriptedCloud) -> None:
    """Its completions take half of the slots, whatever they wait for."""
    server.otherwise = clouds.stalled_header()
    async with served(tmp_path, server) as daemon:
        transport = httpx2.AsyncHTTPTransport(uds=str(tmp_path / "run" / "http.sock"))
        async with openai.AsyncOpenAI(
            base_url="http://edged/v1",
            api_key="unused",
            max_retries=0,
            http_client=httpx2.AsyncClient(transport=transport),
        ) as client:

            async def ask_for(model: str) -> str | None:
                said = await client.chat.completions.create(
                    model=model, messages=[{"role": "user", "content": "tell a story"}]
                )
                return said.choices[0].message.content

            hanging = [asyncio.create_task(ask_for("npu")) for _ in range(20)]
            await server.asked(8)
            assert await asyncio.wait_for(ask_for("small"), 10) == "one two three"
            assert not any(task.done() for task in hanging)
            for task in hanging:
                task.cancel()
            await asyncio.wait(hanging)
        assert "Traceback" not in daemon.text()
