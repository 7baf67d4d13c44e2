"""Memory as a test wants it: what models take, and what the kernel says there is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edged.host import memory
from edged.types import MemoryNeed, ModelSpec


class Even:
    """Implements `interfaces.Sizer`: every model takes the same."""

    def __init__(self, size: int) -> None:
        self._need = MemoryNeed(weights=size)

    async def predict(self, spec: ModelSpec, spare: Callable[[], int]) -> MemoryNeed:
        return self._need

    async def observe(self, spec: ModelSpec, measured_bytes: int) -> None:
        """Nothing is learned."""


def plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A board whose memory is nowhere near its end, and a daemon that takes none."""
    monkeypatch.setattr(memory, "available_bytes", lambda: 10**9)
    monkeypatch.setattr(memory, "private_bytes", lambda: 0)
    monkeypatch.setattr(memory, "file_bytes", lambda: 0)
    monkeypatch.setattr(memory, "cgroups", list)
