"""A store that is damaged while the board is off: the daemon starts, tells, and works."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import apsw
import pytest

from tests.support.broker import Mosquitto, Peer
from tests.support.cli import edged
from tests.support.daemon import BASE, Daemon, Wired

pytestmark = pytest.mark.broker


async def test_row_that_holds_nonsense_is_met_and_put_right(tmp_path: Path) -> None:
    """SQLite finds nothing wrong with it: pages have no checksums. One more start, and all others are served."""
    path = tmp_path / "state" / "edged.db"
    daemon = Daemon(tmp_path)
    try:
        await daemon.start("accept.committed")
        async with Wired(daemon.socket) as client:
            client.send([0, 1, "agent.ask", [{"input": "note 1;", "id": "q1"}]])
            await client.end()
        assert await daemon.ended() == -9
        with contextlib.closing(apsw.Connection(str(path))) as store:
            store.execute("UPDATE requests SET body = x'7b22ff', state = 'received'").fetchall()
        await daemon.start(ready=False)
        await daemon.ended()
        await daemon.start()
        async with Wired(daemon.socket) as client:
            assert (await client.call(1, "request.get", {"name": "q1"}))[1]["status"] == "failed"
            assert (await client.call(2, "agent.ask", {"input": "note 2;", "id": "q2"}))[1]["status"] == "done"
            status = (await client.call(3, "status"))[1]
            error, rows = await client.call(4, "requests.list", {"limit": 10})
            assert error is None
            assert {row["id"]: (row["state"], row["input"]) for row in rows}["q1"] == ("failed", "")
            error, _ = await client.call(5, "request.requeue", {"name": "q1"})
            assert (error["code"], "was damaged" in error["message"]) == ("bad_request", True)
        listed = await edged("requests", "ls", config=daemon.config)
        assert (listed.code, rows[0]["rid"] in listed.out) == (0, True)
        assert Path(status["store"]["damaged"]).exists()
        assert await daemon.stop() == 0
        await daemon.start()
        assert await daemon.stop() == 0
    finally:
        await daemon.__aexit__()


async def test_daemon_starts_with_a_damaged_store_and_sounds_the_alarm(tmp_path: Path) -> None:
    """By status, by an event over MQTT, in the log; what could be read is there, and work goes on."""
    path = tmp_path / "state" / "edged.db"
    async with Mosquitto(tmp_path) as broker, Peer(broker.port) as peer, Daemon(tmp_path, broker=broker.port) as daemon:
        async with Wired(daemon.socket) as client:
            for number in range(30):
                await client.call(number, "agent.ask", {"input": f"note {number};", "id": f"q{number}"})
        await daemon.stop()
        content = bytearray(path.read_bytes())
        middle = len(content) // 2 // 512 * 512
        content[middle : middle + 512] = random.Random(1).randbytes(512)
        path.write_bytes(content)
        path.with_name("edged.db.suspect").touch()  # whoever met the damage left it
        await peer.subscribe(f"{BASE}/event")
        await daemon.start()
        async with Wired(daemon.socket) as client:
            status = (await client.call(1, "status"))[1]
            aside = Path(status["store"]["damaged"])
            assert aside.exists()
            assert aside.name.startswith("edged.db.damaged-")
            known = (await client.call(2, "requests.list", {"limit": 100}))[1]
            assert len(known) >= 25
            reply = (await client.call(3, "agent.ask", {"input": "note 31;", "id": "q31"}))[1]
            assert reply["status"] == "done"
            again = (await client.call(4, "agent.ask", {"input": "note 5;", "id": "q5"}))[1]
            assert again["status"] in ("done", "failed")
        event = await peer.next(lambda m: b"store_damaged" in m.payload)
        assert str(aside) in event.payload.decode()
        assert "the store was damaged" in daemon.text()
        assert len([text for (text,) in daemon.rows("diary") if text == "n5"]) == 1
        await daemon.stop()
        assert aside.exists()
