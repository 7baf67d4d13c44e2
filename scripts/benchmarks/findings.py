"""Rows of measurements that have a bound of their own: what was found, what is to be reached, whether it was."""

from __future__ import annotations

from benchmarks.report import Row
from benchmarks.smaps import MIB


def finding(
    what: str,
    found: float | str,
    unit: str = "",
    *,
    at_most: float | None = None,
    peer: object = "",
    n: int = 0,
    note: str = "",
) -> Row:
    """A row.

    Args:
        at_most: what is to be reached; None where the figure only explains others.
        peer: the same of a peer.
    """
    reached = "" if at_most is None else "yes" if isinstance(found, int | float) and found <= at_most else "NO"
    return {
        "what": what,
        "edged": round(found, 2) if isinstance(found, float) else found,
        "peer": peer,
        "unit": unit,
        "to reach": "" if at_most is None else f"at most {at_most:g}",
        "reached": reached,
        "n": n or "",
        "note": note,
    }


def without(section: str, why: str) -> Row:
    """The row of what could not be measured."""
    return {**finding(section, "not measured", note=why), "reached": "NO"}


def mib(size: float) -> float:
    """Bytes as MiB."""
    return round(size / MIB, 1)
