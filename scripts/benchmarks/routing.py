"""Where requests go: what the board decides itself and hands over, and what a client gets of each fault of a cloud.

Decisions are the default model's, on the greenhouse's requests (those of the tests) and on hard ones that no tool of it
answers; nothing is called. Faults are those of a scripted server behind real HTTP; the daemon is a real child process
whose agent does not wait for a link, so what a client gets is the fault itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import apsw

from benchmarks.ipc import daemon
from benchmarks.report import Row
from edged.client import AsyncClient, Client
from tests.integration.test_greenhouse import CASES, MODELS
from tests.support import cloud as clouds
from tests.support.cloud import Behaviour, ScriptedCloud
from tests.support.cloud_daemon import ask, cloudy, upstream
from tests.support.daemon import ROOT

HARD = (
    "Write a three-month planting schedule for the greenhouse.",
    "Compare the yield of tomatoes and cucumbers over the year and explain the difference.",
    "Draft an email to my landlord about the broken window.",
    "Design a crop rotation for five years with reasons.",
    "Translate the operating manual into French.",
    "Summarize the last season in a report for the owner.",
    "Work out how much fertilizer each bed needs and explain the calculation.",
    "Write a poem of ten verses about spring in the greenhouse.",
    "What strategy would lower our heating costs by 30 percent next winter?",
    "Make a detailed budget for building a second greenhouse.",
    "Analyze why the peppers did badly and propose a remedy.",
    "Write a Python program that logs the temperature.",
    "Develop a training plan for new gardeners.",
    "Give me a long article about organic pest control.",
    "Which legal rules apply to selling vegetables at the market? Explain in depth.",
    "Prepare a presentation about our irrigation system.",
    "Solve this: a tank of 800 litres drains at 12 litres a minute while 5 flow in; when is it half empty?",
    "Review this contract and list the risks.",
)
FAULTS: dict[str, Behaviour | None] = {
    "nobody listens": None,
    "401 wrong key": clouds.status(401, "Incorrect API key provided"),
    "404 wrong model": clouds.wrong_model(),
    "429, Retry-After 30": clouds.status(429, "slow down", retry_after="30"),
    "500": clouds.status(500),
    "503": clouds.status(503),
    "takes the request, says nothing (1 s allowed)": clouds.stalled_header(),
    "stops in the middle (1 s allowed)": clouds.stalled_body(),
    "connection cut in the middle": clouds.cut(),
    "invalid JSON": clouds.invalid_json(),
    "a login page with 200": clouds.html_page(),
    "a redirect": clouds.redirect(),
    "400 for this request": clouds.status(400, "this is too long"),
}
EXAMPLE = ROOT / "scripts" / "greenhouse"
DECISION_S = 300.0  # the first one computes the agent's prompt: half a minute on two busy cores


def run() -> list[Row]:
    """Rows: what, result, after ms (median or of the one request), link."""
    return [*_decisions(), *asyncio.run(_faults())]


def _decisions() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as name:
        folder = Path(name)
        _write_greenhouse(folder)
        with daemon(folder), Client(folder / "run" / "edged.sock", timeout_s=DECISION_S) as client:
            own = [_decide(client, text) for text, _, _ in CASES]
            hard = [_decide(client, text) for text in HARD]
    wanted = [(tool or "reply", arguments) for _, tool, arguments in CASES]
    right = sum((call["name"], call["arguments"]) == want for (call, _), want in zip(own, wanted, strict=True))
    handed = sum(call["name"] == "escalate" for call, _ in hard)
    median_ms = statistics.median(ms for _, ms in (*own, *hard))
    return [
        _row("the greenhouse's own requests decided right", f"{right} of {len(own)}", median_ms),
        _row("hard requests handed over", f"{handed} of {len(hard)}", median_ms),
    ]


def _decide(client: Client, text: str) -> tuple[dict[str, Any], float]:
    """(the call the board's model would make, milliseconds)."""
    started = time.perf_counter()
    told = client.call("route.explain", {"input": text, "agent": "house", "decide": True})
    return told["call"], (time.perf_counter() - started) * 1000


def _write_greenhouse(folder: Path) -> None:
    """The example, allowed to hand over to a cloud that is not there."""
    shutil.copy(EXAMPLE / "edged.toml", folder)
    with contextlib.closing(apsw.Connection(str(folder / "plant.db"))) as plant:
        plant.execute((EXAMPLE / "plant.sql").read_text()).fetchall()
    (folder / "conf.d").mkdir()
    (folder / "conf.d" / "bench.toml").write_text(
        f'[node]\nstate_dir = "{folder}/state"\nruntime_dir = "{folder}/run"\nmodels_dir = "{MODELS}"\n'
        f'[databases.plant]\npath = "{folder}/plant.db"\n'
        '[upstreams.cloud]\nbase_url = "http://127.0.0.1:9/v1"\nmodel = "none"\n[agents.house]\nprivacy = "any"\n'
    )


async def _faults() -> list[Row]:
    return [await _fault(name, behaviour) for name, behaviour in FAULTS.items()]


async def _fault(name: str, behaviour: Behaviour | None) -> Row:
    """What a request that needs the cloud gets when the cloud does this."""
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as folder:
        async with ScriptedCloud() as cloud:
            if behaviour is None:
                await cloud.stop()
            else:
                cloud.otherwise = behaviour
            async with cloudy(Path(folder), upstream("far", cloud), when_offline="fail") as running:
                await ask(running, "open the north valve")  # the model is loaded
                started = time.perf_counter()
                reply = await ask(running, "too hard")
                took_ms = (time.perf_counter() - started) * 1000
                async with AsyncClient(running.socket) as client:
                    link = (await client.call("status"))["link"]["far"]
        error = reply["error"]
        again = f", again in {error['retry_after_s']:.0f} s" if error["retry_after_s"] else ""
        return _row(f"cloud: {name}", f"{reply['status']} {error['code']}{again}", took_ms, str(link["state"]))


def _row(what: str, result: str, after_ms: float, link: str = "") -> Row:
    return {"what": what, "result": result, "after ms": round(after_ms, 1), "link afterwards": link}
