"""Scores what an agent did with a request set (README.md): the one judge for everybody.

    from score import judge, summary
    verdict = judge(plant, case, calls=[(name, arguments)], outcome="acted", handed_over=False, text="...")

`plant` is a loaded file, `calls` what was really done, in order; `outcome` as in the reply, or None. Pure.
"""

import math
import random
import re

KINDS = ("read", "write", "two", "follow", "talk", "unable", "hard")


def same(have, want):
    if isinstance(want, str):
        return isinstance(have, str) and have.strip().casefold() == want.strip().casefold()
    if isinstance(want, bool) or isinstance(have, bool):
        return have is want
    if isinstance(want, (int, float)) and isinstance(have, (int, float)):
        return abs(have - want) < 1e-9
    return have == want


def same_call(plant, name, arguments, gold):
    """An optional argument that is left out equals its default."""
    if name != gold["name"] or not isinstance(arguments, dict):
        return False
    tool = plant["tools"][name]
    required = tool.get("required", list(tool["parameters"]))
    for key, parameter in tool["parameters"].items():
        have, want = arguments.get(key), gold["arguments"].get(key)
        if key not in required:
            default = parameter.get("default")
            have, want = (default if have is None else have), (default if want is None else want)
        if (have is None) != (want is None) or (want is not None and not same(have, want)):
            return False
    return not set(arguments) - set(tool["parameters"])


def same_calls(plant, calls, golds):
    left = list(calls)
    for gold in golds:
        for call in left:
            if same_call(plant, *call, gold):
                left.remove(call)
                break
        else:
            return False
    return not left


def judge(plant, case, *, calls, outcome=None, handed_over=False, text=""):
    """{kind, good, right, tool, wrong_write, invented}"""
    kind = case["kind"]
    ways = ([case["calls"]] if case.get("calls") else []) + case.get("accept", [])
    right = any(same_calls(plant, calls, way) for way in ways)
    golds = [gold for way in ways for gold in way]
    wrong_write = any(
        plant["tools"][name]["effect"] == "write" and not any(same_call(plant, name, arguments, gold) for gold in golds)
        for name, arguments in calls
        if name in plant["tools"]
    )
    numbers = set(re.findall(r"\d+(?:[.,]\d+)?", text)) - set(
        re.findall(r"\d+(?:[.,]\d+)?", case["text"] + plant["system"])
    )
    invented = kind in ("unable", "talk") and bool(numbers)
    if kind == "talk":
        good = not calls and not handed_over and bool(text.strip()) and outcome in (None, "answered")
    elif kind == "unable":
        good = not calls and not handed_over and not invented and outcome in (None, "unable", "asked")
    elif kind == "hard":
        good = not calls and handed_over
    else:
        good = right and not handed_over
    return {
        "kind": kind,
        "good": good,
        "right": right,
        "tool": bool(calls) and any(calls[0][0] == gold["name"] for gold in golds),
        "wrong_write": wrong_write,
        "invented": invented,
    }


def interval(good, n, z=1.96):
    """Wilson's 95 % interval of a share."""
    if not n:
        return (0.0, 1.0)
    p, d = good / n, 1 + z * z / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / d
    middle = (p + z * z / (2 * n)) / d
    return (middle - half, middle + half)


def auroc(scores):
    """scores: (confidence, right) pairs."""
    good, bad = [s for s, ok in scores if ok], [s for s, ok in scores if not ok]
    return sum((a > b) + 0.5 * (a == b) for a in good for b in bad) / (len(good) * len(bad)) if good and bad else None


def calibration_error(scores, bins=10):
    """Expected calibration error on bins of equal mass, and a calibrated model's of this size (95th percentile)."""

    def error(pairs):
        pairs = sorted(pairs)
        parts = [pairs[len(pairs) * i // bins : len(pairs) * (i + 1) // bins] for i in range(bins)]
        return sum(abs(sum(s for s, _ in p) - sum(ok for _, ok in p)) for p in parts if p) / len(pairs)

    rng = random.Random(0)  # noqa: S311 - no secret hangs on it
    fair = sorted(error([(s, rng.random() < s) for s, _ in scores]) for _ in range(200))
    return error(scores), fair[189]


def summary(verdicts):
    """Rows (what, good, n, low, high)."""
    one = [v for v in verdicts if v["kind"] in ("read", "write", "follow")]
    rows = [
        ("one call right", sum(v["right"] for v in one), len(one)),
        ("right tool", sum(v["tool"] for v in one), len(one)),
        ("wrong write", sum(v["wrong_write"] for v in verdicts), len(verdicts)),
    ]
    rows += [
        (kind, sum(v["good"] for v in verdicts if v["kind"] == kind), sum(v["kind"] == kind for v in verdicts))
        for kind in KINDS
    ]
    return [(what, good, n, *interval(good, n)) for what, good, n in rows if n]
