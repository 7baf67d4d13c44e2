"""What a model was predicted to take, and what the kernel says that it took."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.client import AsyncClient
from edged.host import memory
from tests.support.real_model import real

WITHIN = 0.05


def taken(pid: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Private memory and mapped files of another process, in bytes."""
    monkeypatch.setattr(memory, "STATUS", Path(f"/proc/{pid}/status"))
    return memory.private_bytes() + memory.file_bytes()


async def test_prediction_is_near_what_a_load_and_a_request_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts that add up, beside what was measured; with keys and values in 8 bits, which both know."""
    daemon = real(tmp_path)
    daemon.drop_in('[models.long]\nkv_type = "q8_0"\n', "60.toml")
    async with daemon, AsyncClient(daemon.socket) as client:
        before = taken(daemon.pid, monkeypatch)
        await client.ask("What is new in the garden?", agent="reader", max_tokens=8)
        status = await client.call("status")
        took = taken(daemon.pid, monkeypatch) - before
    model = status["models"]["long"]
    parts = model["predicted"]
    assert model["predicted_bytes"] == sum(parts.values()) - parts["prefixes"]
    assert parts["kv"] == 30 * 3 * (64 + 64) // 32 * 34 * 4096
    assert abs(model["predicted_bytes"] - took) < WITHIN * took
    assert abs(model["measured_bytes"] - took) < 2 * WITHIN * took
