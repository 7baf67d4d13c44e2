"""What happens to a board, while it works: nothing is lost, nothing is done twice. The long form is
`scripts/bench durability`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crashes import FAULTS, ON_A_SMALL_DISK, Rig, may_mount

pytestmark = pytest.mark.broker

TIMES = 2


@pytest.mark.parametrize("fault", FAULTS)
async def test_promise_is_kept_whatever_happens(fault: str, tmp_path: Path) -> None:
    """Every request has one outcome, every effect happened as often as it is told, all copies of a reply are equal."""
    if fault in ON_A_SMALL_DISK and not may_mount():
        pytest.skip("only root can mount a small file system")
    async with Rig(tmp_path, seed=1, small_disk=fault in ON_A_SMALL_DISK) as rig:
        load = rig.load()
        await rig.flowing()
        for _ in range(TIMES):
            await FAULTS[fault](rig)
        await rig.flowing()
        verdict = await rig.settle(load)
    assert verdict.kept, f"{verdict}\n{rig.daemon.text()[-4000:]}"
    assert verdict.effects > 0
