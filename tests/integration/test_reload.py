"""`kill -HUP`: a new configuration in the same process, with nothing lost and nobody refused; a wrong one changes
nothing."""

from __future__ import annotations

import asyncio
import functools
import json
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from edged.client import AsyncClient, EdgedCallError
from edged.requests.worker import MAX_RUNNING
from tests.support.broker import Mosquitto, until
from tests.support.daemon import REPLY, SCRIPT, Customer, Daemon, Wired, entry, note

GARDEN = '[agents.garden]\nmodel = "small"\ntools = ["note"]\n'
PERIOD_S = 0.1  # of the watchdog's pings
STORY_S = 1.0  # about how long the story below takes: a reload that begins in its middle has to wait for it
STORY_TEXT = " ".join(["word"] * 20)
STORY = entry("long story", text=STORY_TEXT, token_s=STORY_S / 20)


async def test_reload_puts_a_new_configuration_into_force_in_the_same_process(tmp_path: Path) -> None:
    """The service manager hears of it, the process and the socket's file stay, and an agent that is new answers."""
    async with Daemon(tmp_path) as daemon:
        before = daemon.pid, daemon.socket.stat().st_ino
        async with Wired(daemon.socket) as client:
            error, _ = await client.call(1, "agent.ask", {"input": "note 1;", "agent": "garden"})
            assert error["code"] == "unknown_agent"
        daemon.drop_in(GARDEN)
        await daemon.reload()
        [mark] = [notice for notice in daemon.notices if notice.startswith("MONOTONIC_USEC=")]
        assert int(mark.partition("=")[2]) > 0
        assert daemon.notices.index("RELOADING=1") + 1 == daemon.notices.index(mark)
        assert "STOPPING=1" not in daemon.notices
        async with Wired(daemon.socket) as client:
            error, reply = await client.call(1, "agent.ask", {"input": "note 1;", "agent": "garden"})
            assert error is None
            assert reply["status"] == "done"
            assert (await client.call(2, "status"))[1]["pid"] == daemon.pid
        assert (daemon.pid, daemon.socket.stat().st_ino) == before
        assert daemon.text().count("event=reload_begun") == 1
        assert daemon.text().count("event=daemon_stopping reloading=True") == 1
        assert await daemon.stop() == 0
        assert not daemon.socket.exists()
        assert "Traceback" not in daemon.text()


async def test_reload_lets_a_running_request_finish_and_keeps_new_clients_waiting(tmp_path: Path) -> None:
    """Who asked before gets the answer on the old connection; who connects meanwhile is served by what follows."""
    async with Daemon(tmp_path, script=STORY + SCRIPT) as daemon, Wired(daemon.socket) as first:
        first.send([0, 1, "agent.ask", [{"input": "a long story"}]])
        async with Wired(daemon.socket) as watcher:
            await watcher.running()
        daemon.drop_in(GARDEN)
        daemon.hang_up()
        await until(lambda: "making room" in daemon.text())
        async with Wired(daemon.socket) as second:
            second.send([0, 1, "agent.ask", [{"input": "note 2;", "agent": "garden"}]])
            error, reply = await first.answer(1)
            assert (error, reply["status"], reply["output"]) == (None, "done", STORY_TEXT)
            assert daemon.notices.count("READY=1") == 1
            error, reply = await second.answer(1)
            assert (error, reply["output"]) == (None, "noted 2")
        assert daemon.notices.count("READY=1") == 2


async def test_reload_makes_sockets_again_whose_files_were_deleted(tmp_path: Path) -> None:
    """A cleaner of old files, say: until then nobody can connect, and a reload is what puts it right."""
    async with Daemon(tmp_path) as daemon:
        for path in (daemon.socket, daemon.socket.with_name("http.sock")):
            path.unlink()
        daemon.drop_in(GARDEN)
        await daemon.reload()
        assert "not reloaded" not in daemon.text()
        assert daemon.text().count("event=socket_remade") == 2
        async with Wired(daemon.socket) as client:
            error, reply = await client.call(1, "agent.ask", {"input": "note 1;", "agent": "garden"})
            assert (error, reply["status"]) == (None, "done")
        assert await daemon.stop() == 0
        assert not daemon.socket.exists()


async def test_reload_puts_back_what_takes_too_long_and_goes_on_with_it(tmp_path: Path) -> None:
    """Also what still waits in the queue: every request has its one outcome afterwards."""
    async with Daemon(tmp_path) as daemon:
        async with Wired(daemon.socket) as client:
            for number in range(MAX_RUNNING):  # so the last one has to wait
                client.send([2, "agent.ask", [{"input": "never ends", "id": f"n{number}"}]])
            client.send([2, "agent.ask", [{"input": "note 5;", "id": "last"}]])
            await client.running()
            _, rows = await client.call(1, "requests.list", {"state": "received"})
        assert "last" in [row["id"] for row in rows]
        (daemon.folder / "script.toml").write_text(entry("never ends", text="it ended") + SCRIPT)
        await daemon.reload()
        async with Wired(daemon.socket) as client:
            for number in range(MAX_RUNNING):
                error, reply = await client.call(number, "agent.ask", {"input": "never ends", "id": f"n{number}"})
                assert (error, reply["output"]) == (None, "it ended")
            error, reply = await client.call(MAX_RUNNING, "agent.ask", {"input": "note 5;", "id": "last"})
            assert (error, reply["output"]) == (None, "noted 5")
        assert daemon.rows("diary") == [("n5",)]
        assert await daemon.stop() == 0
        assert daemon.states() == ["done"] * (MAX_RUNNING + 1)


async def test_many_clients_ask_through_many_reloads_and_each_is_answered_once(tmp_path: Path) -> None:
    """Connecting never fails; an answer that a reload cut off is there under the request's id."""
    done = asyncio.Event()
    asked: list[int] = []

    async def keep_asking(path: Path, first: int) -> None:
        for number in range(first, 40, 4):
            await ask(path, number)
            asked.append(number)
            if done.is_set():
                return

    async def ask(path: Path, number: int) -> None:
        while True:
            async with AsyncClient(path) as client:  # ConnectionError here would be a refusal, and fails the test
                try:
                    reply = await client.ask(f"note {number};", id=f"k{number}")
                except ConnectionError:
                    continue
                except EdgedCallError as refused:
                    if refused.code == "busy":  # connected before the old daemon began to stop, asked after that
                        continue
                    raise
                assert reply["output"] == f"noted {number}"
                return

    def answered_more_than(seen: int) -> bool:
        return len(asked) > seen or all(task.done() for task in clients)

    async with Daemon(tmp_path) as daemon:
        clients = [asyncio.create_task(keep_asking(daemon.socket, first)) for first in range(4)]
        for _ in range(5):
            seen = len(asked)
            await daemon.reload()
            await until(functools.partial(answered_more_than, seen))
        done.set()
        await asyncio.gather(*clients)
        assert sorted(daemon.rows("diary")) == sorted((f"n{number}",) for number in asked)


async def test_reloads_leave_no_descriptors_or_threads_behind(tmp_path: Path) -> None:
    """The tenth is as the second."""

    def held(what: str) -> int:
        return len(list(Path(f"/proc/{daemon.pid}/{what}").iterdir()))

    async def use() -> None:
        async with Wired(daemon.socket) as client:
            assert (await client.call(1, "agent.ask", {"input": "note 1;"}))[0] is None
        await daemon.reload()

    async with Daemon(tmp_path) as daemon:
        await use()
        await use()
        descriptors, threads = held("fd"), held("task")
        for _ in range(10):
            await use()
        # the kernel's pressure files are opened a moment after READY=1, so two more or less say nothing; a leak has ten
        assert held("fd") < descriptors + 10
        assert held("task") < threads + 10, "asyncio's pool may grow by a few"
        assert "Traceback" not in daemon.text()


async def test_watchdog_is_fed_all_through_a_reload(tmp_path: Path) -> None:
    """Winding down takes longer than the service manager's patience here, and it hears of us all the same."""
    watched = {"WATCHDOG_USEC": str(int(2e6 * PERIOD_S))}
    async with Daemon(tmp_path, script=STORY + SCRIPT, environment=watched) as daemon, Wired(daemon.socket) as client:
        client.send([0, 1, "agent.ask", [{"input": "a long story"}]])
        await client.running()
        await daemon.reload()
        begun = daemon.notices.index("RELOADING=1")
        ended = len(daemon.notices) - daemon.notices[::-1].index("READY=1")
        assert daemon.notices[begun:ended].count("WATCHDOG=1") >= STORY_S / 2 / PERIOD_S / 2


async def test_stop_amid_a_reload_ends_the_process(tmp_path: Path) -> None:
    """Nothing is started any more."""
    async with Daemon(tmp_path, script=STORY + SCRIPT) as daemon:
        async with Wired(daemon.socket) as client:
            client.send([0, 1, "agent.ask", [{"input": "a long story", "id": "s"}]])
            await client.running()
            daemon.hang_up()
            await until(lambda: "making room" in daemon.text())
            assert await daemon.stop() == 0
        assert daemon.notices.count("READY=1") == 1
        assert not daemon.socket.exists()
        assert daemon.states() == ["done"]


async def test_second_hangup_amid_a_reload_is_not_lost(tmp_path: Path) -> None:
    """What was written after the first one was read counts."""
    async with Daemon(tmp_path, script=STORY + SCRIPT) as daemon, Wired(daemon.socket) as client:
        client.send([0, 1, "agent.ask", [{"input": "a long story"}]])
        await client.running()
        daemon.hang_up()
        await until(lambda: "making room" in daemon.text())
        daemon.drop_in(GARDEN)
        await daemon.reload()
        await daemon.noticed("READY=1", 3)
        async with Wired(daemon.socket) as after:
            assert (await after.call(1, "agent.ask", {"input": "note 1;", "agent": "garden"}))[0] is None


async def test_reload_changes_the_mode_of_the_socket(tmp_path: Path) -> None:
    """It is the daemon's own, so `[ipc]` counts, without a moment in which it is not there."""
    async with Daemon(tmp_path) as daemon:
        daemon.drop_in('[ipc]\nmode = "0600"\n')
        await daemon.reload()
        assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o600


async def test_reload_opens_and_closes_http_listeners(tmp_path: Path) -> None:
    """A port that is taken is a wrong configuration; the socket that is in both is never gone."""
    keys = tmp_path / "keys"
    keys.write_text("panel:0123456789abcdef0123456789abcdef\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        listen = f'[http]\nlisten = ["unix:http.sock", "127.0.0.1:{port}"]\napi_keys_file = "{keys}"\n'
        async with Daemon(tmp_path) as daemon:
            path = daemon.socket.with_name("http.sock")
            inode = path.stat().st_ino
            more = daemon.drop_in(listen)
            await daemon.reload()
            await until(lambda: f"not reloaded, the configuration of before stays: 127.0.0.1:{port}" in daemon.text())
            taken.close()
            await daemon.reload()
            await _closed(*await asyncio.open_connection("127.0.0.1", port))
            assert path.stat().st_ino == inode
            more.write_text("[http]\nlisten = []\n")
            await daemon.reload()
            assert not path.exists()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
            assert await daemon.stop() == 0


async def _closed(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


@pytest.mark.broker
async def test_request_over_mqtt_amid_a_reload_is_answered_by_what_follows(tmp_path: Path) -> None:
    """The broker keeps it meanwhile; so does a reply that could not be sent yet."""
    async with (
        Mosquitto(tmp_path) as broker,
        Daemon(tmp_path, broker=broker.port, script=STORY + SCRIPT) as daemon,
        Customer(broker.port, client_id="customer") as customer,
    ):
        await customer.online()
        await customer.subscribe(REPLY)
        await customer.ask("a long story", b"before")
        async with Wired(daemon.socket) as client:
            await client.running()
        daemon.hang_up()
        await until(lambda: "making room" in daemon.text())
        await customer.ask("note 3;", b"amid")
        replies = await customer.answers([b"before", b"amid"])
        assert [json.loads(replies[key][0])["status"] for key in (b"before", b"amid")] == ["done", "done"]
        assert daemon.rows("diary") == [("n3",)]


# -- a configuration that is wrong -------------------------------------------------------------------------------------


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """A daemon that is asked to reload what cannot be right."""
    async with Daemon(tmp_path_factory.mktemp("shared")) as daemon:
        yield daemon
        assert await daemon.stop() == 0
        assert "Traceback" not in daemon.text()


WRONG = {
    "no-toml": ("[node\n", "not valid TOML"),
    "unknown-key": ("[node]\ncolour = 1\n", "node.colour"),
    "statement": (
        '[tools.bad]\ndescription = "x"\ndatabase = "plant"\nsql = "SELECT * FROM nowhere"\n',
        "tools.bad: ",
    ),
    "python-tool": ('[tools.bad]\npython = "nothing:here"\n', "tools.bad"),
    "model": ('[models.other]\nsource = "catalog:nothing"\n', "models.other.source"),
    "engine": ('[models.other]\nsource = "file:/tmp/x.gguf"\nengine = "onnx"\n', "models.other.engine"),
    "secret": ('[mqtt]\nusername = "x"\npassword_file = "/nothing/here"\n', "/nothing/here"),
    "state": ('[node]\nstate_dir = "/tmp/other"\n', "node.state_dir"),
    "runtime": ('[node]\nruntime_dir = "/tmp/other"\n', "node.runtime_dir"),
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", WRONG)
async def test_wrong_configuration_is_refused_and_told_and_changes_nothing(shared: Daemon, case: str) -> None:
    """In the log, as an event, in the line of `systemctl status` until a right one comes; connections stay."""
    text, told = WRONG[case]
    path = shared.drop_in(text)
    events: list[dict[str, Any]] = []
    async with AsyncClient(shared.socket, on_event=events.append) as client:
        await client.call("events.subscribe")
        before = (await client.call("status"))["uptime_s"]
        logged = shared.text().count("not reloaded")
        await shared.reload()
        await until(lambda: events)
        assert (events[0]["event"], told in events[0]["reason"]) == ("reload_failed", True), events
        assert shared.text().count("not reloaded") == logged + 1
        assert told in shared.text()
        await shared.noticed("STATUS=not reloaded: ")
        assert (await client.ask("how full is it?"))["status"] == "done"
        assert (await client.call("status"))["uptime_s"] >= before
    path.unlink()
    shared.notices.clear()
    await shared.reload()

    def told_since() -> list[str]:
        """After the reload: the daemon before it may have had something to say."""
        since = shared.notices[shared.notices.index("READY=1") :]
        return [notice for notice in since if notice.startswith("STATUS=")]

    await until(told_since)
    assert not [notice for notice in told_since() if notice.startswith("STATUS=not reloaded")]


async def test_write_that_is_asked_for_around_a_reload_happens_once(tmp_path: Path) -> None:
    """The request that was put back resumes from its journal."""
    script = entry("twice", note("one"), note("two"), text="word " * 200, token_s=0.05)
    async with Daemon(tmp_path, script=script) as daemon:
        async with Wired(daemon.socket) as client:
            client.send([2, "agent.ask", [{"input": "twice", "id": "t"}]])
            await until(lambda: len(daemon.rows("diary")) == 2)
        (daemon.folder / "script.toml").write_text(entry("twice", note("one"), note("two"), text="both"))
        await daemon.reload()
        async with Wired(daemon.socket) as client:
            error, reply = await client.call(1, "agent.ask", {"input": "twice", "id": "t"})
            assert (error, reply["output"]) == (None, "both")
        assert daemon.rows("diary") == [("one",), ("two",)]
