"""The calibration of an adapter: from a dump of `scripts/bench answers` into its manifest."""

from __future__ import annotations

import importlib
import json
import random
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from adapter import calibrate

from edged.agent.calibration import fit
from edged.models import adapters

MANIFEST = f"""# what it is
weights = "{"1" * 64}"
sha256 = "{"2" * 64}"
bytes = 1
dialect = "compact"
licence = "Apache-2.0"
trained = "by hand"
"""


def verdict(score: float | None, right: bool, **more: Any) -> dict[str, Any]:
    """As the bench writes it."""
    base = {"score": score, "right": right, "good": right, "calls": [["a", {}]], "writes": True}
    return {**base, "wrong_write": not right, "handed_over": False, **more}


def dump(number: int) -> list[dict[str, Any]]:
    """Decisions whose scores are probabilities."""
    rng = random.Random(1)
    scores = [rng.uniform(0.02, 0.98) for _ in range(number)]
    return [verdict(score, rng.random() < score) for score in scores]


def test_manifest_gets_the_table_and_keeps_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once more it is replaced; edged reads what was written."""
    answers, manifest = tmp_path / "answers.json", tmp_path / "small.toml"
    manifest.write_text(MANIFEST, encoding="utf-8")
    for number in (600, 400):
        others = [verdict(0.9, False, calls=[], good=True, wrong_write=False)] * 40
        ignored = [
            verdict(None, True),
            verdict(0.1, False, handed_over=True, calls=[]),
            verdict(0.1, False, outcome="asked", calls=[]),
        ]
        answers.write_text(json.dumps([*dump(number), *others, *ignored]), encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["calibrate", str(answers), str(manifest)])
        calibrate.main()
        text = manifest.read_text(encoding="utf-8")
        assert text.startswith(MANIFEST)
        assert text.count("[calibration]") == 1
        found = adapters.manifest(manifest.with_suffix(".gguf"))
        assert found is not None
        assert found.calibration is not None
        assert found.calibration.decisions == number + 40
        assert found.calibration.none is not None
        assert found.calibration.calls.probability(0.6) == pytest.approx(0.6, abs=0.1)
        assert 0 < found.calibration.auto < 1
    assert "a calibrated model of this size" in capsys.readouterr().out


def test_table_amid_the_file_is_taken_out_with_those_below_it() -> None:
    made = fit(calibrate.known(dump(100)))
    text = calibrate.written("x = 1\n[calibration]\nauto = 0\n[calibration.none]\na = 1\n[more]\ny = 2\n", made)
    assert list(tomllib.loads(text)) == ["x", "more", "calibration"]
    assert tomllib.loads(text)["calibration"].keys() == {"auto", "decisions", "calls"}


def test_bins_have_equal_mass_and_tell_what_is_said_and_right() -> None:
    pairs = [(i / 100, i >= 50) for i in range(100)]
    found = calibrate.bins(pairs)
    assert [count for _, _, count in found] == [10] * 10
    assert [round(said, 3) for said, _, _ in found][::9] == [0.045, 0.945]
    assert [share for _, share, _ in found] == [0.0] * 5 + [1.0] * 5
    assert calibrate.bins([(0.5, True)]) == [(0.5, 1.0, 1)]


def test_error_of_a_calibrated_model_is_what_resampling_gives_and_that_of_another_is_more() -> None:
    pairs = [(each["score"], each["right"]) for each in dump(2000)]
    mean, most = calibrate.fair_error(pairs, 200)
    assert 0 < mean < most
    assert calibrate.error(pairs) <= most * 1.2
    assert calibrate.error([(p**3, right) for p, right in pairs]) > 2 * most


def test_bench_tells_the_reliability_and_what_the_line_holds_back() -> None:
    """Nothing where no call has a confidence."""
    answers: Any = importlib.import_module("benchmarks.answers")
    some = [{**each, "confidence": each["score"], "outcome": "acted", "reason": "local_ok"} for each in dump(90)]
    asked = [verdict(0.1, False, calls=[], wrong_write=False, confidence=0.1, outcome="asked", reason="local_ok")] * 6
    given = [verdict(None, True, handed_over=True, confidence=None, outcome="answered", reason="unsure")] * 4
    rows = {row["what"]: row for row in answers._reliability([*some, *asked, *given])}
    assert len([what for what in rows if what.startswith("confidence, tenth")]) == 10
    assert rows["requests below the line"]["right"] == 10
    assert rows["requests below the line"]["of"] == 100
    wrong = sum(not each["right"] for each in some)
    assert rows["wrong writes above the line, of all requests"]["right"] == wrong
    assert rows["calibration error"]["of"] == 90
    assert answers._reliability([{**each, "confidence": None} for each in some]) == []
