"""Wyoming as Home Assistant speaks it: the protocol's own client library against the real daemon."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self

import pytest
from wyoming.asr import Transcript
from wyoming.client import AsyncTcpClient
from wyoming.event import Event
from wyoming.handle import Handled, HandledChunk
from wyoming.info import Describe, Info, SelectProgram
from wyoming.ping import Ping

from edged import __version__
from tests.support.broker import free_port, until
from tests.support.cloud import ScriptedCloud
from tests.support.cloud_daemon import cloudy, upstream
from tests.support.daemon import SCRIPT, START_S, Daemon, Wired, entry

WITHIN_S = 1.0  # a `describe`, whatever the models do
UNABLE = entry("the moon", {"name": "unable", "arguments": {}}, text="unable")
ENDS = {"handled", "not-handled", "error"}
ROLES = """
[roles.voice]
agents = ["house"]
tools = ["tank_level"]
[roles.nobody]
[access]
wyoming = "voice"
"""


class Satellite:
    """A client that reads to the end of a sentence."""

    def __init__(self, port: int) -> None:
        self._client = AsyncTcpClient("127.0.0.1", port)

    async def __aenter__(self) -> Self:
        await self._client.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.disconnect()

    async def write_event(self, event: Event) -> None:
        """Send an event."""
        await self._client.write_event(event)

    async def read_event(self) -> Event | None:
        """The next event; None: the connection has ended."""
        event: Event | None = await self._client.read_event()
        return event

    async def ask(self, text: str, **fields: str) -> list[Event]:
        """All events up to the one that ends the sentence."""
        context = {name: value for name, value in fields.items() if name != "language"}
        await self.write_event(Transcript(text, context or None, fields.get("language")).event())
        events: list[Event] = []
        async with asyncio.timeout(START_S):
            while not events or events[-1].type not in ENDS:
                event = await self.read_event()
                assert event is not None, "the connection ended without an answer"
                events.append(event)
        return events


async def said(port: int, text: str, **fields: str) -> Event:
    """The event that ends a sentence, asked as Home Assistant does: on a connection of its own."""
    async with Satellite(port) as client:
        events = await client.ask(text, **fields)
        return events[-1]


def with_wyoming(folder: Path, port: int, more: str = "", script: str = SCRIPT + UNABLE) -> Daemon:
    """A daemon that listens there."""
    return Daemon(folder, config=f'[wyoming]\nlisten = "127.0.0.1:{port}"\n{more}', script=script)


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[int]:
    """Of a daemon that runs, in tmp_path."""
    port = free_port()
    async with with_wyoming(tmp_path, port):
        yield port


async def test_service_is_described_as_home_assistant_reads_it(port: int) -> None:
    """One program with one model for all languages, and empty lists of all else."""
    async with Satellite(port) as client:
        await client.write_event(Describe().event())
        event = await client.read_event()
        assert event is not None
        info = Info.from_event(event)
        [program] = info.handle
        assert (program.name, program.version, program.installed) == ("edged-n1-house", __version__, True)
        assert program.supports_home_control  # the agent has tools that do something
        assert program.supports_handled_streaming
        assert [(model.name, model.installed, model.languages) for model in program.models] == [("house", True, [])]
        for others in ("asr", "tts", "intent", "wake", "mic", "snd"):
            assert event.data[others] == []


async def test_sentence_is_handled_with_the_whole_answer_last(port: int) -> None:
    """Pieces come before it, which are the same text; who does not know them skips them."""
    async with Satellite(port) as client:
        events = await client.ask("tell a story", conversation_id="01J", device_id="d", satellite_id="s")
        assert [event.type for event in events[:2]] == ["handled-start", "handled-chunk"]
        pieces = [HandledChunk.from_event(event).text for event in events if event.type == "handled-chunk"]
        assert len(pieces) > 1
        handled = Handled.from_event(events[-1])
        assert handled.text == "".join(pieces).strip() == "one two three"
        assert handled.context == {"conversation_id": "01J"}
        stop = await client.read_event()
        assert stop is not None
        assert stop.type == "handled-stop"
        # What a tool says is no generation, and comes at once. It is the second sentence of this connection.
        acted = await client.ask("open the north valve")
        assert acted[-1].data["text"] == "Valve north is now open."


async def test_client_is_answered_while_a_model_answers(port: int) -> None:
    """Home Assistant asks every 30 s who is there, and gives up after 5 s; a second sentence needs its own
    connection."""
    async with Satellite(port) as slow, Satellite(port) as other:
        await slow.write_event(Transcript("never ends").event())
        start = await slow.read_event()
        assert start is not None
        assert start.type == "handled-start"
        for client in (other, slow):  # the connection that waits for its answer, too
            async with asyncio.timeout(WITHIN_S):
                await client.write_event(Ping("are you there").event())
                await client.write_event(Describe().event())
                seen: list[Event] = []
                while not seen or seen[-1].type != "info":
                    event = await client.read_event()
                    assert event is not None
                    seen += [event] if event.type != "handled-chunk" else []
            assert [(event.type, event.data.get("text")) for event in seen[:1]] == [("pong", "are you there")]
        assert (await slow.ask("tell a story"))[-1].data["code"] == "busy"
        assert (await other.ask("tell a story"))[-1].data["text"] == "one two three"


async def test_each_outcome_has_its_event(port: int) -> None:
    """Not understood and not allowed are `not-handled`; what failed is an `error` with its code."""
    unable = await said(port, "how far is the moon?", language="de-AT")
    assert unable.type == "not-handled"
    assert "the moon" in unable.data["text"]
    assert "Das kann ich hier" in unable.data["text"]  # in the language that the client names
    for wrong in ("", "   "):
        event = await said(port, wrong)
        assert (event.type, event.data["code"]) == ("error", "bad_request")
    event = await said(port, "how full?", conversation_id="x" * 200)
    assert (event.type, event.data["code"]) == ("error", "bad_request")
    async with Satellite(port) as client:
        await client.write_event(Event("audio-chunk", {"rate": 16000}, payload=b"\0" * 100_000))
        await client.write_event(Event("pipeline-of-tomorrow", {"a": 1}))
        await client.write_event(SelectProgram("edged-n1-house").event())
        assert (await client.ask("how full is it?", language="*"))[-1].data["text"] == "It is 41 percent full."
        assert (await client.read_event()) is not None
        await client.write_event(SelectProgram("garage").event())
        event = (await client.ask("how full is it?"))[-1]
        assert (event.type, event.data["code"]) == ("error", "unknown_agent")
        assert "house" in event.data["text"]


async def test_two_at_once_and_each_conversation_its_own(port: int, tmp_path: Path) -> None:
    """A conversation's name is the one that Home Assistant has for it."""
    answers = await asyncio.gather(*(said(port, f"note {n};", conversation_id=f"c{n % 2}") for n in range(6)))
    assert [event.data["text"] for event in answers] == [f"noted {n}" for n in range(6)]
    async with Wired(tmp_path / "run" / "edged.sock") as client:
        _, rows = await client.call(1, "requests.list", {"limit": 10})
        assert {(row["client"], row["state"]) for row in rows} == {("open:wyoming", "done")}
        _, status = await client.call(2, "status")
        assert status["wyoming"] == {"listen": f"127.0.0.1:{port}", "agent": "house", "connections": 0}


NO_EVENTS = [
    (b"hello\n", "bad_request"),
    (b'{"type": 1}\n', "bad_request"),
    (b"[]\n", "bad_request"),
    (b'{"type": "ping", "data_length": 3}\n{}}', "bad_request"),
    (b'{"type": "' + b"x" * 70_000, "too_large"),  # a line has 64 KiB, and data what a request may have
    (b'{"type": "transcript", "data_length": 300000}\n', "too_large"),
    (b'{"type": "audio-chunk", "payload_length": -1}\n', "too_large"),
]


async def test_what_is_no_event_ends_its_connection_only(port: int) -> None:
    """With an error that says so, and before it takes memory."""
    async with Satellite(port) as other:
        for wrong, code in NO_EVENTS:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(wrong)
            error = json.loads(await reader.readline())
            assert error["type"] == "error"
            assert json.loads(await reader.readexactly(error["data_length"]))["code"] == code
            with contextlib.suppress(ConnectionError):  # closed with something unread
                assert await reader.read() == b""
            writer.close()
        assert (await other.ask("tell a story"))[-1].type == "handled"


@pytest.mark.parametrize(("when_gone", "state"), [("cancel", "cancelled"), ("finish", "done")])
async def test_client_that_leaves_ends_its_sentence_or_not(tmp_path: Path, when_gone: str, state: str) -> None:
    """As configured."""
    port, script = free_port(), entry("go on", text="word " * 40, token_s=0.03)
    async with with_wyoming(tmp_path, port, f'when_gone = "{when_gone}"', script) as daemon:
        async with Satellite(port) as client:
            await client.write_event(Transcript("go on").event())
            assert (await client.read_event()) is not None  # it has begun
        await until(lambda: daemon.states() == [state])


async def test_role_bounds_what_anybody_on_the_board_may_do(tmp_path: Path) -> None:
    """A call that the role does not have is not made, and `not-handled` says why."""
    port = free_port()
    async with with_wyoming(tmp_path, port, ROLES) as daemon:
        refused = await said(port, "open the north valve")
        assert refused.type == "not-handled"
        assert "set_valve" in refused.data["text"]
        assert daemon.rows("valve_commands") == []
        assert (await said(port, "how full is it?")).data["text"] == "It is 41 percent full."
        async with Satellite(port) as client:
            await client.write_event(Describe().event())
            event = await client.read_event()
            assert event is not None
            assert not Info.from_event(event).handle[0].supports_home_control
        daemon.drop_in('[access]\nwyoming = "nobody"\n')
        await daemon.reload()
        refused = await said(port, "how full is it?")
        assert refused.type == "not-handled"
        assert "may not use agent 'house'" in refused.data["text"]


async def test_answer_that_waits_for_a_link_is_promised(tmp_path: Path) -> None:
    """Nobody stands before a satellite until the network is back; the request goes on."""
    port = free_port()
    async with ScriptedCloud() as cloud:
        daemon = cloudy(tmp_path, upstream("far", cloud))  # it is gone when it is asked
    daemon.drop_in(f'[wyoming]\nlisten = "127.0.0.1:{port}"\n')
    async with daemon:
        event = await said(port, "this is too hard", language="de")
        assert event.type == "handled"
        assert "sobald es eine gibt" in event.data["text"]
        assert daemon.states() == ["waiting_link"]
