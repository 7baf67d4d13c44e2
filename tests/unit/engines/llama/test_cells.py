"""The books of cells."""

from __future__ import annotations

import pytest

from edged.engines.llama.cells import Cells


def test_cells_grow_share_and_come_back_when_nobody_uses_them() -> None:
    cells = Cells(10)
    cells.grow(0, 6)
    cells.share(0, 1, 4)
    cells.grow(1, 2)
    assert (cells.free, cells.length(0), cells.length(1)) == (2, 6, 6)
    assert (cells.alone(0), cells.alone(1)) == (2, 2)
    cells.release(0)
    assert (cells.free, cells.alone(1)) == (4, 6)
    cells.release(1)
    assert cells.free == 10


def test_cut_gives_up_the_end_and_leaves_what_others_share() -> None:
    cells = Cells(10)
    cells.grow(0, 8)
    cells.share(0, 1, 6)
    cells.cut(0, 3)
    assert (cells.free, cells.length(0), cells.length(1)) == (4, 3, 6)
    assert (cells.alone(0), cells.alone(1)) == (0, 3)


def test_used_by_counts_shared_cells_once() -> None:
    cells = Cells(20)
    cells.grow(0, 8)
    cells.share(0, 1, 6)
    cells.grow(1, 1)
    cells.grow(2, 3)
    assert cells.used_by([0, 1]) == 9
    assert cells.used_by([1], beside=(0, 8)) == 9
    assert cells.used_by([2], beside=(0, 5)) == 8
    assert cells.used_by([]) == 0


def test_what_is_not_there_cannot_be_given() -> None:
    cells = Cells(4)
    cells.grow(0, 3)
    with pytest.raises(ValueError, match="2 cells are wanted and 1 are free"):
        cells.grow(1, 2)
    with pytest.raises(ValueError, match="cannot share 4"):
        cells.share(0, 1, 4)
    assert cells.free == 1
