"""Memory: predictions, what an unload gives back, two models in 800 MiB, pressure, a model too large, a day of loads.

Figures are of the daemon from outside: private memory and resident pages of mapped weights (/proc/PID/smaps), and of
its cgroup where there is a limit. MiB are 2^20 bytes. A section that cannot be measured is told in its row, and fails
the bench when that is edged's doing. `--only` runs one.

* prediction: what status predicts against what a load and a request took: every GGUF of the catalog that is installed,
  three contexts, two types of keys and values, a daemon for each.
* unload: 30 times load, ask, unload; private memory after each.
* limited: a cgroup of 800 MiB and two models that do not fit together, asked in turn and all at once; llama-server's
  router beside it.
* pressure: a signal through $MEMORY_PRESSURE_WATCH, and a process that takes memory until the kernel stalls.
* too-large: a model twice as large as the board.
* day: some hundred loads and unloads, embeddings in between.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import board, limited, pressure, sparse_gguf, subject
from benchmarks.calls import CallError
from benchmarks.findings import finding, mib, without
from benchmarks.levels import error_percent, growth, levels
from benchmarks.peers import PeerError
from benchmarks.report import Result, Row, say
from benchmarks.subject import SubjectError
from edged.client import Client, EdgedCallError
from edged.host import memory as probe
from edged.models import catalog

CONTEXTS = (512, 2048, 4096)
KV_TYPES = ("f16", "q8_0")
WITHIN_PERCENT = 5.0
UNLOADS = 30
ABOVE_MIB, GROWTH_MIB, LEVEL_MIB = 10.0, 1.0, 75.0
LOADS_A_DAY = 300  # a model that is asked every five minutes and unloaded in between
DAY_MIB = 100.0
REFUSALS = 5
REFUSED_MS = 100.0
SMALLEST = "smollm2-135m-instruct-q4_1"
EMBEDDINGS = "all-minilm-l6-v2-int8"
EMBED_EVERY = 3  # cycles of a day
REQUESTS = 100  # in turn, and as many at once


@dataclass(frozen=True)
class Wanted:
    """What a section is run with. model: of the catalog, where a section needs one of any kind."""

    folder: Path
    cycles: int | None
    requests: int
    model: str | None
    peer_bin: Path | None


def run(
    *,
    peer_bin: Path | None = None,
    only: str | None = None,
    cycles: int | None = None,
    requests: int = REQUESTS,
    model: str | None = None,
) -> Result:
    """Rows: what, edged, peer, unit, to reach, reached, n, note.

    Args:
        only: one section; all of them without it.
        cycles: of loads and unloads, instead of 30 and 300.
        requests: in turn, and as many at once, in the limited cgroup.
        model: of the catalog, instead of the default one (unload, pressure) and the smallest (day).
    """
    if only is not None and only not in SECTIONS:
        raise SystemExit(f"bench memory: --only is one of {', '.join(SECTIONS)}")
    rows: list[Row] = []
    failed: list[str] = []
    for name, section in SECTIONS.items():
        if only not in (None, name):
            continue
        with tempfile.TemporaryDirectory(prefix="edged-bench-") as folder:
            try:
                rows += section(Wanted(Path(folder), cycles, requests, model, peer_bin))
            except (SubjectError, PeerError, EdgedCallError, CallError, ConnectionError) as error:
                failed.append(f"{name}: {error}")
                rows.append(without(name, str(error).splitlines()[-1]))
    return Result(rows, {"threads": board.threads(), "sections": only or "all"}, failed)


# -- prediction --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A model at a context; everything in bytes.

    predicted, taken: of the first load of a fresh daemon, with the libraries that come with it; returned: what is in
    memory then and no more after the unload; predicted_again, taken_again: of the second load.
    """

    name: str
    predicted: int
    taken: int
    returned: int
    predicted_again: int
    taken_again: int


def _prediction(wanted: Wanted) -> list[Row]:
    names = [wanted.model] if wanted.model else _installed()
    if not names:
        raise SubjectError(f"no GGUF of the catalog is installed in {board.models_dir()}")
    cases = []
    for name in names:
        for context in CONTEXTS:
            for kv_type in KV_TYPES:
                say(f"prediction: {name}, {context} tokens, {kv_type}")
                cases.append(_case(wanted.folder / f"{name}-{context}-{kv_type}", name, context, kv_type))
    rows = [
        finding(
            f"prediction: {case.name}",
            error_percent(case.predicted, case.taken),
            "%",
            note=f"predicted {mib(case.predicted)} MiB, taken {mib(case.taken)}, given back {mib(case.returned)}; "
            f"second load: predicted {mib(case.predicted_again)}, taken {mib(case.taken_again)}",
        )
        for case in cases
    ]
    return [
        *rows,
        _worst("first load of a daemon, worst error", cases, lambda c: error_percent(c.predicted, c.taken)),
        finding(
            "prediction: most that a first unload kept, libraries among it",
            max(mib(case.taken - case.returned) for case in cases),
            "MiB",
            n=len(cases),
        ),
        _worst("second load, worst error", cases, lambda c: error_percent(c.predicted_again, c.taken_again)),
    ]


def _worst(what: str, cases: list[Case], error: Callable[[Case], float]) -> Row:
    worst = max(cases, key=lambda case: abs(error(case)))
    note = f"{worst.name}: {error(worst):+.1f} %"
    return finding(f"prediction: {what}", abs(error(worst)), "%", at_most=WITHIN_PERCENT, n=len(cases), note=note)


def _case(folder: Path, name: str, context: int, kv_type: str) -> Case:
    subject.write_config(folder, {"small": subject.catalog_model(name, context, kv_type=f'"{kv_type}"')})
    with subject.running(folder) as daemon, daemon.client() as client:
        fresh = daemon.settled()
        predicted, first = _loaded(daemon, client)
        subject.unload(client, "small")
        left = daemon.settled()
        predicted_again, second = _loaded(daemon, client)
    return Case(
        f"{name} {context} {kv_type}",
        predicted,
        first - fresh.whole,
        first - left.whole,
        predicted_again,
        second - left.whole,
    )


def _loaded(daemon: subject.Subject, client: Client) -> tuple[int, int]:
    """(predicted for it, in memory after a request), bytes."""
    subject.load(client, "small")
    predicted = subject.predicted(client, "small")
    subject.ask(client, "small")
    return predicted, daemon.settled().whole


def _installed() -> list[str]:
    """The catalog's GGUF models that are on this board, smallest first."""
    entries = sorted(catalog.catalog().values(), key=lambda entry: entry.bytes)
    found = (entry.name for entry in entries if entry.engine == "llama.cpp")
    return [name for name in found if catalog.resolve(f"catalog:{name}", board.models_dir()).path.exists()]


# -- what an unload gives back -----------------------------------------------------------------------------------------


def _unload(wanted: Wanted) -> list[Row]:
    cycles, name = wanted.cycles or UNLOADS, wanted.model or board.MODEL
    subject.write_config(wanted.folder, {"small": subject.catalog_model(name, board.CONTEXT)})
    left: list[float] = []
    mapped = 0
    with subject.running(wanted.folder) as daemon, daemon.client() as client:
        fresh = daemon.settled()
        for number in range(cycles):
            say(f"unload: cycle {number + 1} of {cycles}")
            subject.load(client, "small")
            subject.ask(client, "small")
            subject.unload(client, "small")
            memory = daemon.settled()
            left.append(mib(memory.private))
            mapped = max(mapped, memory.mapped)
    found = levels(left)
    told = f"{name}; MiB after each: {' '.join(f'{value:g}' for value in left)}"
    return [
        finding("unload: private memory of the daemon before any load", mib(fresh.private), "MiB"),
        finding("unload: after the first load and unload", found.first, "MiB", at_most=LEVEL_MIB, note=told),
        finding("unload: highest above that", found.above, "MiB", at_most=ABOVE_MIB, n=cycles),
        finding("unload: growth after the third", found.growth, "MiB", at_most=GROWTH_MIB, n=cycles, note=GROWTH),
        finding("unload: weights still mapped", mib(mapped), "MiB", at_most=0),
    ]


GROWTH = "median of the last 10 cycles of 30 over that of the 4th to 10th"


# -- a model too large for the board -----------------------------------------------------------------------------------


def _too_large(wanted: Wanted) -> list[Row]:
    path = wanted.folder / "huge.gguf"
    size = sparse_gguf.write(path, 2 * probe.board_bytes())
    subject.write_config(wanted.folder / "daemon", {"huge": f'source = "file:{path}"\ncontext = 2048\n'})
    taken, said = [], ""
    with subject.running(wanted.folder / "daemon") as daemon, daemon.client() as client:
        for _ in range(REFUSALS):
            began = time.perf_counter()
            try:
                client.call("models.load", {"name": "huge"})
            except EdgedCallError as error:
                taken.append((time.perf_counter() - began) * 1000)
                said = f"{error.code}: {error.message}"
            else:
                raise SubjectError(f"a model of {mib(size)} MiB was loaded on a board of {mib(probe.board_bytes())}")
    missing = _missing(said)
    return [
        finding("too-large: the first refusal", taken[0], "ms", at_most=REFUSED_MS, note=f"{mib(size)} MiB; {said}"),
        finding("too-large: the slowest of all", max(taken), "ms", at_most=REFUSED_MS, n=REFUSALS),
        finding("too-large: what its reason does not tell", len(missing), at_most=0, note=", ".join(missing)),
    ]


def _missing(said: str) -> list[str]:
    """What a refusal has to tell and does not."""
    found = {
        "the code no_memory": said.startswith("no_memory"),
        "sizes": "MiB" in said or "GiB" in said,
        "what would fit": "fit" in said.replace("does not fit", "").replace("do not fit", ""),
    }
    return [name for name, told in found.items() if not told]


# -- a day ------------------------------------------------------------------------------------------------------------


def _day(wanted: Wanted) -> list[Row]:
    cycles, name = wanted.cycles or LOADS_A_DAY, wanted.model or SMALLEST
    _pull(EMBEDDINGS)
    models = {
        "small": subject.catalog_model(name, 2048),
        "words": f'source = "catalog:{EMBEDDINGS}"\n',
    }
    subject.write_config(wanted.folder, models)
    left: list[float] = []
    with subject.running(wanted.folder) as daemon, daemon.client() as client:
        http = daemon.http()
        for number in range(cycles):
            if number % 25 == 0:
                say(f"day: cycle {number + 1} of {cycles}")
            subject.load(client, "small")
            subject.ask(client, "small")
            subject.unload(client, "small")
            if number % EMBED_EVERY == 0:
                http.post("/v1/embeddings", {"model": "words", "input": [f"The tank {number} is full.", "A valve."]})
                subject.unload(client, "words")
            left.append(mib(daemon.memory().private))
        http.close()
        idle = daemon.settled()
    half = left[len(left) // 2 :]
    told = " ".join(f"{value:g}" for value in left[:: max(1, cycles // 10)])
    return [
        finding(
            "day: idle afterwards", mib(idle.private), "MiB", at_most=DAY_MIB, n=cycles, note=f"{name} {EMBEDDINGS}"
        ),
        finding(
            "day: growth over the last half",
            growth(half),
            "MiB",
            at_most=GROWTH_MIB,
            n=len(half),
            note=f"MiB after each tenth of all: {told}",
        ),
    ]


def _pull(name: str) -> None:
    command = [
        str(Path(sys.executable).parent / "edged"),
        "models",
        "pull",
        "--models-dir",
        str(board.models_dir()),
        name,
    ]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
        raise SubjectError(f"{name} cannot be had, see above")


# -- sections with a module of their own -------------------------------------------------------------------------------


def _limited(wanted: Wanted) -> list[Row]:
    return limited.rows(wanted.folder, wanted.requests, wanted.peer_bin)


def _pressure(wanted: Wanted) -> list[Row]:
    return pressure.rows(wanted.folder, wanted.model or board.MODEL, SMALLEST)


SECTIONS: dict[str, Callable[[Wanted], list[Row]]] = {
    "prediction": _prediction,
    "unload": _unload,
    "limited": _limited,
    "pressure": _pressure,
    "too-large": _too_large,
    "day": _day,
}
