"""Two weeks of requests: what an agent that learns in the first one does on the board in the second.

Each plant's requests are parted into two weeks that have no text in common. The cloud of the first week makes the right
calls, or wrong ones of the same plant for one request in ten; the cloud of the second makes the right ones, so what is
wrong then is the board's. In some arms the board hands over what it is unsure of, in others the whole first week is the
cloud's. Plants that are reported on are left alone: `--only NAME` takes one of those to choose on, `--requests N` so
many of each week.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sqlite3
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapter.plants import DATABASE
from adapter.score import same_calls
from msgspec import Struct

from benchmarks.answers import BESIDE, CHOOSE, Verdict, asked, configuration, counted
from benchmarks.board import MODEL, models_dir
from benchmarks.ipc import daemon
from benchmarks.report import Result, Row, say
from edged.client import AsyncClient
from edged.errors import ModelUnavailable
from edged.models import catalog
from tests.support import cloud as clouds
from tests.support.cloud import Behaviour, ScriptedCloud

SECTIONS = CHOOSE
SEED = 11  # of who is taught wrongly
WRONG = 0.1  # share of the first week
NEAR = "catalog:all-minilm-l6-v2-int8"  # finds the nearest examples, where it is installed; else letters do
ACTS = ("read", "write", "two", "follow")  # kinds that want calls

Case = dict[str, Any]


class Arm(Struct, frozen=True):
    """A way to spend the first week. whole: all of it goes to the cloud."""

    name: str
    learns: bool = True
    whole: bool = False
    wrong: float = 0.0


ARMS = (
    Arm("off", learns=False),
    Arm("on"),
    Arm("on, 1 in 10 taught wrongly", wrong=WRONG),
    Arm("on, week 1 by the upstream", whole=True),
    Arm("on, week 1 by the upstream, 1 in 10 taught wrongly", whole=True, wrong=WRONG),
)


def run(*, only: str | None = None, requests: int | None = None, model: str | None = None) -> Result:
    """Rows: what of the second week, by arm: right, of, share, and its 95 % interval."""
    folder = Path(os.environ.get("EDGED_REQUESTS") or BESIDE)
    files = [folder / f"{name}.json" for name in CHOOSE if only in (None, name)]
    if missing := [str(file) for file in files if not file.exists()]:
        return Result([], failed=[f"there is no {', '.join(missing)}: name their folder in EDGED_REQUESTS"])
    found: dict[str, list[Verdict]] = defaultdict(list)
    learnt: dict[str, int] = defaultdict(int)
    for file in files:
        plant = json.loads(file.read_text(encoding="utf-8"))
        first, second = (some(week, requests) for week in weeks(plant["cases"]))
        for arm in ARMS:
            count, verdicts = asyncio.run(_spent(plant, arm, first, second, model or MODEL))
            found[arm.name] += verdicts
            learnt[arm.name] += count
            here = sum(not each["handed_over"] for each in verdicts)
            wrong = sum(each["wrong_write"] for each in verdicts)
            say(
                f"learn: {plant['name']}, {arm.name}: {count} learnt; {here}/{len(verdicts)} here, {wrong} wrong writes"
            )
    return Result([row for arm in ARMS for row in _rows(arm, learnt[arm.name], found[arm.name])])


def weeks(cases: Sequence[Case]) -> tuple[list[Case], list[Case]]:
    """Every other case of each kind, so that both have as many; the second without a text of the first."""
    parts: tuple[list[Case], list[Case]] = ([], [])
    seen: dict[str, int] = defaultdict(int)
    for case in cases:
        parts[seen[case["kind"]] % 2].append(case)
        seen[case["kind"]] += 1
    said = {_folded(case["text"]) for case in parts[0]}
    return parts[0], [case for case in parts[1] if _folded(case["text"]) not in said]


def some(cases: list[Case], count: int | None) -> list[Case]:
    """So many of the cases, of all parts of the list; None: all."""
    return cases if count is None else [cases[i * len(cases) // count] for i in range(min(count, len(cases)))]


def lessons(plant: dict[str, Any], cases: Sequence[Case], wrong: float) -> dict[str, list[dict[str, Any]]]:
    """What the cloud calls, by text; for so many of them what is right for another request, of the same tool where
    there is one."""
    taught = {case["text"]: case["calls"] for case in cases if case.get("calls")}
    chance = random.Random(SEED)  # noqa: S311 - no secret hangs on it
    for text in chance.sample(sorted(taught), round(wrong * len(taught))):
        right = taught[text]
        others = [
            case["calls"]
            for case in cases
            if case.get("calls")
            and not same_calls(plant, [(each["name"], each["arguments"]) for each in case["calls"]], right)
        ]
        others.sort(key=lambda calls: [each["name"] for each in calls] != [each["name"] for each in right])
        taught[text] = others[0]
    return taught


def teacher(taught: dict[str, list[dict[str, Any]]]) -> Behaviour:
    """A cloud that makes these calls, and has words where there is none, or the calls are made."""

    def answer(body: dict[str, Any]) -> str | Behaviour:
        last = body["messages"][-1]
        text = next((text for text in taught if last["role"] == "user" and last["content"].endswith(text)), None)
        if text is None:
            return "done" if last["role"] == "tool" else "handed over"
        return clouds.calls(*((each["name"], each["arguments"]) for each in taught[text]))

    return clouds.by(answer)


async def _spent(
    plant: dict[str, Any], arm: Arm, first: Sequence[Case], second: Sequence[Case], model: str
) -> tuple[int, list[Verdict]]:
    """(examples at the end of the first week, the second)."""
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as name:
        folder = Path(name)
        database = sqlite3.connect(folder / f"{DATABASE}.db")
        database.executescript(plant["schema"])
        database.close()
        async with ScriptedCloud() as cloud:
            text = configuration(plant, folder, model, cloud.base_url)
            if arm.learns:
                text = text.replace("[agents.house]\n", "[agents.house]\nlearn = true\n")
            (folder / "edged.toml").write_text(text + _near(), encoding="utf-8")
            with daemon(folder):
                if arm.learns:
                    cloud.otherwise = teacher(lessons(plant, first, arm.wrong))
                    for case in first:
                        await asked(plant, case, folder, **({"route": "cloud"} if arm.whole else {}))
                async with AsyncClient(folder / "run" / "edged.sock") as client:
                    learnt = await client.call("learn.list")
                cloud.otherwise = teacher(lessons(plant, second, 0))
                return len(learnt), [await asked(plant, case, folder) for case in second]


def _near() -> str:
    try:
        here = catalog.resolve(NEAR, Path(models_dir())).path.exists()
    except ModelUnavailable:
        here = False
    return f'[models.near]\nsource = "{NEAR}"\n' if here else ""


def _rows(arm: Arm, learnt: int, found: Sequence[Verdict]) -> list[Row]:
    acts = [each for each in found if each["kind"] in ACTS]
    here = [each for each in acts if not each["handed_over"]]
    asks = sum(each["outcome"] == "asked" for each in found)
    first, *others = (
        counted(f"{arm.name}: answered on the board", sum(not each["handed_over"] for each in found), len(found)),
        counted(f"{arm.name}: calls made right on the board", sum(each["right"] for each in here), len(acts)),
        counted(f"{arm.name}: calls right in the end", sum(each["right"] for each in acts), len(acts)),
        counted(f"{arm.name}: wrong writes", sum(each["wrong_write"] for each in found), len(found)),
    )
    return [{**first, "note": f"{learnt} examples learnt; {asks} asked back"}, *others]


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
