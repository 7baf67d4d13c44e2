"""Choosing tokens: top_k, min_p, and penalties for what the answer has already."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edged.engines.llama.sampler import Chain, Greedy, Logits, Penalized, sampler
from edged.types import Sampling

DRAWS = 200


def logits(*values: float) -> Logits:
    return np.array(values, np.float32)


def drawn(sampling: Sampling, row: Logits) -> set[int]:
    """Which tokens come up."""
    made = sampler(sampling)
    try:
        return {made.pick(row, None) for _ in range(DRAWS)}
    finally:
        made.close()


class Only:
    """A grammar that allows these tokens."""

    def __init__(self, *ids: int) -> None:
        self.ids = np.array(ids, np.intp)

    def holds(self, token: int) -> bool:
        return token in self.ids


def picked(sampling: Sampling, row: Logits, tokens: list[int], begin: int = 0, allowed: Any = None) -> int:
    made = sampler(sampling, tokens, begin)
    try:
        return made.pick(row, allowed)
    finally:
        made.close()


def test_neutral_penalties_cost_nothing() -> None:
    """No wrapper is in the way of a token."""
    assert type(sampler(Sampling())) is Greedy
    chain = sampler(Sampling(1.0, top_k=3, min_p=0.1))
    assert type(chain) is Chain
    chain.close()
    assert type(sampler(Sampling(presence_penalty=0.1))) is Penalized


def test_top_k_keeps_the_likeliest() -> None:
    """However hot it is."""
    row = logits(1.0, 1.1, 1.2, 1.3, 0.9)
    assert drawn(Sampling(2.0, seed=1), row) == {0, 1, 2, 3, 4}
    assert drawn(Sampling(2.0, seed=1, top_k=2), row) == {2, 3}
    assert drawn(Sampling(2.0, seed=1, top_k=1), row) == {3}
    assert drawn(Sampling(2.0, seed=1, top_k=100), row) == {0, 1, 2, 3, 4}


def test_min_p_keeps_what_is_likely_beside_the_likeliest() -> None:
    """Measured before the temperature, as llama.cpp does."""
    row = np.log(logits(0.5, 0.3, 0.15, 0.05))
    assert drawn(Sampling(1.5, seed=1), row) == {0, 1, 2, 3}
    assert drawn(Sampling(1.5, seed=1, min_p=0.2), row) == {0, 1, 2}
    assert drawn(Sampling(1.5, seed=1, min_p=0.9), row) == {0}


def test_penalty_of_presence_counts_once_and_of_frequency_each_time() -> None:
    """Forced tokens count as well: they are in the sequence."""
    row = logits(2.0, 1.0, 0.0)
    assert picked(Sampling(presence_penalty=0.9), row, [0, 0, 0]) == 0
    assert picked(Sampling(presence_penalty=1.1), row, [0]) == 1
    assert picked(Sampling(frequency_penalty=0.4), row, [0, 0]) == 0
    assert picked(Sampling(frequency_penalty=0.4), row, [0, 0, 0]) == 1
    assert picked(Sampling(frequency_penalty=-1.5), row, [1]) == 1  # a negative one makes it likelier


def test_penalty_of_repetition_lowers_logits_of_either_sign() -> None:
    """Dividing a negative one would raise it."""
    assert picked(Sampling(repeat_penalty=2.0), logits(1.5, 1.0), [0]) == 1
    assert picked(Sampling(repeat_penalty=2.0), logits(-1.0, -1.5), [0]) == 1


def test_prompt_is_not_penalised() -> None:
    """The mark that ends a turn is in it."""
    assert picked(Sampling(presence_penalty=2.0), logits(2.0, 1.0), [0, 0], begin=2) == 0
    assert picked(Sampling(presence_penalty=2.0), logits(2.0, 1.0), [1, 0], begin=1) == 1


def test_penalty_reads_what_was_appended_since_and_leaves_the_row_alone() -> None:
    """One token at a time, or several that a grammar forced or a draft was right about."""
    tokens: list[int] = [2]
    made = sampler(Sampling(presence_penalty=5.0), tokens, 1)
    row = logits(3.0, 2.0, 1.0)
    assert made.pick(row, None) == 0
    tokens += [0, 1]
    assert made.pick(row, None) == 2
    tokens.append(2)
    assert made.pick(row, None) == 0  # all are equally penalised again
    assert row.tolist() == [3.0, 2.0, 1.0]
    made.close()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_penalised_choice_stays_within_the_grammar(temperature: float) -> None:
    """However much its only token was used."""
    sampling = Sampling(temperature, presence_penalty=2.0, frequency_penalty=2.0, repeat_penalty=3.0, top_k=1)
    assert picked(sampling, logits(1.0, 9.0, 9.0), [0] * 50, allowed=Only(0)) == 0
