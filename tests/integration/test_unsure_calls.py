"""Calls that the board's model is not sure of, through the real daemon: asked about, calibrated, shown."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import cast

import apsw
import httpx2
import pytest

from tests.support.cli import edged
from tests.support.cloud_daemon import ask
from tests.support.daemon import Daemon, Wired, entry, note

VALVE = {"name": "set_valve", "arguments": {"valve": "north", "position": "open"}}
CLOSE = {"name": "set_valve", "arguments": {"valve": "south", "position": "closed"}}
LEVEL = {"name": "tank_level", "arguments": {"tank": "south"}}
QUESTION = "Do you want me to do this: Open or close one valve (valve: north, position: open)?"

SCRIPT = 'dialect = "compact"\n' + "".join(
    (
        entry("^(yes|ja)", VALVE, confidence=0.2),
        entry("maybe", VALVE, confidence=0.2),
        entry("both, maybe", VALVE, note("x"), confidence=0.2),
        entry("level, perhaps", LEVEL, text="It is 41 percent full.", confidence=0.2),
        *(entry(f"^right {i}$", VALVE, confidence=0.95) for i in range(24)),
        *(entry(f"^lost {i}$", CLOSE, confidence=0.3) for i in range(8)),
        entry("^nothing", {"name": "unable", "arguments": {}}, confidence=0.5),
    )
)


def examples(right: int, lost: int, nothing: int = 0) -> str:
    """A drop-in with so many examples of set_valve, of which the model gets the first right and the others wrong."""
    texts = [*(f"right {i}" for i in range(right)), *(f"lost {i}" for i in range(lost))]
    texts += [f"nothing {i}" for i in range(nothing)]
    shown = ", ".join(f'{{ input = "{text}", arguments = {{ valve = "north", position = "open" }} }}' for text in texts)
    return f"[tools.set_valve]\nexamples = [{shown}]\n"


def taught(folder: Path, *drop_ins: str) -> Daemon:
    """A daemon whose model decides in the compact dialect; it is not started."""
    daemon = Daemon(folder, script=SCRIPT)
    for place, text in enumerate(drop_ins):
        daemon.drop_in(text, f"{50 + place}.toml")
    return daemon


async def test_owner_calibrates_and_the_line_holds_from_then_on(tmp_path: Path) -> None:
    """Until then nothing is held back; a restart changes nothing."""
    daemon = taught(tmp_path, examples(24, 8))
    async with daemon:
        before = await ask(daemon, "maybe")
        assert (before["outcome"], before["route"]["confidence"]) == ("acted", None)
        assert before["route"]["score"] == pytest.approx(0.2)
        ended = await edged("calibrate", "house", "--json", config=daemon.config)
        assert ended.code == 0, ended.err
        found = ended.json()
        assert (found["examples"], found["right"], found["wrong_writes"], found["held"]) == (32, 24, 8, 8)
        assert daemon.rows("valve_commands") == [("north", "open")]  # none of the examples was done
        held = await ask(daemon, "maybe")
        assert (held["status"], held["outcome"], held["output"], held["tool_calls"]) == ("done", "asked", QUESTION, [])
        assert held["route"]["confidence"] < found["line"] < (await ask(daemon, "right 0"))["route"]["confidence"]
        assert (await ask(daemon, "level, perhaps"))["outcome"] == "answered"  # "auto" holds no reads
        told = await edged("route", "--decide", "maybe", config=daemon.config)
        assert told.out.startswith("local: edged would ask whether to do it: the model was not sure enough of its call")
        assert "writing calls below confidence" in told.out
    daemon.drop_in("[agents.house]\nmin_confidence = 0\n", "90.toml")
    async with daemon:
        made = await ask(daemon, "maybe")
        assert (made["outcome"], made["route"]["confidence"]) == ("acted", held["route"]["confidence"])
    made_of = json.loads(Path(found["file"]).read_bytes())
    Path(found["file"]).write_bytes(json.dumps({**made_of, "weights": "others"}).encode())
    async with daemon:
        assert (await ask(daemon, "maybe"))["route"]["confidence"] is None


async def test_calibration_that_cannot_be_read_counts_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "state" / "calibrations").mkdir(parents=True)
    (tmp_path / "state" / "calibrations" / "house.json").write_bytes(b"\xff{")
    async with taught(tmp_path) as daemon:
        assert (await ask(daemon, "maybe"))["outcome"] == "acted"
        assert "edged calibrate house" in daemon.log.read_text()


@pytest.mark.parametrize(
    ("drop_in", "says"),
    [
        (examples(20, 0), "its tools have 20 examples, and a calibration takes 30"),
        (examples(20, 0, 15), "a calibration takes 30 calls, and there are 20: for the other examples it called noth"),
    ],
)
async def test_too_few_examples_are_told(tmp_path: Path, drop_in: str, says: str) -> None:
    async with taught(tmp_path, drop_in) as daemon:
        ended = await edged("calibrate", "house", config=daemon.config)
        assert ended.code == 65
        assert says in ended.err
        assert (await edged("calibrate", "nobody", config=daemon.config)).code == 65
    assert not (tmp_path / "state" / "calibrations").exists()


async def test_who_may_not_manage_may_not_calibrate(tmp_path: Path) -> None:
    roles = '[roles.viewer]\nagents = ["house"]\ntools = ["*"]\n'
    access = f'[access]\nunix_uid = {{ "{os.getuid()}" = "viewer" }}\n'
    daemon = taught(tmp_path, examples(24, 8), roles + access)
    async with daemon:
        assert (await edged("calibrate", "house", config=daemon.config)).code == 77


async def test_plain_yes_gets_done_what_was_asked_about(tmp_path: Path) -> None:
    """The question is a turn of the conversation, so the model sees it; elsewhere a yes is a yes to nothing."""
    async with taught(tmp_path, "[agents.house]\nmin_confidence = 0.5\n") as daemon:
        first = await ask(daemon, "maybe", conversation="kitchen")
        assert (first["outcome"], first["output"]) == ("asked", QUESTION)
        store = apsw.Connection(str(tmp_path / "state" / "edged.db"), flags=apsw.SQLITE_OPEN_READONLY)
        [(kept,)] = store.execute("SELECT messages FROM turns").fetchall()
        store.close()
        assert [message["content"] for message in json.loads(cast("bytes", kept))] == ["maybe", QUESTION]
        assert (await ask(daemon, "yes", conversation="hall"))["outcome"] == "asked"
        assert daemon.rows("valve_commands") == []
        second = await ask(daemon, "yes", conversation="kitchen")
        assert (second["outcome"], second["output"]) == ("acted", "Valve north is now open.")
        assert daemon.rows("valve_commands") == [("north", "open")]


async def test_question_is_in_the_language_of_the_request_and_counted(tmp_path: Path) -> None:
    async with taught(tmp_path, "[agents.house]\nmin_confidence = 0.5\n") as daemon:
        reply = await ask(daemon, "maybe: bitte mach das Ventil auf")
        assert reply["output"] == "Soll ich das tun: Open or close one valve (valve: north, position: open)?"
        both = await ask(daemon, "both, maybe", language="nl")
        assert both["outcome"] == "asked"
        async with Wired(daemon.socket) as client:
            error, told = await client.call(1, "route.explain", {"input": "both, maybe", "decide": True})
        assert error is None
        assert isinstance(told, dict)
        assert (told["go"], told["reason"], told["line"]) == ("local", "unsure", {"least": 0.5, "counts": "score"})
        metrics = await _metrics(tmp_path / "run" / "http.sock")
        assert 'edged_outcomes_total{agent="house",outcome="asked"} 2.0' in metrics


async def test_check_says_that_a_number_counts_in_scores(tmp_path: Path) -> None:
    """Until somebody has calibrated."""
    daemon = taught(tmp_path, examples(24, 8), "[agents.house]\nmin_confidence = 0.5\n")
    checked = await edged("check", "--json", config=daemon.config)
    assert (checked.code, checked.json()["problems"]) == (0, [])
    assert [n for n in checked.json()["notes"] if "min_confidence: counts in scores" in n]
    async with daemon:
        assert (await edged("calibrate", "house", config=daemon.config)).code == 0
    assert (await edged("check", "--json", config=daemon.config)).json()["notes"] == []


async def _metrics(socket: Path) -> str:
    async with httpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport(uds=str(socket))) as http:
        return (await http.get("http://edged/metrics")).text
