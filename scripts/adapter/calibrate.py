"""Fits the calibration of an adapter to what it did with requests of plants that it was not taught with.

    EDGED_ANSWERS_JSON=answers.json EDGED_ANSWERS_AGENT='min_confidence = 0' scripts/bench answers
    PYTHONPATH=scripts:. python -m adapter.calibrate answers.json models/adapters/NAME.toml

With `min_confidence = 0` nothing is held back and nothing is looked at twice: what is fitted is how the model decides.
The table `[calibration]` of the TOML file is written anew; the rest of the file stays as it is.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edged.agent.calibration import Calibration, Curve, Known, fit

BINS = 10
ROUNDS = 1000  # of resampling
TABLE = re.compile(r"^\[calibration\b[^\n]*\n(?:(?!\[)[^\n]*\n?)*", re.MULTILINE)  # and those below it

Pair = tuple[float, bool]  # a probability, and whether it was right


def known(verdicts: Sequence[dict[str, Any]]) -> list[Known]:
    """The decisions of a dump that the board made. Of a call that was held back nobody knows whether it was right."""
    return [
        Known(
            each["score"],
            right=each["right"] if called(each) else each["good"],
            called=called(each),
            wrong_write=each["wrong_write"],
            writes=each["writes"],
        )
        for each in verdicts
        if each["score"] is not None and not each["handed_over"] and each.get("outcome") != "asked"
    ]


def called(verdict: dict[str, Any]) -> bool:
    """Whether the decision calls something."""
    return bool(verdict["calls"])


def bins(pairs: Sequence[Pair]) -> list[tuple[float, float, int]]:
    """(mean probability, share that is right, how many) of ten parts of equal mass, lowest first; empty parts are left
    out."""
    ordered = sorted(pairs)
    parts = [ordered[len(ordered) * i // BINS : len(ordered) * (i + 1) // BINS] for i in range(BINS)]
    return [
        (sum(p for p, _ in part) / len(part), sum(right for _, right in part) / len(part), len(part))
        for part in parts
        if part
    ]


def error(pairs: Sequence[Pair]) -> float:
    """The expected calibration error: how far the mean probability of a part is from the share that is right."""
    return sum(abs(said - right) * count for said, right, count in bins(pairs)) / len(pairs)


def fair_error(pairs: Sequence[Pair], rounds: int = ROUNDS) -> tuple[float, float]:
    """(mean, 95th percentile) of the error that these probabilities would have if each were exactly right."""
    rng = random.Random(0)  # noqa: S311 - no secret hangs on it
    drawn = sorted(error([(p, rng.random() < p) for p, _ in pairs]) for _ in range(rounds))
    return sum(drawn) / rounds, drawn[math.ceil(0.95 * rounds) - 1]


def written(text: str, made: Calibration) -> str:
    """A manifest with this calibration in place of the one that it had."""
    lines = ["[calibration]", f"auto = {made.auto:.6f}", f"decisions = {made.decisions}", ""]
    for name, curve in (("calls", made.calls), ("none", made.none)):
        if curve is not None:
            lines += [f"[calibration.{name}]", *_numbers(curve), ""]
    return TABLE.sub("", text).rstrip() + "\n\n" + "\n".join(lines).rstrip() + "\n"


def _numbers(curve: Curve) -> list[str]:
    return [f"{name} = {value:.6f}" for name, value in (("a", curve.a), ("b", curve.b), ("c", curve.c))]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("answers", type=Path)
    parser.add_argument("manifest", type=Path)
    given = parser.parse_args()
    decisions = known(json.loads(given.answers.read_text(encoding="utf-8")))
    made = fit(decisions)
    text = written(given.manifest.read_text(encoding="utf-8"), made)
    tomllib.loads(text)
    given.manifest.write_text(text, encoding="utf-8")
    pairs = [(made.calls.probability(each.score), each.right) for each in decisions if each.called]
    print("probability  right  calls")
    for said, right, count in bins(pairs):
        print(f"{said:11.3f}  {right:5.3f}  {count:5d}")
    mean, most = fair_error(pairs)
    print(f"error {error(pairs):.3f}; a calibrated model of this size: {mean:.3f}, 95 % below {most:.3f}")
    writes = [each for each in decisions if each.writes]
    above = [each for each in writes if made.calls.probability(each.score) >= made.auto]
    wrong = sum(each.wrong_write for each in above)
    print(f"auto = {made.auto:.3f}: {len(writes) - len(above)} of {len(writes)} writes are below it")
    print(f"above it {wrong} of {len(above)} are wrong")


if __name__ == "__main__":
    main()
