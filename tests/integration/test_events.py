"""Subscribers that edged does not know, in the real daemon: one file and one line are all that it takes to hear of what
happens, and whatever they do harms nobody else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.broker import until
from tests.support.daemon import ROOT, Daemon, Wired

MEMBERS = str(ROOT / "tests" / "support" / "odd_subscribers.py")


async def test_subscriber_from_outside_hears_of_loads_and_of_requests_that_end(tmp_path: Path) -> None:
    """Others raise and hang beside it: requests are answered, and clients, metrics and the audit log hear as ever."""
    path = tmp_path / "heard"

    def heard() -> list[dict[str, Any]]:
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    environment = {"EDGED_TEST_MEMBERS": MEMBERS, "EDGED_TEST_HEARD": str(path)}
    async with Daemon(tmp_path, environment=environment) as daemon, Wired(daemon.socket) as client:
        await client.call(1, "events.subscribe")
        for number in range(3):
            error, reply = await client.call(10 + number, "agent.ask", {"input": f"note {number};", "id": f"r{number}"})
            assert (error, reply["status"]) == (None, "done")
        assert (await client.call(3, "models.unload", {"name": "small"}))[1]["unloaded"] is True
        await until(lambda: [event for event in heard() if event["name"] == "model_unloaded"])
        names = [event["name"] for event in heard()]
        assert names.index("model_loaded") < names.index("request_ended") < names.index("model_unloaded")
        ended = [event["data"] for event in heard() if event["name"] == "request_ended"]
        assert [(each["agent"], each["status"], each["code"], each["where"]) for each in ended] == [
            ("house", "done", None, "local")
        ] * 3
        assert all(0 < each["total_ms"] < 60_000 for each in ended)
        assert {event["node"] for event in heard()} == {"n1"}
        # clients asked for changes and alarms, not for every request
        told = [frame[2][0]["event"] for frame in client.notifications if frame[1] == "event"]
        assert "model_loaded" in told
        assert "request_ended" not in told
        assert await daemon.stop() == 0
        text = daemon.text()
        assert "event=subscriber_failed subscriber=raising" in text
        assert "nobody wants to hear of request_ended" in text
