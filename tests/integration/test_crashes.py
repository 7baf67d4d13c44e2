"""What happens to a board, while it works: nothing is lost, nothing is done twice. The long form is
`scripts/bench durability`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.faults import AT_POINTS, FAULTS, NEEDS, ON_A_SMALL_DISK, Rig, may_mount

pytestmark = pytest.mark.broker

# One daemon goes through several, one after the other: a start of its own for each would take as long as they do.
SMALL_DISK = sorted(ON_A_SMALL_DISK)
ASKED_TWICE = [fault for fault in NEEDS if fault not in ON_A_SMALL_DISK]
OTHERS = ["SIGKILL at tool.effect", "SIGKILL at publish.done", *(fault for fault in FAULTS if fault not in NEEDS)]


@pytest.mark.parametrize("faults", [OTHERS, ASKED_TWICE, SMALL_DISK], ids=["daemon and link", "broker", "disk"])
async def test_promise_is_kept_whatever_happens(faults: list[str], tmp_path: Path) -> None:
    """Every request has one outcome, every effect happened as often as it is told, all copies of a reply are equal."""
    if faults is SMALL_DISK and not may_mount():
        pytest.skip("only root can mount a small file system")
    needs: dict[str, Any] = {}
    for fault in faults:
        needs |= NEEDS.get(fault, {})
    async with Rig(tmp_path, seed=1, **needs) as rig:
        load = rig.load()
        await rig.flowing()
        for fault in faults:
            await {**FAULTS, **AT_POINTS}[fault](rig)
        await rig.flowing()
        verdict = await rig.settle(load)
    assert verdict.kept, f"{verdict}\n{rig.failures()}\n{rig.daemon.text()[-4000:]}"
    assert verdict.effects > 0
