"""Requests over MQTT 5, QoS 1: how many a second are stored and answered, how long they take, and what overload does.

The daemon is a real child process with a real store on this disk and a scripted engine (an answer costs it nothing),
the broker a real mosquitto. Daemon, broker and load share the machine. Every reply is checked against its request.

* throughput: as many as go, a fixed number on their way at once.
* paced: 200 a second whatever becomes of them; milliseconds from the moment a request was due until its reply is here.
* overload: a burst far beyond [queue] max_waiting: what is taken is answered, the rest is refused at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from benchmarks import board, ipc, subject
from benchmarks.figures import nearest_rank
from benchmarks.findings import finding
from benchmarks.mqtt_line import Line
from benchmarks.report import Result, Row, say

REQUESTS = 5000  # of the throughput; ten seconds or so
IN_FLIGHT = 64
PACE = 200  # requests a second
PACED_S = 20
BURST = 2000
WAITING = 256  # [queue] max_waiting's default
WORK_S = 0.02  # of an answer in the overload: the queue has to fill
TO_REACH, P99_MS = 500, 100
SYNCS, WRITTEN_KIB = 0.2, 16
SETTLE_S = 0.2
REFUSED_MS = 1000  # of a burst of 2,000, which takes the broker and the daemon a second or two to take in
ALONE = 20
IN_TURN = 600  # requests: some checkpoints are among them
WARM_UP = 200  # requests; then everything is imported, and the store has its pages
LIMIT_S = 120.0
QUEUE_ALL = "max_queued_messages 0"  # mosquitto drops what is beyond 1,000 by default, and the burst is to reach edged
CONFIG = """
[node]
id = "bench"
state_dir = "{folder}/state"
runtime_dir = "{folder}/run"
[mqtt]
url = "mqtt://127.0.0.1:{port}"
[models.small]
source = "scripted:{folder}/script.toml"
[agents.house]
model = "small"
"""
ASK, REPLY = "edged/bench/agents/house/request", "bench/reply"


class LostError(Exception):
    """A request has no reply, or a wrong one."""


@dataclass
class Load:
    """Requests by number: when each was due, and what became of it.

    Attributes:
        answer: what the model says; None: what it is asked.
        took_ms, inside_ms: until the reply was here, and from the daemon's acceptance on as the reply tells it.
        refused: those that were told to come again.
    """

    answer: str | None = None
    due: dict[int, float] = field(default_factory=dict)
    took_ms: dict[int, float] = field(default_factory=dict)
    inside_ms: dict[int, float] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)
    copies: int = 0
    waiting: asyncio.Event = field(default_factory=asyncio.Event)

    def received(self, correlation: bytes, payload: bytes) -> None:
        """A reply."""
        number, now = int(correlation), time.perf_counter()
        if number in self.took_ms:
            self.copies += 1
            return
        reply = json.loads(payload)
        if reply["status"] == "refused" and reply["error"]["code"] == "busy":
            self.refused.add(number)
        elif reply["status"] != "done" or reply["output"] != (self.answer or f"request {number}"):
            raise LostError(f"request {number} was answered with {payload[:300]!r}")
        self.took_ms[number] = (now - self.due[number]) * 1000
        self.inside_ms[number] = reply["timing"]["total_ms"]
        self.waiting.set()

    def times(self, *, refused: bool) -> list[float]:
        """Milliseconds of those that were refused, or answered."""
        return [took for number, took in self.took_ms.items() if (number in self.refused) is refused]


def run(*, requests: int = REQUESTS, only: str | None = None) -> Result:
    """Rows: what, edged, unit, to reach, reached, n, note.

    Args:
        requests: of the throughput.
        only: one section; all of them without it.
    """
    rows: list[Row] = []
    failed: list[str] = []
    for name, section in SECTIONS.items():
        if only in (None, name):
            say(f"mqtt: {name}")
            try:
                rows += asyncio.run(section(requests))
            except (LostError, TimeoutError, subject.SubjectError, ConnectionError) as error:
                failed.append(f"{name}: {str(error) or type(error).__name__}")
    return Result(rows, {"sections": only or "all"}, failed)


async def _throughput(requests: int) -> list[Row]:
    async with _running() as (folder, line, load):
        await _ask_all(line, load, WARM_UP)
        before, began = _written(folder), time.perf_counter()
        await _ask_all(line, load, requests, first=WARM_UP + 1)
        seconds = time.perf_counter() - began
        return [
            finding(
                "throughput: stored, answered and delivered",
                requests / seconds,
                "a second",
                at_least=TO_REACH,
                n=requests,
                note=f"{IN_FLIGHT} on their way at once",
            ),
            *_flash("throughput", before, _written(folder), requests),
            finding("throughput: copies of replies", load.copies, n=requests),
        ]


async def _paced(_: int) -> list[Row]:
    requests = PACE * PACED_S
    async with _running() as (folder, line, load):
        await _ask_all(line, load, WARM_UP)
        alone = [await _flash_of_one(folder, line, load, WARM_UP + 1 + number) for number in range(ALONE)]
        load.took_ms.clear()
        before = _written(folder)
        began = time.perf_counter()
        for number in range(1000, 1000 + requests):
            due = began + (number - 1000) / PACE
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            load.due[number] = due
            await _publish(line, number)
        await _answered(load, requests)
        times = load.times(refused=False)
        flash = _flash("paced", before, _written(folder), requests, syncs=SYNCS)
        before = _written(folder)
        for number in range(IN_TURN):
            await _ask_all(line, load, 1, first=100_000 + number)
        in_turn = (_written(folder).bytes - before.bytes) / IN_TURN / 1024
    return [
        finding("paced: 200 a second, median", nearest_rank(times, 0.5), "ms", n=requests),
        finding("paced: 200 a second, p99", nearest_rank(times, 0.99), "ms", at_most=P99_MS, n=requests),
        *flash,
        finding("alone: fsyncs of a request, the most", max(one.syncs for one in alone), at_most=2, n=ALONE),
        finding("alone: written into the log for a request", mean(one.bytes for one in alone) / 1024, "KiB", n=ALONE),
        finding(
            "alone: written for a request, checkpoints too",
            in_turn,
            "KiB",
            at_most=WRITTEN_KIB,
            n=IN_TURN,
            note="one after the other",
        ),
    ]


async def _overload(_: int) -> list[Row]:
    async with _running(token_s=WORK_S) as (_, line, load):
        await _ask_all(line, load, 16)
        load.took_ms.clear()
        began = time.perf_counter()
        for number in range(1000, 1000 + BURST):
            load.due[number] = time.perf_counter()
            await _publish(line, number)
        await _answered(load, BURST)
        seconds = time.perf_counter() - began
    answered, refused = load.times(refused=False), load.times(refused=True)
    if not refused:
        raise LostError("nothing was refused: the burst was no overload")
    # What was taken waits for at most a full queue before it, at the pace that the same run had.
    longest = (WAITING + 16) * seconds / len(answered) * 1000
    inside = nearest_rank([load.inside_ms[number] for number in load.took_ms if number not in load.refused], 0.99)
    return [
        finding("overload: answered or refused of a burst", len(answered) + len(refused), at_least=BURST, n=BURST),
        finding("overload: answered", len(answered), n=BURST),
        finding(
            "overload: refused with busy, p99", nearest_rank(refused, 0.99), "ms", at_most=REFUSED_MS, n=len(refused)
        ),
        finding("overload: answered, p99 with its time at the broker", nearest_rank(answered, 0.99), "ms"),
        finding(
            "overload: accepted work, p99 from its acceptance",
            inside,
            "ms",
            at_most=round(1.25 * longest),
            n=len(answered),
            note=f"a queue of {WAITING} takes {longest:.0f} ms at {len(answered) / seconds:.0f} a second",
        ),
    ]


# -- what they share ---------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _running(token_s: float = 0.0) -> AsyncIterator[tuple[Path, Line, Load]]:
    """A broker, a daemon and a client that listens. The model says what it is asked, or a word that takes token_s."""
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as name:
        folder, port = Path(name), ipc.free_port()
        slow = f'[[replies]]\nmatch = ""\ntext = "done"\ntoken_s = {token_s}\n'
        (folder / "script.toml").write_text(slow if token_s else "")
        (folder / "edged.toml").write_text(CONFIG.format(folder=folder, port=port))
        load = Load("done" if token_s else None)
        with ipc.mosquitto(folder, port, QUEUE_ALL), ipc.daemon(folder):
            line = await Line.open(port, "bench", load.received)
            await line.subscribe(REPLY)
            await _listening(line, load)
            yield folder, line, load
            line.close()


@dataclass(frozen=True)
class Written:
    """What the daemon counts of its own store."""

    syncs: float
    bytes: float


def _written(folder: Path) -> Written:
    text = board.http(folder).get("/metrics")[1].decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return Written(float(values["edged_store_syncs_total"]), float(values["edged_store_written_bytes_total"]))


def _flash(section: str, before: Written, after: Written, requests: int, syncs: float | None = None) -> list[Row]:
    """What a request cost the medium. syncs: at most so many."""
    kib = (after.bytes - before.bytes) / requests / 1024
    return [
        finding(f"{section}: fsyncs of a request", (after.syncs - before.syncs) / requests, at_most=syncs, n=requests),
        finding(f"{section}: written for a request", kib, "KiB", at_most=WRITTEN_KIB, n=requests),
    ]


async def _flash_of_one(folder: Path, line: Line, load: Load, number: int) -> Written:
    """Of one request with nothing beside it."""
    before = _written(folder)
    await _ask_all(line, load, 1, first=number)
    await asyncio.sleep(SETTLE_S)  # the delivery is noted down behind the reply
    after = _written(folder)
    return Written(after.syncs - before.syncs, after.bytes - before.bytes)


async def _listening(line: Line, load: Load) -> None:
    """Wait until the daemon has subscribed: the first answer shows it."""
    load.due[0] = time.perf_counter()
    while 0 not in load.took_ms:
        await _publish(line, 0)
        with contextlib.suppress(TimeoutError):
            await _answered(load, 1, within_s=0.2)
    load.copies = 0


async def _publish(line: Line, number: int) -> None:
    await line.publish(ASK, f"request {number}".encode(), response=REPLY, correlation=str(number).encode())


async def _ask_all(line: Line, load: Load, count: int, *, first: int = 1) -> None:
    """So many requests, IN_FLIGHT of them at a time."""
    load.took_ms.clear()
    for sent, number in enumerate(range(first, first + count)):
        await _answered(load, sent - IN_FLIGHT + 1)
        load.due[number] = time.perf_counter()
        await _publish(line, number)
    await _answered(load, count)


async def _answered(load: Load, count: int, within_s: float = LIMIT_S) -> None:
    """Wait until so many have their reply."""
    async with asyncio.timeout(within_s):
        while len(load.took_ms) < count:
            load.waiting.clear()
            await load.waiting.wait()


SECTIONS: dict[str, Callable[[int], Awaitable[list[Row]]]] = {
    "throughput": _throughput,
    "paced": _paced,
    "overload": _overload,
}
