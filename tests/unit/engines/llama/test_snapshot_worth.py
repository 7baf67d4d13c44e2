"""What reading is worth, from what was measured."""

from __future__ import annotations

import msgspec
import pytest

from edged.engines.llama.snapshot_worth import CACHE_BYTES_PER_S, MEDIUM_BYTES_PER_S, MOST_BARRED, Worth

MIB = 2**20


def test_estimates_follow_what_was_measured() -> None:
    """From the first guess to a card of 10 MB/s in a few reads, by the time they took."""
    worth = Worth()
    assert worth.read_s(12 * MIB, cached=False) == pytest.approx(12 * MIB / MEDIUM_BYTES_PER_S)
    for _ in range(4):
        worth.learn_read(10_000_000, 1.0, cached=False)
    assert worth.read_s(10_000_000, cached=False) == pytest.approx(1.0, rel=0.1)
    assert worth.read_s(10_000_000, cached=True) == pytest.approx(10_000_000 / CACHE_BYTES_PER_S)
    for _ in range(10):
        worth.learn_restore(10_000_000, 0.5)
    assert worth.read_s(10_000_000, cached=False) == pytest.approx(1.5, rel=0.1)


def test_one_slow_read_is_forgotten() -> None:
    """Being turned down again and again brings an estimate back to the first guess, and never beyond a measurement."""
    worth = Worth()
    worth.learn_read(MIB, 10.0, cached=False)
    worth.learn_read(2**30, 0.5, cached=True)
    fast = worth.cache
    for _ in range(100):
        worth.forgive(cached=False)
        worth.forgive(cached=True)
    assert worth.medium == MEDIUM_BYTES_PER_S
    assert worth.cache == fast > CACHE_BYTES_PER_S


@pytest.mark.parametrize(("rate", "barred"), [(100.0, True), (200.0, True), (51.0, True), (50.0, False), (10.0, False)])
def test_what_was_given_up_is_tried_again_when_computing_is_a_lot_slower(rate: float, barred: bool) -> None:
    """It was given up at 100 tokens/s."""
    worth = Worth()
    worth.bar("a", 100.0)
    assert worth.is_barred("a", rate) is barred
    assert not worth.is_barred("b", rate)


def test_barred_ones_are_bounded() -> None:
    """The oldest is forgotten."""
    worth = Worth()
    for i in range(MOST_BARRED + 1):
        worth.bar(str(i), 1.0)
    assert len(worth.barred) == MOST_BARRED
    assert "0" not in worth.barred


def test_only_what_matters_is_written_down_again() -> None:
    """Flash is worn by it."""
    worth = Worth()
    before = worth.copy()
    worth.learn_read(int(MEDIUM_BYTES_PER_S), 1.5, cached=False)
    assert not worth.differs(before)
    worth.learn_read(int(MEDIUM_BYTES_PER_S), 20.0, cached=False)
    assert worth.differs(before)
    before = worth.copy()
    worth.bar("a", 1.0)
    assert worth.differs(before)
    assert not worth.differs(msgspec.json.decode(msgspec.json.encode(worth), type=Worth))


@pytest.mark.parametrize("text", ['{"medium": 0}', '{"cache": -1.0}', '{"restore_s_per_byte": -1}', "{", "[]"])
def test_a_file_with_impossible_figures_is_refused(text: str) -> None:
    """They would be divided by."""
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(text, type=Worth)
