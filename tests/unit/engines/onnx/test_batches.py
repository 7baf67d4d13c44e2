"""Which texts are computed together."""

from __future__ import annotations

import random

import pytest

from edged.engines.onnx.batches import batches


@pytest.mark.parametrize(
    ("lengths", "most", "wanted"),
    [
        ([], 100, []),
        ([7], 100, [[0]]),
        ([500], 100, [[0]]),
        ([10, 10, 10], 20, [[0, 1], [2]]),
        ([10, 40, 12, 39], 100, [[1, 3], [2, 0]]),
        ([10, 4, 5], 100, [[0, 2], [1]]),
        ([3, 3], 1, [[0], [1]]),
    ],
    ids=["none", "one", "longer_than_a_batch", "full", "alike_together", "short_apart", "alone"],
)
def test_batches_of_texts(lengths: list[int], most: int, wanted: list[list[int]]) -> None:
    """Longest first, alike together."""
    assert batches(lengths, most_tokens=most) == wanted


def test_every_text_once_and_padding_is_less_than_half() -> None:
    """Whatever the lengths."""
    chance = random.Random(1)
    for _ in range(200):
        lengths = [chance.randint(1, 600) for _ in range(chance.randint(1, 40))]
        made = batches(lengths, most_tokens=512)
        assert sorted(i for batch in made for i in batch) == list(range(len(lengths)))
        for batch in made:
            longest = max(lengths[i] for i in batch)
            assert len(batch) == 1 or longest * len(batch) <= 512
            assert 2 * sum(lengths[i] for i in batch) >= longest * len(batch)
