"""Admission, the token budget and the books of cells, as tables and as random walks."""

from __future__ import annotations

import random

import pytest

from edged.engine.scheduler import MIN_PREFIX_TOKENS, Scheduler, Step
from edged.engine.sequence import Sequence, common_length

PREFIX = list(range(1000, 1000 + 2 * MIN_PREFIX_TOKENS))


def sequence(order: int, *, prompt: int = 10, most: int = 10, interactive: bool = True, prefix: int = 0) -> Sequence:
    """A sequence with its own prompt, behind so many tokens of the common prefix."""
    tokens = [*PREFIX[:prefix], *(order * 100_000 + i for i in range(prompt))]
    return Sequence(
        order=order,
        interactive=interactive,
        tokens=tokens,
        n_prompt=len(tokens),
        prefix_tokens=prefix,
        max_tokens=most,
    )


def compute(scheduler: Scheduler, step: Step) -> None:
    """What the runner does after a decode, without a model: the next token is always 7."""
    for chunk in step.chunks:
        s = chunk.sequence
        s.n_computed += chunk.count
        if s.n_computed == s.prefix_tokens:
            scheduler.publish(s, Step())
        if chunk.is_last:
            s.tokens.append(7)


def handed_out(step: Step) -> list[tuple[int, int, int]]:
    return [(c.sequence.order, c.start, c.count) for c in step.chunks]


@pytest.mark.parametrize(
    ("a", "b", "length"),
    [([], [1], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2, 4], 2), ([1], [1, 2], 1), ([2], [1], 0)],
)
def test_common_length(a: list[int], b: list[int], length: int) -> None:
    assert common_length(a, b) == length


def test_schedule_admits_in_order_of_arrival_and_fills_the_budget() -> None:
    scheduler = Scheduler(1000, 4, 0)
    for i in range(3):
        scheduler.add(sequence(i, prompt=10))
    assert handed_out(scheduler.schedule(25)) == [(0, 0, 10), (1, 0, 10), (2, 0, 5)]


def test_schedule_puts_interactive_before_batch() -> None:
    scheduler = Scheduler(1000, 1, 0)
    scheduler.add(sequence(0, interactive=False))
    scheduler.add(sequence(1))
    step = scheduler.schedule(100)
    assert [s.order for s in step.admitted] == [1]
    assert [s.order for s in scheduler.waiting] == [0]


def test_schedule_gives_running_generations_their_token_before_a_long_prompt() -> None:
    scheduler = Scheduler(2000, 4, 0)
    scheduler.add(sequence(0))
    compute(scheduler, scheduler.schedule(32))
    scheduler.add(sequence(1, prompt=500))
    assert handed_out(scheduler.schedule(32)) == [(0, 10, 1), (1, 0, 31)]


def test_schedule_does_not_let_a_forced_run_take_the_others_token() -> None:
    scheduler = Scheduler(2000, 4, 0)
    for i in range(3):
        scheduler.add(sequence(i, most=200))
    compute(scheduler, scheduler.schedule(100))
    scheduler.running[0].tokens += [8] * 100
    assert handed_out(scheduler.schedule(32)) == [(0, 10, 30), (1, 10, 1), (2, 10, 1)]


def test_schedule_computes_an_interactive_prompt_before_an_older_batch_prompt() -> None:
    scheduler = Scheduler(2000, 4, 0)
    scheduler.add(sequence(0, prompt=100, interactive=False))
    scheduler.schedule(32)
    scheduler.add(sequence(1, prompt=20))
    assert handed_out(scheduler.schedule(32)) == [(1, 0, 20), (0, 0, 12)]


def test_admission_waits_for_cells_and_is_not_overtaken() -> None:
    """The small request behind the large one fits, and has to wait all the same: else the large one might for ever."""
    scheduler = Scheduler(100, 4, 0)
    first, large, small = sequence(0, prompt=40, most=20), sequence(1, prompt=50, most=20), sequence(2)
    for s in (first, large, small):
        scheduler.add(s)
    assert scheduler.schedule(64).admitted == [first]
    assert scheduler.remove(first)
    assert scheduler.schedule(64).admitted == [large, small]


def test_admission_waits_for_a_sequence_id() -> None:
    scheduler = Scheduler(1000, 2, 0)
    sequences = [sequence(i) for i in range(3)]
    for s in sequences:
        scheduler.add(s)
    assert scheduler.schedule(64).admitted == sequences[:2]
    scheduler.remove(sequences[0])
    assert scheduler.schedule(64).admitted == sequences[2:]


def test_add_refuses_what_never_fits() -> None:
    with pytest.raises(ValueError, match="never fits"):
        Scheduler(100, 4, 0).add(sequence(0, prompt=90, most=11))


def test_remove_tells_whether_cells_are_to_be_freed() -> None:
    scheduler = Scheduler(1000, 1, 0)
    running, waiting = sequence(0), sequence(1)
    scheduler.add(running)
    scheduler.add(waiting)
    scheduler.schedule(64)
    assert not scheduler.remove(waiting)
    assert scheduler.remove(running)
    assert not scheduler.remove(running)
    assert not scheduler.has_work
    assert scheduler.free_cells == 1000


def test_prefix_is_computed_once_and_shared() -> None:
    scheduler = Scheduler(1000, 4, 2)
    first, second = sequence(0, prefix=32), sequence(1, prefix=32)
    scheduler.add(first)
    scheduler.add(second)
    step = scheduler.schedule(256)
    assert handed_out(step) == [(0, 0, 32)]  # a chunk of its own, and the second one waits for it
    compute(scheduler, step)
    step = scheduler.schedule(256)
    assert step.admitted == [second]
    assert second.n_cached == 32
    assert handed_out(step) == [(0, 32, 10), (1, 32, 10)]
    assert scheduler.reserved_cells == 32 + 2 * 20


def test_prefix_in_progress_does_not_hold_up_others() -> None:
    scheduler = Scheduler(1000, 4, 2)
    for s in (sequence(0, prefix=32), sequence(1, prefix=32), sequence(2)):
        scheduler.add(s)
    assert [s.order for s in scheduler.schedule(256).admitted] == [0, 2]


def test_prefix_is_computed_by_the_next_one_when_the_first_is_cancelled() -> None:
    scheduler = Scheduler(1000, 4, 2)
    first, second = sequence(0, prefix=32), sequence(1, prefix=32)
    scheduler.add(first)
    scheduler.add(second)
    scheduler.schedule(16)
    scheduler.remove(first)
    assert handed_out(scheduler.schedule(64)) == [(1, 0, 32)]


def test_prefix_never_covers_the_last_token_of_a_prompt() -> None:
    """Without a token to compute there would be no logits."""
    scheduler = Scheduler(1000, 4, 2)
    scheduler.add(sequence(0, prefix=32))
    compute(scheduler, scheduler.schedule(256))
    bare = Sequence(order=1, interactive=True, tokens=PREFIX[:], n_prompt=32, prefix_tokens=31, max_tokens=5)
    scheduler.add(bare)
    scheduler.schedule(256)
    assert bare.n_cached == 31


def test_prefix_too_short_is_not_kept() -> None:
    scheduler = Scheduler(1000, 4, 2)
    scheduler.add(sequence(0, prefix=MIN_PREFIX_TOKENS - 1))
    compute(scheduler, scheduler.schedule(256))
    assert not scheduler.prefixes


def test_prefix_unused_longest_is_evicted_for_a_new_one() -> None:
    scheduler = Scheduler(1000, 4, 2)
    for i, start in enumerate((0, 100, 200)):
        tokens = list(range(start, start + 40))
        s = Sequence(order=i, interactive=True, tokens=tokens, n_prompt=40, prefix_tokens=32, max_tokens=5)
        scheduler.add(s)
        compute(scheduler, scheduler.schedule(256))
        scheduler.remove(s)
    assert [p.tokens[0] for p in scheduler.prefixes] == [100, 200]


def test_prefix_is_evicted_when_its_cells_are_needed_and_not_while_in_use() -> None:
    scheduler = Scheduler(100, 4, 2)
    user = sequence(0, prefix=32, prompt=8, most=10)
    scheduler.add(user)
    compute(scheduler, scheduler.schedule(256))
    large = sequence(1, prompt=60, most=30)
    scheduler.add(large)
    assert not scheduler.schedule(256).admitted
    scheduler.remove(user)
    step = scheduler.schedule(256)
    assert step.admitted == [large]
    assert len(step.evicted) == 1
    assert not scheduler.prefixes


def test_prefix_is_given_up_where_it_is_what_leaves_no_room() -> None:
    """A kept prefix that is used in part only takes more cells than it saves."""
    scheduler = Scheduler(100, 4, 2)
    user = sequence(0, prefix=32, prompt=8, most=10)
    scheduler.add(user)
    compute(scheduler, scheduler.schedule(256))
    scheduler.remove(user)
    partly = Sequence(
        order=1, interactive=True, tokens=PREFIX[:20] + [5] * 60, n_prompt=80, prefix_tokens=20, max_tokens=20
    )
    scheduler.add(partly)
    step = scheduler.schedule(256)
    assert step.admitted == [partly]
    assert partly.n_cached == 0
    assert not scheduler.prefixes


@pytest.mark.parametrize("seed", range(30))
def test_books_balance_on_a_random_walk_and_everybody_ends(seed: int) -> None:
    """Arrivals, cancels and steps in any order: never an id twice, never more cells than there are, nobody starves."""
    rng = random.Random(seed)
    scheduler = Scheduler(rng.choice((150, 300, 1000)), rng.randint(1, 5), rng.randint(0, 3))
    left = [
        sequence(
            i,
            prompt=rng.randint(1, 60),
            most=rng.randint(1, 40),
            interactive=rng.random() < 0.5,
            prefix=rng.choice((0, 0, 20, 32)),
        )
        for i in range(40)
    ]
    alive: list[Sequence] = []
    for _ in range(3000):
        if left and rng.random() < 0.3:
            alive.append(left.pop())
            scheduler.add(alive[-1])
        if alive and rng.random() < 0.05:
            scheduler.remove(alive.pop(rng.randrange(len(alive))))
        compute(scheduler, scheduler.schedule(rng.choice((32, 64))))
        for s in [s for s in alive if len(s.tokens) - s.n_prompt >= s.max_tokens]:
            alive.remove(s)
            scheduler.remove(s)
        ids = [s.seq_id for s in scheduler.running] + [p.seq_id for p in scheduler.prefixes]
        assert len(set(ids)) == len(ids)
        assert scheduler.free_cells >= 0
        for p in scheduler.prefixes:
            assert p.users == sum(s.prefix is p for s in scheduler.running)
    assert not left
    assert not alive
    assert not scheduler.has_work
