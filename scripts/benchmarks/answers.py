"""Right answers: what a real daemon does about requests of plants that nobody tuned for, by plant and kind.

Each plant is a daemon of its own with the plant's tables and tools and a cloud that takes whatever is handed over. The
judge is scripts/adapter/score.py. The sets are those of EDGED_REQUESTS (a folder of plants), else those that lie beside
the project, else the ones that the adapter was taught with, which shows nothing.

`--only NAME` chooses a plant, or "choose" and "report", the halves that are tuned on and reported, "translated", plants
of the reported half in other languages, or "held_out", plants that no adapter was taught with and that are chosen on.
`--requests N` takes N of each, `--model NAME` another model of the catalog.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from adapter import calibrate
from adapter.plants import DATABASE, HELD_OUT, REQUESTS, TRANSLATED, parameters
from adapter.score import KINDS, auroc, interval, judge

from benchmarks.board import CONTEXT, MODEL, models_dir
from benchmarks.ipc import daemon
from benchmarks.report import Result, Row, say
from edged.client import AsyncClient
from tests.support import cloud as clouds
from tests.support.cloud import ScriptedCloud

BESIDE = Path(__file__).parents[3] / "shared" / "data" / "requests" / "dev"
CHOOSE = ("apartments", "brewery", "charging", "clinic")  # what is chosen on; all others are reported
SECTIONS = ("choose", "report", "translated", "held_out", *(file.stem for file in sorted(BESIDE.glob("*.json"))))
LIMIT_S = 300.0  # of a request: the first one computes the prompt

Verdict = dict[str, Any]


def run(*, only: str | None = None, requests: int | None = None, model: str | None = None) -> Result | list[Row]:
    """Rows: what, right, of, share, and its 95 % interval; then the wrong acts."""
    own = {"translated": TRANSLATED, "held_out": HELD_OUT}
    beside = own.get(only or "", BESIDE if BESIDE.is_dir() else REQUESTS)
    folder = Path(os.environ.get("EDGED_REQUESTS") or beside)
    halves = {
        "choose": lambda name: name in CHOOSE,
        "report": lambda name: name not in CHOOSE,
        **dict.fromkeys(own, lambda name: True),
        None: lambda name: True,
    }
    wanted = halves.get(only, lambda name: name == only)
    files = [file for file in sorted(folder.glob("*.json")) if wanted(file.stem)]
    plants = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    found: list[Verdict] = []
    rows: list[Row] = []
    for plant in plants:
        cases = plant["cases"][:requests]
        verdicts = asyncio.run(_plant(plant, cases, model or MODEL))
        rows.append(_of_plant(plant["name"], verdicts))
        say(f"answers: {plant['name']}: {rows[-1]['note']}")
        found += verdicts
    if dump := os.environ.get("EDGED_ANSWERS_JSON"):
        Path(dump).write_text(json.dumps(found, ensure_ascii=False, indent=1), encoding="utf-8")
    return [*rows, *_all(found)]


async def _plant(plant: dict[str, Any], cases: list[dict[str, Any]], model: str) -> list[Verdict]:
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as name:
        folder = Path(name)
        database = sqlite3.connect(folder / "plant.db")
        database.executescript(plant["schema"])
        database.close()
        async with ScriptedCloud() as cloud:
            cloud.otherwise = clouds.text("handed over")
            (folder / "edged.toml").write_text(configuration(plant, folder, model, cloud.base_url), encoding="utf-8")
            with daemon(folder):
                return [await asked(plant, case, folder) for case in cases]


async def asked(plant: dict[str, Any], case: dict[str, Any], folder: Path, **fields: Any) -> Verdict:
    """A case as a request to the daemon of a folder, and what became of it. fields: more of the request's."""
    before = [
        {"role": role, "content": turn[role]} for turn in case.get("before", ()) for role in ("user", "assistant")
    ]
    async with AsyncClient(folder / "run" / "edged.sock") as client:
        began = time.perf_counter()
        reply = await client.call(
            "agent.ask",
            {
                "agent": "house",
                "messages": [*before, {"role": "user", "content": case["text"]}],
                "deadline_s": LIMIT_S,
                **fields,
            },
        )
        took_ms = (time.perf_counter() - began) * 1000
    done = [(call["name"], call["arguments"]) for call in reply["tool_calls"] or () if call["ok"]]
    handed_over = reply["route"] is not None and reply["route"]["where"] == "cloud"
    text = reply["output"] or ""
    verdict = judge(plant, case, calls=done, outcome=reply.get("outcome"), handed_over=handed_over, text=text)
    facts = [fact for fact in case.get("facts", ()) if fact.casefold() not in text.casefold()]
    return {
        **verdict,
        "plant": plant["name"],
        "text": case["text"],
        "calls": done,
        "writes": any(plant["tools"][name]["effect"] == "write" for name, _ in done),
        "gold": case.get("calls", []),
        "said": text,
        "status": reply["status"],
        "outcome": reply.get("outcome"),
        "handed_over": handed_over,
        "reason": (reply["route"] or {}).get("reason"),
        "confidence": (reply["route"] or {}).get("confidence"),
        "score": (reply["route"] or {}).get("score"),
        "missing_facts": facts,
        "ms": took_ms,
    }


def configuration(plant: dict[str, Any], folder: Path, model: str, cloud: str) -> str:
    """A plant as edged's configuration."""
    source = model if ":" in model else f"catalog:{model}"
    lines = [
        "[node]", 'id = "bench"', f'state_dir = "{folder}/state"', f'runtime_dir = "{folder}/run"',
        f'models_dir = "{models_dir()}"',
        "[models.small]", f'source = "{source}"', f"context = {CONTEXT}", *_extra_model_lines(),
        f"[databases.{DATABASE}]", f'path = "{folder}/plant.db"', 'mode = "rw"',
        "[upstreams.cloud]", f'base_url = "{cloud}"', 'model = "large"',
        "[agents.house]", 'model = "small"', f"system = {_toml(plant['system'])}", 'privacy = "any"',
        f"tools = {_toml(list(plant['tools']))}", *_extra_agent_lines(),
    ]  # fmt: skip
    for name, tool in plant["tools"].items():
        lines += [
            f"[tools.{name}]", f"description = {_toml(tool['description'])}", f'database = "{DATABASE}"',
            f"sql = {_toml(tool['sql'])}", f'effect = "{tool["effect"]}"',
        ]  # fmt: skip
        if tool.get("say"):
            lines.append(f"say = {_toml(tool['say'])}")
        if tool.get("examples"):
            lines.append(f"examples = {_toml(tool['examples'])}")
        lines.append(f"parameters = {_toml(parameters(tool))}")
    return "\n".join(lines) + "\n"


def _extra_model_lines() -> list[str]:
    """EDGED_ANSWERS_MODEL: further keys of the model's table, for comparisons."""
    return os.environ.get("EDGED_ANSWERS_MODEL", "").split(";")


def _extra_agent_lines() -> list[str]:
    """EDGED_ANSWERS_AGENT: the same of the agent's table; "min_confidence = 0" to fit a calibration."""
    return os.environ.get("EDGED_ANSWERS_AGENT", "").split(";")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _of_plant(name: str, verdicts: list[Verdict]) -> Row:
    parts = []
    for kind in KINDS:
        of_kind = [each["good"] for each in verdicts if each["kind"] == kind]
        if of_kind:
            parts.append(f"{kind} {sum(of_kind)}/{len(of_kind)}")
    good, ms = sum(each["good"] for each in verdicts), statistics.median(each["ms"] for each in verdicts)
    note = f"{good}/{len(verdicts)}: {', '.join(parts)}; median {ms:.0f} ms"
    return {**counted(name, good, len(verdicts)), "note": note}


def _all(found: list[Verdict]) -> list[Row]:
    one = [each for each in found if each["kind"] in ("read", "write", "follow")]
    told = [each for each in found if each["kind"] in ("read", "follow") and each["right"] and each["gold"]]
    rows = [
        counted("the one right call", sum(each["right"] for each in one), len(one)),
        counted("the right tool", sum(each["tool"] for each in one), len(one)),
    ]
    by_kind = defaultdict(list)
    for each in found:
        by_kind[each["kind"]].append(each)
    rows += [counted(kind, sum(each["good"] for each in by_kind[kind]), len(by_kind[kind])) for kind in KINDS]
    rows += [
        counted("wrong writes", sum(each["wrong_write"] for each in found), len(found)),
        counted("inventions (unable and talk)", sum(each["invented"] for each in found), len(found)),
        counted("facts told right of calls made right", sum(not each["missing_facts"] for each in told), len(told)),
    ]
    scores = [(each["score"] or each["confidence"], each["right"]) for each in one if each["calls"]]
    if scores and (area := auroc([pair for pair in scores if pair[0] is not None])) is not None:
        rows.append({"what": "AUROC of the score: this call is right", "share": round(area, 3), "of": len(scores)})
    rows += _reliability(found)
    for each in found:
        if each["wrong_write"]:
            done = f"{each['calls']}, right: {each['gold']}"
            print(f"wrong write: {each['plant']}: {each['text']!r} -> {done}", file=sys.stderr)
    return rows


def _reliability(found: list[Verdict]) -> list[Row]:
    """Whether the confidence of calls is the share of them that is right, and what the default line holds back."""
    pairs = [(each["confidence"], each["right"]) for each in found if each["calls"] and each["confidence"] is not None]
    if not pairs:
        return []
    rows = []
    for place, (said, share, count) in enumerate(calibrate.bins(pairs), start=1):
        row = counted(f"confidence, tenth {place}: {said:.3f}", round(share * count), count)
        rows.append({**row, "note": "share right where so much was said"})
    mean, most = calibrate.fair_error(pairs)
    note = f"a calibrated model of this size: {mean:.3f}, 95 % below {most:.3f}"
    rows.append(
        {"what": "calibration error", "share": round(calibrate.error(pairs), 3), "of": len(pairs), "note": note}
    )
    # A write that was held back is one that edged asked about, or that was handed over as unsure.
    held = sum(each["outcome"] == "asked" or each["reason"] == "unsure" for each in found)
    above = [each["wrong_write"] and not each["handed_over"] for each in found]
    rows.append(counted("wrong writes above the line, of all requests", sum(above), len(found)))
    rows.append(counted("requests below the line", held, len(found)))
    return rows


def counted(what: str, good: int, n: int) -> Row:
    """A share with its 95 % interval."""
    low, high = interval(good, n)
    share = round(good / n, 3) if n else None
    return {"what": what, "right": good, "of": n, "share": share, "95 %": f"{low:.2f} to {high:.2f}"}
