"""No link: requests that need the cloud wait for it on the disk, through kills and restarts, and go out when it is
back; each is answered or expires by its own deadline, and what is to be done is done once."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from edged.requests.worker import MAX_RUNNING
from tests.support import cloud as clouds
from tests.support.broker import Mosquitto, until
from tests.support.cloud import ScriptedCloud
from tests.support.cloud_daemon import SCRIPT, ask, cloudy, upstream
from tests.support.daemon import REPLY, Customer, Daemon, Wired, entry
from tests.support.timing import assert_adds_up


@pytest.fixture
async def cloud() -> AsyncIterator[ScriptedCloud]:
    """A cloud that answers "ok"; stopped and started by the tests."""
    async with ScriptedCloud() as scripted:
        yield scripted


async def parked(daemon: Daemon, number: int = 1) -> None:
    """Wait until so many requests wait for a link."""
    await until(lambda: daemon.states().count("waiting_link") == number)


async def submit(client: Wired, msgid: int, text: str, **fields: Any) -> None:
    """A request whose answer is read later."""
    client.send([0, msgid, "agent.ask", [{"input": text, **fields}]])


async def outcome(client: Wired, msgid: int) -> dict[str, Any]:
    """Its reply."""
    error, reply = await client.answer(msgid)
    assert error is None, error
    assert isinstance(reply, dict)
    return reply


async def test_request_without_a_link_waits_and_says_so(tmp_path: Path, cloud: ScriptedCloud) -> None:
    """It can be looked at, has no estimate, holds up nobody else, and is answered when the link is there."""
    await cloud.stop()
    async with cloudy(tmp_path, upstream("far", cloud)) as daemon, Wired(daemon.socket) as client:
        await submit(client, 1, "too hard", id="a")
        await parked(daemon)
        _, shown = await client.call(2, "request.get", {"name": "a"})
        assert (shown["status"], shown["position"], shown["eta_s"]) == ("waiting_link", 0, None)
        assert (await ask(daemon, "open the north valve"))["status"] == "done"
        await cloud.start()
        reply = await outcome(client, 1)
        assert (reply["output"], reply["route"]["reason"]) == ("ok", "escalated")
        timing, usage = reply["timing"], reply["usage"]
        assert_adds_up(timing)
        assert timing["queue_ms"] > max(timing["prefill_ms"], timing["other_ms"])  # what it waited for was the link
        assert timing["first_token_ms"] < timing["queue_ms"]  # the board's, before that
        assert usage["prompt_tokens"] > clouds.USAGE["prompt_tokens"]  # ... and its tokens


async def test_request_that_waits_for_a_link_survives_a_kill_and_is_not_tried_here_again(
    tmp_path: Path, cloud: ScriptedCloud
) -> None:
    """What the board found out is kept; the cloud's calls are made once."""
    await cloud.stop()
    cloud.will(clouds.calls(("note", {"text": "by the cloud"})))
    daemon = cloudy(tmp_path, upstream("far", cloud))
    async with daemon:
        async with Wired(daemon.socket) as client:
            await submit(client, 1, "note and escalate", id="a")
            await parked(daemon)
        for _ in range(2):
            await daemon.kill()
            await daemon.start()
            await parked(daemon)  # at once, or after a try of the link, of which nothing is known at the start
        await cloud.start()
        reply = await ask(daemon, "note and escalate", id="a")
        assert reply["output"] == "ok"
        assert [c["name"] for c in reply["tool_calls"]] == ["note", "note"]
        assert daemon.rows("diary") == [("from the board",), ("by the cloud",)]
        # the journal's records are the first thing the cloud is told: the board did not decide again
        assert len(cloud.chats) == 2


@pytest.mark.parametrize("point", ["link.parked", "agent.decided", "journal.intent", "tool.effect", "journal.result"])
async def test_cloud_request_has_one_effect_wherever_the_daemon_is_killed(
    tmp_path: Path, cloud: ScriptedCloud, point: str
) -> None:
    """The cloud's call is journalled like the board's: after the crash it is finished, not repeated."""
    write = clouds.calls(("set_valve", {"valve": "south", "position": "open"}))
    cloud.otherwise = clouds.by(lambda body: clouds.text("done") if body["messages"][-1]["role"] == "tool" else write)
    if point == "link.parked":
        await cloud.stop()
    daemon = cloudy(tmp_path, upstream("far", cloud))
    try:
        await daemon.start(point)
        async with Wired(daemon.socket) as client:
            await submit(client, 1, "too hard", id="a")
            await client.end()
        assert await daemon.ended() == -9
        await daemon.start()
        if point == "link.parked":
            await cloud.start()
        reply = await ask(daemon, "too hard", id="a")
        assert (reply["status"], reply["output"]) == ("done", "done")
        assert daemon.rows("valve_commands") == [("south", "open")]
    finally:
        await daemon.__aexit__()


async def test_request_that_waits_for_a_link_expires_by_its_own_deadline(tmp_path: Path, cloud: ScriptedCloud) -> None:
    """Not a moment of it is lost by waiting elsewhere, or by a restart."""
    await cloud.stop()
    async with cloudy(tmp_path, upstream("far", cloud)) as daemon:
        async with Wired(daemon.socket) as client:
            await submit(client, 1, "too hard", id="soon", deadline_s=1.0)
            await submit(client, 2, "too hard", id="later", deadline_s=600)
            await parked(daemon, 2)
            reply = await outcome(client, 1)
        assert (reply["status"], reply["error"]["code"]) == ("expired", "expired")
        assert "waiting for a link" in reply["error"]["message"]
        assert reply["timing"]["total_ms"] < 3000
        assert_adds_up(reply["timing"])
        assert daemon.states() == ["expired", "waiting_link"]


async def test_request_that_waits_for_a_link_can_be_cancelled(tmp_path: Path, cloud: ScriptedCloud) -> None:
    """And the link that comes back finds nothing to do."""
    await cloud.stop()
    async with cloudy(tmp_path, upstream("far", cloud)) as daemon, Wired(daemon.socket) as client:
        await submit(client, 1, "too hard", id="a")
        await parked(daemon)
        _, shown = await client.call(2, "request.cancel", {"name": "a"})
        assert shown["status"] == "cancelled"
        assert (await outcome(client, 1))["status"] == "cancelled"
        await cloud.start()
        await cloud.until(lambda: cloud.probes > 0)
        assert cloud.chats == []


@pytest.mark.parametrize(
    ("when_offline", "status", "output", "degraded", "code"),
    [("local", "done", "said on the board", True, None), ("fail", "refused", None, False, "no_link")],
)
async def test_agent_that_does_not_wait_answers_here_or_says_so_at_once(
    tmp_path: Path,
    cloud: ScriptedCloud,
    when_offline: str,
    status: str,
    output: str | None,
    degraded: bool,
    code: str | None,
) -> None:
    """`local` is marked as the weaker way; `fail` can be asked again under the same id."""
    await cloud.stop()
    async with cloudy(tmp_path, upstream("far", cloud), when_offline=when_offline) as daemon:
        reply = await ask(daemon, "too hard", id="a")
        assert (reply["status"], reply["output"], reply["degraded"]) == (status, output, degraded)
        assert (reply["error"] or {}).get("code") == code
        assert reply["route"]["reason"] == "offline"
        if code:
            assert reply["error"]["retryable"]
            await cloud.start()
            await until(lambda: "upstream far answers" in daemon.text())
            assert (await ask(daemon, "too hard", id="a"))["output"] == "ok"


async def test_link_that_returns_takes_what_waited_by_deadline_and_not_all_at_once(
    tmp_path: Path, cloud: ScriptedCloud
) -> None:
    """One first, then more as it proves to bear them; the most urgent first."""
    await cloud.stop()
    first = asyncio.Event()
    cloud.will(clouds.held(first))
    order = [7, 3, 9, 1, 5, 8, 2, 6, 4, 10]
    async with cloudy(tmp_path, upstream("far", cloud)) as daemon, Wired(daemon.socket) as client:
        for rank in order:
            await submit(client, rank, f"too hard {rank}", deadline_s=600 + rank)
        await parked(daemon, len(order))
        await cloud.start()
        await cloud.asked()
        await parked(daemon, len(order) - 1)
        _, status = await client.call(99, "status")
        assert (status["link"]["far"]["window"], status["link"]["far"]["in_flight"]) == (1, 1)
        first.set()
        for rank in order:
            assert (await outcome(client, rank))["output"] == "ok"
    seen = [chat.body["messages"][-1]["content"] for chat in cloud.chats]
    assert seen[0] == "too hard 1"
    assert sorted(seen[1:3]) == ["too hard 2", "too hard 3"]
    assert len(seen) == len(set(seen)) == len(order)


async def test_requests_that_expire_before_their_turn_leave_the_upstreams_room_to_others(
    tmp_path: Path, cloud: ScriptedCloud
) -> None:
    """The link is back, but the board has no slot for what it queues; later there is one for what is left."""
    await cloud.stop()
    script = SCRIPT + entry("never ends", text="word " * 10_000, token_s=0.05)
    async with cloudy(tmp_path, upstream("far", cloud), script=script) as daemon, Wired(daemon.socket) as client:
        for number in range(3):
            await submit(client, number, f"too hard {number}", deadline_s=8)
        await submit(client, 3, "too hard 3")
        await parked(daemon, 4)
        async with Wired(daemon.socket) as others:
            for number in range(MAX_RUNNING):
                await submit(others, number, "never ends", id=f"n{number}")
            await until(lambda: daemon.states().count("running") == MAX_RUNNING)
            await cloud.start()
            await until(lambda: "received" in daemon.states())  # there is room for one
            for number in range(3):
                assert (await outcome(client, number))["status"] == "expired"
            for number in range(MAX_RUNNING):
                await others.call(100 + number, "request.cancel", {"name": f"n{number}"})
        assert (await outcome(client, 3))["output"] == "ok"


async def test_agent_that_was_taken_off_the_cloud_lets_its_waiting_requests_go(
    tmp_path: Path, cloud: ScriptedCloud
) -> None:
    """What can never get a link any more is decided again, and ends."""
    await cloud.stop()
    daemon = cloudy(tmp_path, upstream("far", cloud))
    async with daemon:
        async with Wired(daemon.socket) as client:
            await submit(client, 1, "too hard", id="a")
            await parked(daemon)
        await daemon.stop()
        (tmp_path / "conf.d" / "cloud.toml").unlink()
        await daemon.start()
        reply = await ask(daemon, "too hard", id="a")
        assert (reply["status"], reply["error"]["code"]) == ("failed", "tool_failed")


MIXED = 50


def mixed(number: int) -> tuple[str, str]:
    """(what is asked, what the answer is): every second needs the cloud; each leaves one row in the diary."""
    return (f"too hard {number};", f"cloud noted {number}") if number % 2 else (f"note {number};", f"noted {number}")


def cloud_notes(body: dict[str, Any]) -> Any:
    """The cloud's model: a note, then an answer."""
    number = next(m["content"] for m in body["messages"] if m["role"] == "user").split()[-1].rstrip(";")
    if body["messages"][-1]["role"] == "tool":
        return clouds.text(f"cloud noted {number}")
    return clouds.calls(("note", {"text": f"n{number}"}))


def idle(daemon: Daemon) -> bool:
    """Whether it has all requests and can do nothing more until a link comes."""
    states = daemon.states()
    return len(states) == MIXED and set(states) <= {"done", "waiting_link"}


OUTAGES = list(itertools.permutations(("stop cloud", "stop broker", "start cloud", "start broker")))
POSSIBLE = [
    steps
    for steps in OUTAGES
    if steps.index("stop cloud") < steps.index("start cloud")
    and steps.index("stop broker") < steps.index("start broker")
]


@pytest.mark.broker
@pytest.mark.parametrize("steps", POSSIBLE, ids=", ".join)
async def test_outages_in_every_order_amid_mixed_requests_lose_nothing_and_do_nothing_twice(
    tmp_path: Path, cloud: ScriptedCloud, steps: tuple[str, ...]
) -> None:
    """Fifty requests, half of them for the cloud, while cloud and broker go and come: one reply each, one row each."""
    cloud.otherwise = clouds.by(cloud_notes)
    names = [b"q%d" % number for number in range(MIXED)]
    async with Mosquitto(tmp_path, persistence=True) as broker, Customer(broker.port, client_id="c") as customer:
        await customer.subscribe(REPLY)
        async with cloudy(tmp_path, upstream("far", cloud), broker=broker.port) as daemon:
            actions = {
                "stop cloud": cloud.stop,
                "start cloud": cloud.start,
                "stop broker": broker.stop,
                "start broker": broker.start,
            }
            await customer.online()
            for number in range(MIXED):
                await customer.ask(mixed(number)[0], names[number])
            await until(lambda: len(daemon.rows("diary")) >= 3)
            for step in steps:
                done = len(daemon.rows("diary"))
                await actions[step]()
                if step == "stop cloud":
                    await until(lambda: "waiting_link" in daemon.states() or len(daemon.rows("diary")) > MIXED - 3)
                elif step.startswith("start"):
                    await until(lambda d=done: len(daemon.rows("diary")) > d or idle(daemon))  # type: ignore[misc]
            copies = await customer.answers(names)
            for number, name in enumerate(names):
                assert len(set(copies[name])) == 1
                reply = json.loads(copies[name][0])
                assert (reply["status"], reply["output"]) == ("done", mixed(number)[1])
            assert sorted(daemon.rows("diary")) == sorted((f"n{number}",) for number in range(MIXED))
            assert await daemon.stop() == 0
            assert daemon.states() == ["done"] * MIXED
            assert "Traceback" not in daemon.text()


@pytest.mark.broker
async def test_outage_longer_than_deadlines_expires_what_needs_the_cloud_and_nothing_else(
    tmp_path: Path, cloud: ScriptedCloud
) -> None:
    """By each request's own deadline, told over the broker; what the board can do is done."""
    await cloud.stop()
    async with Mosquitto(tmp_path) as broker, Customer(broker.port, client_id="c") as customer:
        await customer.subscribe(REPLY)
        async with cloudy(tmp_path, upstream("far", cloud), broker=broker.port) as daemon:
            await customer.online()
            for number in range(10):
                text = json.dumps({"input": mixed(number)[0], "deadline_s": 1.5})
                await customer.ask(text, b"q%d" % number)
            copies = await customer.answers(b"q%d" % number for number in range(10))
            statuses = [json.loads(copies[b"q%d" % number][0])["status"] for number in range(10)]
            assert statuses == ["done", "expired"] * 5
            assert sorted(daemon.rows("diary")) == sorted((f"n{number}",) for number in range(0, 10, 2))


async def test_stop_while_requests_are_being_parked_is_clean(tmp_path: Path, cloud: ScriptedCloud) -> None:
    """Whatever moment of it the stop meets: the daemon ends well, and everything waits on."""
    await cloud.stop()
    daemon = cloudy(tmp_path, upstream("far", cloud))
    async with daemon:
        async with Wired(daemon.socket) as client:
            for number in range(40):
                await submit(client, number, "too hard", id=f"q{number}")
            await until(lambda: "waiting_link" in daemon.states())
            assert await daemon.stop() == 0
        await daemon.start()
        await parked(daemon, len(daemon.states()))
        assert "Traceback" not in daemon.text()
