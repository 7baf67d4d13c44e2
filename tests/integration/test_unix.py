"""The Unix socket of the real daemon, from a client made of a socket and msgpack, and from edged's own clients."""

from __future__ import annotations

import asyncio
import fcntl
import grp
import os
import subprocess
import sys
import tempfile
import termios
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgpack
import pytest
import pytest_asyncio

from edged.client import AsyncClient, Client, EdgedCallError
from tests.support import stranger as strangers
from tests.support.broker import until
from tests.support.daemon import ROOT, Daemon, Wired
from tests.support.http_api import unix_session

pytestmark = pytest.mark.asyncio(loop_scope="module")  # of the daemon that several tests share

NOBODY = 65534  # the uid without rights on every Linux


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """A daemon for tests that leave nothing behind."""
    async with Daemon(tmp_path_factory.mktemp("shared")) as daemon:
        yield daemon
        assert await daemon.stop() == 0
        assert "Traceback" not in daemon.text()


@pytest_asyncio.fixture(loop_scope="module")
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    """A daemon without a broker, whose log shows no bug of its own."""
    async with Daemon(tmp_path) as daemon:
        yield daemon
        assert await daemon.stop() == 0
        assert "Traceback" not in daemon.text()


@pytest_asyncio.fixture(loop_scope="module")
async def client(daemon: Daemon) -> AsyncIterator[Wired]:
    """A connection."""
    async with Wired(daemon.socket) as client:
        yield client


async def test_ask_answers_with_the_reply_of_the_contract(client: Wired, daemon: Daemon) -> None:
    """Every field is there, and what the tool did is in its database."""
    error, reply = await client.call(7, "agent.ask", {"input": "open the north valve", "id": "q1"})
    assert error is None
    assert list(reply) == [
        *(
            "id",
            "rid",
            "status",
            "output",
            "finish",
            "outcome",
            "tool_calls",
            "route",
            "usage",
            "timing",
            "degraded",
            "error",
        ),
    ]
    assert (reply["id"], reply["status"], reply["output"]) == ("q1", "done", "Valve north is now open.")
    assert reply["tool_calls"] == [
        {
            "name": "set_valve",
            "arguments": {"valve": "north", "position": "open"},
            "result": {"changes": 1, "rows": []},
            "ok": True,
        }
    ]
    assert (reply["route"]["where"], reply["route"]["model"], reply["route"]["reason"]) == (
        "local",
        "small",
        "local_ok",
    )
    assert reply["timing"]["total_ms"] > 0
    assert daemon.rows("valve_commands") == [("north", "open")]


async def test_pipelined_calls_are_answered_each_by_its_number(client: Wired) -> None:
    """A slow one first, and it holds up no other."""
    client.send([0, 1, "agent.ask", [{"input": "tell a story"}]])
    for number in range(2, 30):
        client.send([0, number, "agent.ask", [{"input": f"note {number};"}]])
    for number in range(29, 1, -1):
        error, reply = await client.answer(number)
        assert error is None
        assert reply["output"] == f"noted {number}"
    assert (await client.answer(1))[1]["output"] == "one two three"


async def test_streamed_answer_comes_as_deltas_with_offsets_before_its_reply(client: Wired) -> None:
    """Put together by their offsets the pieces are the output."""
    _, reply = await client.call(5, "agent.ask", {"input": "tell a story", "stream": True})
    text = ""
    for kind, method, (msgid, offset, piece) in client.notifications:
        assert (kind, method, msgid, offset) == (2, "agent.delta", 5, len(text))
        text += piece
    assert len(client.notifications) == 3
    assert text == reply["output"]


@pytest.mark.parametrize(
    ("method", "params", "code", "said"),
    [
        ("agent.ask", {"input": "x", "agent": "nobody"}, "unknown_agent", "house"),
        ("agent.ask", {"input": "x", "colour": "red"}, "bad_request", "colour"),
        ("agent.ask", {"input": 5}, "bad_request", "input"),
        ("agent.ask", {}, "bad_request", "input"),
        ("agent.ask", {"input": "x", "reply_to": "t"}, "bad_request", "reply_to"),
        ("agent.ask", {"input": "x", "route": "cloud"}, "bad_request", "cloud"),
        ("request.get", {"name": "nothing"}, "bad_request", "nothing"),
        ("request.get", {}, "bad_request", "name"),
        ("requests.list", {"limit": 0}, "bad_request", "limit"),
        ("requests.list", {"limit": True}, "bad_request", "limit"),
        ("requests.list", {"state": "flying"}, "bad_request", "received"),
        ("models.load", {"name": "huge"}, "model_unavailable", "huge"),
        ("tools.call", {"name": "note"}, "bad_request", "'text' is a required property"),
        ("tools.call", {"name": "note", "arguments": {"text": 5}}, "bad_request", "text: 5 is not of type 'string'"),
        ("tools.call", {"name": "nothing"}, "bad_request", "set_valve"),
        ("request.requeue", {"name": "nothing"}, "bad_request", "nothing"),
        ("route.explain", {"input": "x", "decide": "yes"}, "bad_request", "decide"),
        ("no.such", {}, "bad_request", "agent.ask"),
        ("status", {"x": 1}, "bad_request", "x"),
    ],
)
async def test_wrong_call_is_an_error_that_names_what_is_wrong(
    shared: Daemon, method: str, params: dict[str, Any], code: str, said: str
) -> None:
    """And the connection goes on."""
    async with Wired(shared.socket) as client:
        error, result = await client.call(1, method, params)
        assert result is None
        assert set(error) == {"code", "message", "retryable", "retry_after_s"}
        assert error["code"] == code
        assert said in error["message"]
        assert (await client.call(2, "status"))[0] is None


async def test_values_that_json_does_not_know_are_no_bug(client: Wired) -> None:
    """MessagePack carries more than JSON: each is taken or refused in words."""
    for value in (msgpack.ExtType(5, b"x"), b"\xff\x00", float("nan"), 2**64 - 1, msgpack.Timestamp(1), {b"k": 1}):
        error, reply = await client.call(1, "agent.ask", {"input": "x", "response_schema": {"enum": [value]}})
        code = error["code"] if error else (reply["error"] or {"code": None})["code"]
        assert code != "internal", value


async def test_notifications_are_done_and_not_answered(client: Wired, daemon: Daemon) -> None:
    """The next call's answer is the first thing that comes back."""
    client.send([2, "agent.ask", [{"input": "note 3;", "id": "n"}]])
    client.send([2, "no.such", [{}]])
    _, reply = await client.call(1, "agent.ask", {"input": "note 3;", "id": "n"})
    assert reply["output"] == "noted 3"
    assert client.notifications == []
    assert daemon.rows("diary") == [("n3",)]


async def test_frames_split_at_every_byte_are_understood(client: Wired) -> None:
    """As a slow serial bridge would deliver them."""
    frame = msgpack.packb([0, 1, "agent.ask", [{"input": "how full is it?"}]])
    for byte in frame:
        await client.raw(bytes([byte]))
        await asyncio.sleep(0)
    assert (await client.answer(1))[1]["output"] == "It is 41 percent full."
    for cut in range(1, len(frame)):
        await client.raw(frame[:cut])
        await client.raw(frame[cut:])
        assert (await client.answer(1))[0] is None


def _deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(msgpack.packb([0, 1, "status", [{"x": "y" * (4 * 2**20)}]]), "too_large", id="over 4 MiB"),
        pytest.param(
            msgpack.packb([0, 1, "status", [{"x": ["y" * 2**16] * 65}]]), "too_large", id="over 4 MiB in parts"
        ),
        pytest.param(msgpack.packb([0, 1, "status", [{"x": _deep(40)}]]), "too_large", id="too deep"),
        pytest.param(b"\x91" * 5000, "bad_request", id="far too deep"),
        pytest.param(b"\xc1", "bad_request", id="a byte that means nothing"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", "bad_request", id="HTTP"),
        pytest.param(b"\xa3abc", "bad_request", id="a text"),
        pytest.param(b"\xa2\xff\xff", "bad_request", id="no UTF-8"),
        pytest.param(b"\x81\x90\x01", "bad_request", id="a list as a key"),
        pytest.param(b"\x81\x80\x01", "bad_request", id="a map as a key"),
        pytest.param(msgpack.packb([0, 1, "status", {}]), "bad_request", id="params is no list"),
        pytest.param(msgpack.packb([0, 1, "status", [{}, {}]]), "bad_request", id="two params"),
        pytest.param(msgpack.packb([0, 1, "status", [{1: 2}]]), "bad_request", id="a number as a name"),
        pytest.param(msgpack.packb([1, 1, None, None]), "bad_request", id="a response"),
        pytest.param(b"\xdf\xff\xff\xff\xff", "bad_request", id="a map of 4 billion"),
    ],
)
async def test_what_is_no_frame_closes_its_connection_with_an_error_and_no_other(
    shared: Daemon, data: bytes, code: str
) -> None:
    """The neighbour's request, which was running, is answered."""
    async with Wired(shared.socket) as neighbour, Wired(shared.socket) as bad:
        neighbour.send([0, 1, "agent.ask", [{"input": "tell a story"}]])
        await bad.raw(data)
        await bad.end()
        assert [frame[:2] for frame in bad.notifications] == [[2, "error"]]
        assert bad.notifications[0][2][0]["code"] == code
        assert (await neighbour.answer(1))[1]["output"] == "one two three"


@pytest.mark.parametrize("extra", [0, 1])
async def test_frame_may_have_four_mebibytes_and_no_byte_more(client: Wired, extra: int) -> None:
    """Behind another frame in the same breath, and made of several texts."""
    parts = ["y" * 2**20] * 3
    bare = len(msgpack.packb([0, 2, "status", [{"x": [*parts, "z" * 2**19]}]])) - 2**19
    frame = msgpack.packb([0, 2, "status", [{"x": [*parts, "z" * (4 * 2**20 + extra - bare)]}]])
    assert len(frame) == 4 * 2**20 + extra
    await client.raw(msgpack.packb([0, 1, "status", [{}]]) + frame)
    assert (await client.answer(1))[0] is None
    if extra:
        await client.end()
        assert client.notifications[-1][2][0]["code"] == "too_large"
    else:
        assert (await client.answer(2))[0]["code"] == "bad_request"


async def test_random_bytes_never_harm_the_daemon(shared: Daemon) -> None:
    """Each connection ends or waits for more; the fixture looks for tracebacks."""
    chance = Random(4)
    for _ in range(100):
        async with Wired(shared.socket) as bad:
            await bad.raw(chance.randbytes(chance.randrange(1, 200)))
    async with Wired(shared.socket) as client:
        assert (await client.call(1, "status"))[0] is None


async def test_slow_reader_loses_deltas_and_gets_its_reply(daemon: Daemon, tmp_path: Path) -> None:
    """Two megabytes of pieces for somebody who does not read: most are dropped, what comes has right offsets."""
    async with Wired(daemon.socket) as slow, Wired(daemon.socket) as other:
        slow.send([0, 1, "agent.ask", [{"input": "much text", "stream": True, "id": "m"}]])
        while (await other.call(1, "requests.list", {"limit": 1}))[1][:1] == []:
            pass
        _, complete = await other.call(2, "agent.ask", {"input": "much text", "id": "m"})
        _, reply = await slow.answer(1)
        assert reply == complete
        assert len(reply["output"]) > 1_900_000
        pieces = [frame[2] for frame in slow.notifications]
        assert 0 < len(pieces) < 200_000
        assert all(reply["output"].startswith(piece[2], piece[1]) for piece in pieces[:: len(pieces) // 100])


@pytest.mark.parametrize("unread", [False, True])
async def test_client_that_goes_away_cancels_its_request_unless_it_has_an_id(daemon: Daemon, unread: bool) -> None:
    """Also when it leaves pieces unread, which the kernel reports as a reset; with an id it can ask again."""
    async with Wired(daemon.socket) as watcher:
        await watcher.call(1, "models.load", {"name": "small"})
        async with Wired(daemon.socket) as leaving:
            leaving.send([0, 1, "agent.ask", [{"input": "never ends", "stream": unread}]])
            leaving.send([0, 2, "agent.ask", [{"input": "tell a story", "id": "s"}]])
            if unread:
                await _unread(leaving)
            else:
                await _states(watcher, {"never ends": "running"})
        await _states(watcher, {"never ends": "cancelled", "tell a story": "done"})


async def _unread(client: Wired) -> None:
    """Wait until the kernel holds something for a client that it did not read."""
    client._writer.transport.pause_reading()  # type: ignore[attr-defined]  # asyncio reads ahead
    number = client._writer.get_extra_info("socket").fileno()
    await until(lambda: int.from_bytes(fcntl.ioctl(number, termios.FIONREAD, bytes(4)), sys.byteorder))


async def _states(client: Wired, wanted: dict[str, str]) -> None:
    """Wait until requests, by their input, are in these states."""
    async with asyncio.timeout(10):
        while True:
            _, rows = await client.call(99, "requests.list", {"limit": 50})
            states = {row["input"]: row["state"] for row in rows}
            if all(states.get(text) == state for text, state in wanted.items()):
                return


async def test_joined_request_goes_on_while_one_of_its_askers_is_there(daemon: Daemon) -> None:
    """Whoever leaves takes nothing from the others."""
    async with Wired(daemon.socket) as stays:
        async with Wired(daemon.socket) as leaves:
            for one in (leaves, stays):
                one.send([0, 1, "agent.ask", [{"input": "tell a story", "id": "s"}]])
            await _states(stays, {"tell a story": "running"})
        assert (await stays.answer(1))[1]["output"] == "one two three"


async def test_get_and_cancel_by_id_and_rid(client: Wired) -> None:
    """Unfinished, cancelled, and asked again afterwards."""
    client.send([0, 1, "agent.ask", [{"input": "never ends", "id": "e"}]])
    await _states(client, {"never ends": "running"})
    _, shown = await client.call(2, "request.get", {"name": "e"})
    assert (shown["id"], shown["status"], shown["position"]) == ("e", "running", 0)
    _, cancelled = await client.call(3, "request.cancel", {"name": shown["rid"]})
    assert (cancelled["status"], cancelled["error"]["code"]) == ("cancelled", "cancelled")
    assert await client.answer(1) == (None, cancelled)
    assert await client.call(4, "request.cancel", {"name": "e"}) == (None, cancelled)


async def test_lists_models_tools_and_status(client: Wired) -> None:
    """What `edged status` and others show, before and after a model is loaded and unloaded."""
    events: list[Any] = client.notifications
    assert await client.call(1, "events.subscribe") == (None, {"subscribed": True})
    calls: list[tuple[str, dict[str, Any], str]] = [
        ("models.load", {"model": "small", "state": "ready"}, "ready"),
        ("models.unload", {"model": "small", "unloaded": True}, "unloaded"),
    ]
    for method, expected, state in calls:
        assert await client.call(2, method, {"name": "small"}) == (None, expected)
        _, models = await client.call(3, "models.list")
        assert models["small"]["state"] == state
    assert (await client.call(4, "models.unload", {"name": "small"}))[1]["unloaded"] is False
    assert [frame[2][0]["event"] for frame in events] == ["model_loaded", "model_unloaded"]
    _, tools = await client.call(5, "tools.list")
    assert {tool["name"]: tool["effect"] for tool in tools} == {
        "tank_level": "read",
        "set_valve": "write",
        "note": "write",
    }
    assert tools[0]["parameters"]["properties"]["tank"] == {"type": "string", "enum": ["north", "south"]}
    await client.call(6, "agent.ask", {"input": "how full is it?", "id": "q", "conversation": "c"})
    _, status = await client.call(7, "status")
    assert (status["node"], status["mqtt"], status["queue"]["requests"]) == ("n1", None, {"done": 1})
    _, rows = await client.call(8, "requests.list", {"state": "done"})
    assert [(row["id"], row["client"], row["state"], row["attempts"], row["input"]) for row in rows] == [
        ("q", f"unix:{os.getuid()}", "done", 1, "how full is it?")
    ]


STRANGER = (
    "import msgpack\n"  # as whoever may read the library
    + strangers.CONNECT
    + """
connection.sendall(msgpack.packb([0, 1, "status", [{}]]))
refused = msgpack.unpackb(connection.recv(65536))[2]
print(refused["code"] if refused else "allowed")
"""
)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that others can enter: pytest keeps them out of its own, each time that it is started."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.parametrize(("mode", "said"), [("0660", "permission denied"), ("0666", "forbidden")])
async def test_stranger_may_not_use_the_socket(open_folder: Path, mode: str, said: str) -> None:
    """By the mode of the socket where that keeps it out, else by the kernel's word about who it is."""
    if os.getuid() != 0:
        pytest.skip("only root can become somebody else")
    async with Daemon(open_folder, config=f'[ipc]\nmode = "{mode}"\n') as daemon:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", STRANGER, str(daemon.socket), str(NOBODY), stdout=subprocess.PIPE
        )
        out, _ = await asyncio.wait_for(child.communicate(), 10)
        assert out.decode().strip() == said


@pytest.mark.parametrize("kernel", ["tells", "does not tell"])
async def test_supplementary_group_of_a_service_lets_it_in(open_folder: Path, kernel: str) -> None:
    """SupplementaryGroups= puts a process into a group that the user database does not list it in. A kernel that does
    not tell groups leaves only the database: the daemon's own user gets in all the same, over MessagePack and HTTP."""
    if os.getuid() != 0:
        pytest.skip("only root can become somebody else")
    group = next(entry for entry in grp.getgrall() if entry.gr_gid not in (0, NOBODY) and not entry.gr_mem)
    members = open_folder / "members.py"
    members.write_text("from edged.transport import sockets\nsockets.SO_PEERGROUPS = 9999\n")
    environment = {"EDGED_TEST_MEMBERS": str(members)} if kernel != "tells" else {}
    config = f'[ipc]\nmode = "0666"\ngroup = "{group.gr_name}"\n'
    async with Daemon(open_folder, config=config, environment=environment) as daemon:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", STRANGER, str(daemon.socket), str(NOBODY), str(group.gr_gid)),
            stdout=subprocess.PIPE,
        )
        out, _ = await asyncio.wait_for(child.communicate(), 10)
        assert out.decode().strip() == ("allowed" if kernel == "tells" else "forbidden")
        async with Wired(daemon.socket) as client:
            assert (await client.call(1, "status"))[0] is None
        async with unix_session(daemon.folder / "run" / "http.sock") as http, http.get("/v1/models") as response:
            assert response.status == 200
        assert "Traceback" not in daemon.text()


async def test_socket_of_a_killed_daemon_is_taken_over_and_a_living_one_is_not(tmp_path: Path) -> None:
    """The second daemon on the same folders says so and exits as for a wrong configuration."""
    async with Daemon(tmp_path) as daemon:
        await daemon.kill()
        assert daemon.socket.exists()
        await daemon.start()
        second = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "edged", "run", "--config", str(daemon.config), stderr=subprocess.PIPE, cwd=ROOT
        )
        _, said = await asyncio.wait_for(second.communicate(), 20)
        assert second.returncode == 78
        assert b"another edged is running" in said
        assert b"Traceback" not in said
        async with Wired(daemon.socket) as client:
            assert (await client.call(1, "status"))[0] is None
        assert await daemon.stop() == 0
        assert not daemon.socket.exists()


# -- edged's own clients -----------------------------------------------------------------------------------------------


async def test_client_asks_streams_and_raises(daemon: Daemon) -> None:
    """The blocking one, in a thread."""

    def use() -> None:
        with Client(daemon.socket, timeout_s=10) as edged:
            assert edged.ask("how full is it?", agent="house")["output"] == "It is 41 percent full."
            pieces: list[str] = []
            reply = edged.ask("tell a story", on_text=pieces.append)
            assert pieces == ["one ", "two ", "three"]
            assert reply["output"] == "one two three"
            with pytest.raises(EdgedCallError, match="unknown_agent") as refused:
                edged.ask("x", agent="nobody")
            assert (refused.value.code, refused.value.retryable) == ("unknown_agent", False)
            assert edged.call("status")["node"] == "n1"
        with Client(daemon.socket, timeout_s=10) as edged, Client(daemon.socket, timeout_s=10) as other:
            events = edged.events()
            other.call("models.unload", {"name": "small"})
            other.call("models.load", {"name": "small"})
            assert [next(events)["event"] for _ in range(2)] == ["model_unloaded", "model_loaded"]
        with Client(daemon.socket, timeout_s=10) as edged, pytest.raises(EdgedCallError, match="too_large"):
            edged.ask("x" * 5 * 2**20)

    await asyncio.to_thread(use)
    with pytest.raises(FileNotFoundError):
        Client(daemon.folder / "nothing.sock")


async def test_async_client_overlaps_calls_and_hears_events(daemon: Daemon) -> None:
    """One connection, many calls, none in the way of another."""
    events: list[dict[str, Any]] = []
    async with AsyncClient(daemon.socket, on_event=events.append) as edged:
        await edged.call("events.subscribe")
        pieces: list[str] = []
        story = asyncio.create_task(edged.ask("tell a story", on_text=pieces.append))
        replies = await asyncio.gather(*(edged.ask(f"note {n};") for n in range(20)))
        assert [reply["output"] for reply in replies] == [f"noted {n}" for n in range(20)]
        assert (await story)["output"] == "".join(pieces) == "one two three"
        with pytest.raises(EdgedCallError, match="bad_request"):
            await edged.call("no.such")
        await edged.call("models.unload", {"name": "small"})
        assert [event["event"] for event in events] == ["model_loaded", "model_unloaded"]


async def test_async_client_fails_its_calls_when_the_daemon_or_a_callback_dies(tmp_path: Path) -> None:
    """Nobody waits for ever."""
    daemon = Daemon(tmp_path)
    await daemon.start()

    def broken(_: str) -> None:
        raise ValueError("a bug of the caller's")

    async with AsyncClient(daemon.socket) as edged:
        with pytest.raises(ValueError, match="caller's"):
            await asyncio.wait_for(edged.ask("tell a story", on_text=broken), 10)
        with pytest.raises(ConnectionError):
            await edged.call("status")
    async with AsyncClient(daemon.socket) as edged:
        waiting = asyncio.create_task(edged.ask("never ends"))
        async with Wired(daemon.socket) as watcher:
            await _states(watcher, {"never ends": "running"})
        await daemon.kill()
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(waiting, 10)
    await daemon.__aexit__()
