"""Which texts are computed together. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def batches(lengths: Sequence[int], *, most_tokens: int) -> list[list[int]]:
    """Indices of texts, batch by batch, texts of like length together.

    Args:
        lengths: of the texts, in tokens.
        most_tokens: of a batch with its padding; a longer text is a batch of its own.

    A text shorter than half of a batch's longest begins another one: so less than half of what is computed is padding.
    """
    made: list[list[int]] = []
    longest = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if made and 2 * lengths[i] >= longest and longest * (len(made[-1]) + 1) <= most_tokens:
            made[-1].append(i)
        else:
            made.append([i])
            longest = lengths[i]
    return made
