"""What holds for the times of every reply."""

from __future__ import annotations

from typing import Any

PARTS = ("queue_ms", "load_ms", "prefill_ms", "decode_ms", "tools_ms", "other_ms")
ROUNDING_MS = 0.001  # of adding up floats that are tenths


def assert_adds_up(timing: dict[str, Any]) -> None:
    """Each millisecond has one home, and the first token is a point on the line."""
    assert set(timing) == {*PARTS, "first_token_ms", "total_ms"}
    assert all(value >= 0 for value in timing.values()), timing
    assert abs(sum(timing[name] for name in PARTS) - timing["total_ms"]) < ROUNDING_MS, timing
    assert timing["first_token_ms"] <= timing["total_ms"], timing
