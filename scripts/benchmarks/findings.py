"""Rows of measurements that have a bound of their own: what was found, what is to be reached, whether it was."""

from __future__ import annotations

import math

from benchmarks.report import Row
from benchmarks.smaps import MIB


def finding(
    what: str,
    found: float | str,
    unit: str = "",
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    peer: object = "",
    n: int = 0,
    note: str = "",
) -> Row:
    """A row.

    Args:
        at_most, at_least: what is to be reached; neither where the figure only explains others.
        peer: the same of a peer.
    """
    bounds = [("at most", at_most), ("at least", at_least)]
    wanted = " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
    least, most = -math.inf if at_least is None else at_least, math.inf if at_most is None else at_most
    within = isinstance(found, int | float) and least <= found <= most
    return {
        "what": what,
        "edged": round(found, 2) if isinstance(found, float) else found,
        "peer": peer,
        "unit": unit,
        "to reach": wanted,
        "reached": ("yes" if within else "NO") if wanted else "",
        "n": n or "",
        "note": note,
    }


def without(section: str, why: str) -> Row:
    """The row of what could not be measured."""
    return {**finding(section, "not measured", note=why), "reached": "NO"}


def mib(size: float) -> float:
    """Bytes as MiB."""
    return round(size / MIB, 1)
