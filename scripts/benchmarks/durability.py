"""What is done to the daemon while it works, how often, and what was lost: the table of the promise.

A real daemon on a real mosquitto and this disk; a load that asks over MQTT, the Unix socket and HTTP all the time, for
SQL, MQTT and Python tools, and keeps its own account (tests/support/fault_load.py). Between two happenings the daemon
works for a random moment. What is counted, and has to be zero: requests without an outcome, replies whose copies
differ, effects that happened twice or not at all, requests that ended otherwise than they had to, acknowledgements out
of order, rows that are stuck in the store. Repeats are those of tools with `on_uncertain = "retry"`: a lamp told twice,
a Python tool called again under its key.

* kills: SIGKILL with a scripted model, 1,000 times, two daemons side by side.
* points: SIGKILL at each named point of edged/host/fault_points.py, 20 times, under the same load.
* model: SIGKILL with a real model, 50 times.
* faults: everything else that happens to a board, 20 times each.
* cuts: power cuts, 2,000 times, at any write of either database (tests/support/powercut.py: writes that were
  not synced are kept, dropped or torn).
* soak: an hour of mixed load and mishaps in one process (`--cycles` is then minutes): what it holds at the end is
  compared with what it held after the first fifth.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import astuple, dataclass
from pathlib import Path

from benchmarks import board
from benchmarks.report import Result, Row, say
from tests.support.fault_verdict import Verdict
from tests.support.faults import AT_POINTS, FAULTS, NEEDS, ON_A_SMALL_DISK, Rig, may_mount
from tests.support.powercut import power_cuts
from tests.support.soak import live

KILLS, KILLS_OF_MODEL, TIMES, CUTS, SOAK_MINUTES = 1000, 50, 20, 2000, 60
SIDE_BY_SIDE = 2  # the start of a daemon keeps one core busy
MODEL_MOMENT_S = 4.0  # between two kills: a real model loads and answers in seconds
KILL = "SIGKILL"
SAY_EVERY = 50


@dataclass(frozen=True)
class Wanted:
    """cycles: how often each thing is done; None: as the section has it."""

    folder: Path
    cycles: int | None


def run(*, only: str | None = None, cycles: int | None = None) -> Result:
    """Rows: done, times, then the fields of tests.support.faults.Verdict, kept.

    Args:
        only: one section; all of them without it.
        cycles: how often each thing is done, instead of 1,000, 50 and 20.
    """
    rows: list[Row] = []
    failed: list[str] = []
    began = time.monotonic()
    for name, section in SECTIONS.items():
        if only not in (None, name):
            continue
        with tempfile.TemporaryDirectory(prefix="edged-bench-") as folder:
            try:
                rows += asyncio.run(section(Wanted(Path(folder), cycles)))
            except (AssertionError, OSError, TimeoutError) as error:
                failed.append(f"{name}: {str(error).strip()[-400:] or type(error).__name__}")
    failed += [f"{row['done']}: a promise was broken" for row in rows if row["kept"] == "NO"]
    return Result(rows, {"sections": only or "all", "seconds": round(time.monotonic() - began)}, failed)


async def _kills(wanted: Wanted) -> list[Row]:
    times = wanted.cycles or KILLS
    shares = [times // SIDE_BY_SIDE + (number < times % SIDE_BY_SIDE) for number in range(SIDE_BY_SIDE)]
    verdicts = await asyncio.gather(
        *(_one(wanted.folder / str(number), KILL, share, seed=number) for number, share in enumerate(shares) if share)
    )
    return [_row("SIGKILL, scripted model", times, _sum(verdicts))]


async def _model(wanted: Wanted) -> list[Row]:
    path = board.model()
    times = wanted.cycles or KILLS_OF_MODEL
    verdict = await _one(wanted.folder / "model", KILL, times, seed=3, model=path)
    return [_row(f"SIGKILL, {path.stem}", times, verdict)]


async def _faults(wanted: Wanted) -> list[Row]:
    rows = []
    for number, name in enumerate(FAULTS):
        if name == KILL:
            continue
        if name in ON_A_SMALL_DISK and not may_mount():
            rows.append(_not_run(name, "only root can mount a small file system"))
            continue
        times = wanted.cycles or TIMES
        rows.append(_row(name, times, await _one(wanted.folder / str(number), name, times, seed=number)))
    return rows


async def _points(wanted: Wanted) -> list[Row]:
    times = wanted.cycles or TIMES
    return [
        _row(name, times, await _one(wanted.folder / str(number), name, times, seed=number))
        for number, name in enumerate(AT_POINTS)
    ]


async def _cuts(wanted: Wanted) -> list[Row]:
    times = wanted.cycles or CUTS
    say(f"durability: power cuts, {times}")
    counts = await asyncio.to_thread(power_cuts, times, 4)
    found = {"lost": counts.lost, "duplicated": counts.wrong, "missing": counts.unjournalled, "failed": counts.corrupt}
    row = {"done": "power cut", "times": times, **dict.fromkeys(Verdict.__dataclass_fields__, ""), **found}
    row["note"] = "duplicated: effects not exactly once; missing: effects without their journal; failed: damaged files"
    return [{**row, "kept": "yes" if counts.kept else "NO"}]


async def _soak(wanted: Wanted) -> list[Row]:
    minutes = wanted.cycles or SOAK_MINUTES
    (folder := wanted.folder / "soak").mkdir()
    life = await live(folder, 60 * minutes, seed=5, say=lambda text: say(f"durability: soak, {text}"))
    grown = " ".join(f"{name} {value:+g}" for name, value in life.grown().items())
    return [{**_row(f"soak, {minutes} min", life.mishaps, life.verdict), "note": f"grown: {grown}; {life.last}"}]


SECTIONS: dict[str, Callable[[Wanted], Awaitable[list[Row]]]] = {
    "kills": _kills,
    "points": _points,
    "model": _model,
    "faults": _faults,
    "cuts": _cuts,
    "soak": _soak,
}


async def _one(folder: Path, fault: str, times: int, seed: int, model: Path | None = None) -> Verdict:
    """A daemon to which one thing is done, over and over."""
    folder.mkdir()
    moments = {"longest_s": MODEL_MOMENT_S} if model else {}
    happens = {**FAULTS, **AT_POINTS}[fault]
    async with Rig(folder, seed, model=model, **NEEDS.get(fault, {}), **moments) as rig:
        load = rig.load()
        await rig.flowing()
        for number in range(times):
            if number % SAY_EVERY == 0:
                say(f"durability: {fault}, {number + 1} of {times}")
            await happens(rig)
        await rig.flowing()
        verdict = await rig.settle(load)
        for why in rig.failures():
            say(f"durability: {fault}: {why[:300]}")
        return verdict


def _sum(verdicts: list[Verdict]) -> Verdict:
    return Verdict(*map(sum, zip(*map(astuple, verdicts), strict=True)))


def _row(done: str, times: int, verdict: Verdict) -> Row:
    fields = {name: getattr(verdict, name) for name in verdict.__dataclass_fields__}
    return {"done": done, "times": times, **fields, "kept": "yes" if verdict.kept else "NO"}


def _not_run(done: str, why: str) -> Row:
    return {"done": done, "times": 0, **dict.fromkeys(Verdict.__dataclass_fields__, ""), "kept": why}
