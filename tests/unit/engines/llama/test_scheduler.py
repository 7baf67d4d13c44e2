"""Admission, the token budget, what is kept and who makes room, as tables and as random walks."""

from __future__ import annotations

import random

import pytest

from edged.engines.llama.plan import Budget, Forget, Share, StepPlan, SwapIn, SwapOut
from edged.engines.llama.scheduler import BATCH_SHARE, GROWTH_CELLS, Scheduler
from edged.engines.llama.sequence import HALF_LIFE_S, MIN_SHARED_TOKENS, Sequence, common_length

PREFIX = list(range(1000, 1000 + 2 * MIN_SHARED_TOKENS))


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


def budget(most: int = 256, rhythm: int = 16, outputs: int = 24, batch: int = 16) -> Budget:
    return Budget(most, rhythm, outputs, batch)


def scheduler(cells: int = 1000, running: int = 4, ids: int = 6, *, sharing: bool = True) -> Scheduler:
    return Scheduler(cells, running, ids, sharing=sharing)


def compute(scheduler: Scheduler, step: StepPlan) -> None:
    """What the runner does after a decode, without a model: the next token is always 7, so a draft of 7s is right."""
    for chunk in step.chunks:
        s = chunk.sequence
        s.n_computed += chunk.count
        if s.prefix_tokens and s.n_computed >= s.prefix_tokens:
            scheduler.context.publish(s, StepPlan())
        if chunk.is_last:
            right = common_length((7,) * len(chunk.drafts), chunk.drafts)
            s.tokens += [7] * (right + 1)
            s.n_computed += right
            scheduler.cut(s)


def run(scheduler: Scheduler, *sequences: Sequence, now: float = 0.0) -> None:
    """Add them and compute until all prompts are done."""
    for s in sequences:
        scheduler.add(s)
    while any(not s.prompt_done for s in sequences):
        compute(scheduler, scheduler.schedule(budget(), now))


def handed_out(step: StepPlan) -> list[tuple[int, int, int]]:
    return [(c.sequence.order, c.start, c.count) for c in step.chunks]


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 200])
def test_common_length(length: int) -> None:
    a, b = list(range(length)), list(range(length))
    assert common_length(a, b) == common_length([*a, 1, 5], [*b, 2, 5]) == common_length([*a, 1], b) == length


# The token budget


def test_schedule_admits_in_order_of_arrival_and_fills_the_budget() -> None:
    s = scheduler()
    for i in range(3):
        s.add(sequence(i, prompt=10))
    assert handed_out(s.schedule(budget(25), 0)) == [(0, 0, 10), (1, 0, 10), (2, 0, 5)]


def test_schedule_puts_interactive_before_batch() -> None:
    s = scheduler(running=1)
    s.add(sequence(0, interactive=False))
    s.add(sequence(1))
    assert [a.order for a in s.schedule(budget(), 0).admitted] == [1]
    assert [w.order for w in s.waiting] == [0]


def test_running_generation_keeps_its_rhythm_beside_a_long_prompt() -> None:
    s = scheduler(2000)
    run(s, sequence(0))
    s.add(sequence(1, prompt=500))
    assert handed_out(s.schedule(budget(64, rhythm=16), 0)) == [(0, 10, 1), (1, 0, 16)]


def test_forced_run_does_not_take_the_others_token() -> None:
    s = scheduler(2000)
    run(s, *(sequence(i, most=200) for i in range(3)))
    for running in s.running:
        running.tokens = running.tokens[: running.n_computed + 1]
    s.running[0].tokens += [8] * 100
    assert min(handed_out(s.schedule(budget(32), 0))) == (0, s.running[0].n_computed, 30)


def test_interactive_prompt_goes_before_an_older_batch_prompt() -> None:
    s = scheduler(2000)
    s.add(sequence(0, prompt=100, interactive=False))
    s.schedule(budget(32), 0)
    s.add(sequence(1, prompt=40))
    assert handed_out(s.schedule(budget(32), 0)) == [(1, 0, 32)]


def test_batch_work_has_its_share_beside_a_long_prompt() -> None:
    s = scheduler(2000)
    s.add(sequence(0, prompt=100, interactive=False))
    s.schedule(budget(32, rhythm=16), 0)
    run(s, generating := sequence(1, prompt=20, most=100))
    done = s.running[0].n_computed
    s.add(sequence(2, prompt=200))
    first, *_, batch = handed_out(s.schedule(budget(32, rhythm=16), 0))
    assert first[0] == generating.order
    assert batch == (0, done, -(-17 // BATCH_SHARE))


def test_sequence_that_makes_way_is_nothing_to_begin_from() -> None:
    """Though its tokens begin alike: its cells go before the other one comes."""
    s = scheduler(running=1)
    run(s, old := sequence(0, prompt=60, interactive=False))
    fresh = sequence(1, prompt=60)
    fresh.tokens[:40] = old.tokens[:40]
    s.add(fresh)
    step = s.schedule(budget(), 0)
    assert step.admitted == [fresh]
    assert [type(move) for move in step.moves] == [SwapOut]
    assert handed_out(step) == [(1, 0, 60)]


def test_steps_of_batch_work_alone_are_short_and_take_turns() -> None:
    """Whoever comes meanwhile waits for the end of one."""
    s = scheduler(2000, running=8, ids=12)
    run(s, *(sequence(i, interactive=False, most=100) for i in range(6)))
    seen = []
    for _ in range(3):
        step = s.schedule(budget(batch=4), 0)
        seen.append(sorted(c.sequence.order for c in step.chunks))
        compute(s, step)
    assert [len(orders) for orders in seen] == [4, 4, 4]
    assert sorted(seen[0] + seen[1] + seen[2]) == sorted([*range(6)] * 2)
    s.add(sequence(9, prompt=200, interactive=False))
    step = s.schedule(budget(64, rhythm=16, batch=4), 0)
    assert sum(c.count for c in step.chunks) == 16


def test_drafts_of_batch_work_alone_keep_its_steps_short() -> None:
    s = scheduler(2000)
    run(s, one := sequence(0, interactive=False, most=100))
    one.drafts = (7,) * 7
    assert len(s.schedule(budget(batch=4), 0).chunks[0].drafts) == 3


def test_step_that_brings_a_first_token_carries_no_batch_work_but_the_next_does() -> None:
    """However many short prompts follow one another."""
    s = scheduler(2000, running=20, ids=24)
    run(s, sequence(0, interactive=False, most=500))
    carried = []
    for i in range(1, 9):
        s.add(sequence(i, prompt=12))
        step = s.schedule(budget(64), 0)
        carried.append(any(c.sequence.order == 0 for c in step.chunks))
        compute(s, step)
    assert carried == [False, True] * 4


def test_batch_generations_take_turns_beside_an_interactive_one() -> None:
    """The interactive one gets a token every step, one batch sequence rides along, and none starves."""
    s = scheduler(2000, running=5, ids=8)
    batch = [sequence(i, interactive=False, most=100) for i in range(3)]
    run(s, *batch)
    urgent = sequence(3, most=100)
    run(s, urgent)
    served: list[int] = []
    for _ in range(6):
        step = s.schedule(budget(), 0)
        assert step.chunks[0].sequence is urgent
        served += [c.sequence.order for c in step.chunks[1:]]
        compute(s, step)
    assert sorted(served) == [0, 0, 1, 1, 2, 2]


# Admission


def test_admission_waits_for_cells_and_is_not_overtaken() -> None:
    """The small request behind the large one fits, and has to wait all the same: else the large one might for ever."""
    s = scheduler(100)
    first, large, small = sequence(0, prompt=40, most=20), sequence(1, prompt=50, most=20), sequence(2)
    run(s, first)
    s.add(large)
    s.add(small)
    assert not s.schedule(budget(64), 0).admitted
    s.remove(first, StepPlan())
    assert s.schedule(budget(64), 0).admitted[0] is large


def test_admission_leaves_room_to_grow_for_those_who_run() -> None:
    """Who is admitted into the last cell would have to make room again at once."""
    s = scheduler(100)
    run(s, sequence(0, prompt=40, most=60))
    fits = 100 - 41 - 2 * GROWTH_CELLS
    s.add(sequence(1, prompt=fits + 5, most=5))
    assert not s.schedule(budget(), 0).admitted


def test_admission_waits_for_a_place() -> None:
    s = scheduler(running=2)
    sequences = [sequence(i) for i in range(3)]
    for each in sequences:
        s.add(each)
    assert s.schedule(budget(64), 0).admitted == sequences[:2]
    s.remove(sequences[0], StepPlan())
    assert s.schedule(budget(64), 0).admitted == sequences[2:]


def test_add_refuses_what_never_fits() -> None:
    with pytest.raises(ValueError, match="never fits"):
        scheduler(100).add(sequence(0, prompt=90, most=11))


def test_remove_frees_what_runs_and_forgets_what_waits() -> None:
    s = scheduler(running=1)
    running, waiting = sequence(0), sequence(1)
    s.add(running)
    s.add(waiting)
    s.schedule(budget(), 0)
    step = StepPlan()
    s.remove(waiting, step)
    assert not step.moves
    s.remove(running, step)
    assert [type(m) for m in step.moves] == [Forget]
    s.remove(running, step)
    assert not s.has_work
    assert s.cells.free == 1000


# What is kept


def test_prefix_is_computed_once_and_shared() -> None:
    s = scheduler()
    first, second = sequence(0, prefix=32), sequence(1, prefix=32)
    s.add(first)
    s.add(second)
    step = s.schedule(budget(), 0)
    assert handed_out(step) == [(0, 0, 32)]  # a chunk of its own, and the second one waits for it
    compute(s, step)
    step = s.schedule(budget(), 0)
    assert step.admitted == [second]
    assert handed_out(step) == [(0, 32, 10), (1, 32, 10)]
    assert s.cells.total - s.cells.free == 32 + 10 + 10


def test_prefix_in_progress_does_not_hold_up_others() -> None:
    s = scheduler()
    for each in (sequence(0, prefix=32), sequence(1, prefix=32), sequence(2)):
        s.add(each)
    assert [a.order for a in s.schedule(budget(), 0).admitted] == [0, 2]


def test_prefix_is_computed_by_the_next_one_when_the_first_is_cancelled() -> None:
    s = scheduler()
    first, second = sequence(0, prefix=32), sequence(1, prefix=32)
    s.add(first)
    s.add(second)
    s.schedule(budget(8), 0)
    s.remove(first, StepPlan())
    assert handed_out(s.schedule(budget(64), 0)) == [(1, 0, 32)]


def test_last_token_of_a_prompt_is_never_shared() -> None:
    """Without a token to compute there would be no logits."""
    s = scheduler()
    run(s, sequence(0, prefix=32))
    bare = Sequence(order=1, interactive=True, tokens=PREFIX[:], n_prompt=32, prefix_tokens=31, max_tokens=5)
    s.add(bare)
    assert handed_out(s.schedule(budget(), 0))[-1] == (1, 31, 1)


def test_prefix_too_short_is_not_kept() -> None:
    s = scheduler()
    run(s, sequence(0, prefix=MIN_SHARED_TOKENS - 1))
    assert not s.kept


def test_ended_sequence_is_where_a_conversation_goes_on() -> None:
    """The next turn begins with all that was said, and shares it."""
    s = scheduler()
    first = sequence(0, prompt=40)
    run(s, first)
    compute(s, s.schedule(budget(), 0))
    s.retire(first, StepPlan())
    said = first.tokens[: first.n_computed]
    turn = Sequence(
        order=1, interactive=True, tokens=[*said, 5, 6], n_prompt=len(said) + 2, prefix_tokens=0, max_tokens=5
    )
    s.add(turn)
    step = s.schedule(budget(), 0)
    assert [(m.source, m.length) for m in step.moves if isinstance(m, Share)] == [(first.seq_id, len(said))]
    assert handed_out(step) == [(1, len(said), 2)]


def test_repeatable_sequence_begins_from_its_fixed_prefix_only() -> None:
    """Computed in the same chunks each time, whatever else is in the context, and however fast the board is."""
    s = scheduler()
    chunks = []
    for order, most in enumerate((64, 32)):
        again = sequence(7, prefix=32)
        again.order, again.repeatable = order, True
        s.add(again)
        while not again.prompt_done:
            step = s.schedule(budget(most), 0)
            chunks.append([(c.start, c.count) for c in step.chunks])
            compute(s, step)
        s.retire(again, StepPlan())
    assert chunks == [[(0, 16)], [(16, 16)], [(32, 10)], [(32, 10)]]


def test_running_sequence_is_shared_too() -> None:
    s = scheduler()
    first = sequence(0, prompt=40)
    run(s, first)
    again = Sequence(order=1, interactive=True, tokens=first.tokens[:40], n_prompt=40, prefix_tokens=0, max_tokens=5)
    s.add(again)
    s.schedule(budget(), 0)
    assert again.n_computed == 39


def test_longer_state_takes_the_place_of_what_it_continues() -> None:
    s = scheduler()
    first = sequence(0, prompt=40)
    run(s, first)
    s.retire(first, StepPlan())
    longer = Sequence(
        order=1, interactive=True, tokens=[*first.tokens[:40], 5, 6], n_prompt=42, prefix_tokens=0, max_tokens=5
    )
    run(s, longer)
    s.retire(longer, StepPlan())
    assert [len(k.tokens) for k in s.kept] == [42]


def test_state_least_likely_to_be_of_use_is_evicted_first() -> None:
    """What was used long ago before what was used just now; a fixed prefix outlasts conversations of its age."""
    s = scheduler(200)
    old, prefixed, fresh = sequence(0, prompt=40), sequence(1, prefix=32, prompt=8), sequence(2, prompt=40)
    for each, now in ((old, 0.0), (prefixed, 0.0), (fresh, HALF_LIFE_S)):
        run(s, each, now=now)
        s.retire(each, StepPlan())
    kept = [k.tokens[0] for k in sorted(s.kept, key=lambda k: k.chance(HALF_LIFE_S))]
    assert kept == [0, PREFIX[0], 200_000, PREFIX[0]]
    s.add(sequence(3, prompt=90))
    s.schedule(budget(), HALF_LIFE_S)
    assert 0 not in [k.tokens[0] for k in s.kept]
    assert any(k.fixed for k in s.kept)


def test_kept_state_gives_way_to_running_work_and_not_the_other_way_round() -> None:
    s = scheduler(100)
    user = sequence(0, prefix=32, prompt=8, most=10)
    run(s, user)
    large = sequence(1, prompt=80, most=20)
    s.add(large)
    assert not s.schedule(budget(), 0).admitted
    s.retire(user, StepPlan())
    step = s.schedule(budget(), 0)
    assert step.admitted == [large]
    assert not s.kept


def test_state_that_is_shared_in_part_gives_up_the_rest() -> None:
    """What the request shares stays; what else lies there makes room for it."""
    s = scheduler(100)
    user = sequence(0, prefix=32, prompt=30, most=10)
    run(s, user)
    s.retire(user, StepPlan())
    partly = Sequence(
        order=1, interactive=True, tokens=PREFIX[:20] + [5] * 60, n_prompt=80, prefix_tokens=0, max_tokens=20
    )
    s.add(partly)
    step = s.schedule(budget(), 0)
    assert step.admitted == [partly]
    assert handed_out(step) == [(1, 20, 60)]


def test_prefix_from_elsewhere_gets_a_place_where_only_kept_states_have_to_go() -> None:
    s = scheduler(100)
    old = sequence(0, prompt=60)
    run(s, old)
    assert s.adopt(tuple(PREFIX) * 2, StepPlan()) is None  # the running one is not disturbed
    s.retire(old, StepPlan())
    step = StepPlan()
    kept = s.adopt(tuple(PREFIX) * 2, step)
    assert kept is not None
    assert [type(m) for m in step.moves] == [Forget]
    assert s.best_match([*PREFIX, *PREFIX, 1]) == (kept.seq_id, 64)


def test_nothing_is_kept_where_the_memory_cannot_share() -> None:
    s = scheduler(sharing=False)
    first = sequence(0, prefix=32)
    run(s, first)
    s.retire(first, StepPlan())
    assert not s.kept
    again = sequence(0, prefix=32)
    run(s, again)
    assert s.adopt(tuple(PREFIX), StepPlan()) is None
    assert s.cells.free == 1000 - len(again.tokens[: again.n_computed])


# Making room


def test_interactive_request_takes_the_place_of_a_batch_one_which_goes_on_later() -> None:
    s = scheduler(running=2)
    batch = [sequence(i, interactive=False, most=50) for i in range(2)]
    run(s, *batch)
    urgent = sequence(2)
    s.add(urgent)
    step = s.schedule(budget(), 0)
    aside = [m for m in step.moves if isinstance(m, SwapOut)]
    assert [(m.sequence, m.length) for m in aside] == [(batch[1], 10)]  # the younger one, with all it had computed
    assert urgent in s.running
    compute(s, step)
    s.remove(urgent, StepPlan())
    step = s.schedule(budget(), 0)
    assert [m.sequence for m in step.moves if isinstance(m, SwapIn)] == [batch[1]]
    assert (1, 10, 1) in handed_out(step)


def test_interactive_request_does_not_make_interactive_ones_stop() -> None:
    s = scheduler(running=1)
    run(s, sequence(0))
    s.add(sequence(1))
    assert not s.schedule(budget(), 0).admitted


def test_state_that_was_not_copied_is_computed_again() -> None:
    s = scheduler(running=1)
    batch = sequence(0, interactive=False, most=50)
    run(s, batch)
    urgent = sequence(1)
    run(s, urgent)
    batch.n_saved = 0  # the runner found that cheaper
    s.remove(urgent, StepPlan())
    step = s.schedule(budget(), 0)
    assert not [m for m in step.moves if isinstance(m, SwapIn)]
    assert handed_out(step) == [(0, 0, 11)]


def test_younger_one_makes_room_when_running_ones_grow_out_of_the_cells() -> None:
    """Both were admitted, both want more than there is: the older one gets on, the younger ends afterwards."""
    s = scheduler(100)
    old, young = sequence(0, prompt=20, most=70), sequence(1, prompt=20, most=70)
    run(s, old, young)
    ended: list[int] = []
    aside = 0
    for _ in range(300):
        step = s.schedule(budget(), 0)
        aside += sum(isinstance(m, SwapOut) for m in step.moves)
        compute(s, step)
        for each in list(s.running):
            if len(each.tokens) - each.n_prompt >= each.max_tokens:
                ended.append(each.order)
                s.retire(each, StepPlan())
    assert ended == [0, 1]
    assert aside == 1


# Drafts


def test_drafts_ride_along_and_wrong_ones_are_taken_back() -> None:
    s = scheduler()
    first = sequence(0, most=100)
    run(s, first)
    first.drafts = (7, 7, 8, 7)
    step = s.schedule(budget(), 0)
    assert step.chunks[0].drafts == (7, 7, 8, 7)
    compute(s, step)
    assert first.n_computed == 10 + 1 + 2
    assert s.cells.length(first.seq_id) == 13


@pytest.mark.parametrize(
    ("given", "left"), [(budget(3), 2), (budget(outputs=4), 3), (budget(), 5)], ids=["tokens", "outputs", "drafts"]
)
def test_drafts_take_only_what_is_left(given: Budget, left: int) -> None:
    s = scheduler()
    first = sequence(0, most=100)
    run(s, first)
    first.drafts = (7,) * 5
    assert len(s.schedule(given, 0).chunks[0].drafts) == left


def test_drafts_never_make_anybody_else_make_room() -> None:
    s = scheduler(64)
    kept = sequence(0, prompt=40)
    run(s, kept)
    s.retire(kept, StepPlan())
    first = sequence(1, prompt=20, most=40)
    run(s, first)
    first.drafts = (7,) * 7
    step = s.schedule(budget(), 0)
    assert len(step.chunks[0].drafts) == 3  # of 64 cells 40 are kept and 21 are in use
    assert s.kept


def test_drafts_wait_while_a_prompt_is_computed() -> None:
    s = scheduler()
    first = sequence(0, most=100)
    run(s, first)
    first.drafts = (7, 7)
    s.add(sequence(1, prompt=100))
    assert not any(c.drafts for c in s.schedule(budget(), 0).chunks)


# Random walks


@pytest.mark.parametrize("seed", range(40))
def test_books_balance_on_a_random_walk_and_everybody_ends(seed: int) -> None:
    """Arrivals, cancels, drafts and steps in any order: no id twice, no cell lost, moves that can be done in their
    order, nobody starves."""
    rng = random.Random(seed)
    running = rng.randint(1, 5)
    s = scheduler(rng.choice((150, 300, 1000)), running, running + rng.randint(1, 4), sharing=rng.random() < 0.8)
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
    for now in range(3000):
        if left and rng.random() < 0.3:
            alive.append(left.pop())
            s.add(alive[-1])
        if alive and rng.random() < 0.05:
            s.remove(alive.pop(rng.randrange(len(alive))), StepPlan())
        for each in s.running:
            each.drafts = tuple(rng.choice((7, 7, 8)) for _ in range(rng.randint(0, 3)))
        step = s.schedule(budget(rng.choice((32, 64))), float(now))
        for move in step.moves:
            if isinstance(move, SwapOut) and rng.random() < 0.3:
                move.sequence.n_saved = 0
        compute(s, step)
        for each in [a for a in alive if len(a.tokens) - a.n_prompt >= a.max_tokens]:
            alive.remove(each)
            s.retire(each, StepPlan())
        used = [r.seq_id for r in s.running] + [k.seq_id for k in s.kept]
        assert len(set(used)) == len(used)
        assert len(used) + len(s.context.free_ids) == s.context.max_ids
        assert s.cells.used_by(used) + s.cells.free == s.cells.total
        assert all(s.cells.length(r.seq_id) == r.n_computed for r in s.running)
        assert all(s.cells.length(k.seq_id) == len(k.tokens) for k in s.kept)
        assert len(s.running) <= running
    assert not left
    assert not alive
    assert not s.has_work


# Batch work that is paused


def test_paused_batch_work_gets_nothing_keeps_its_cells_and_goes_on() -> None:
    """Interactive work is served as ever; without it there is nothing to do."""
    s = scheduler()
    batch, waiting = sequence(0, interactive=False), sequence(1, interactive=False)
    run(s, batch)
    s.batch_paused = True
    s.add(waiting)
    worked = [s.has_work]
    assert handed_out(s.schedule(budget(), 0)) == []
    assert s.running == [batch]
    used = s.cells.total - s.cells.free
    urgent = sequence(2)
    s.add(urgent)
    worked.append(s.has_work)
    step = s.schedule(budget(), 0)
    assert [c.sequence for c in step.chunks] == [urgent]
    compute(s, step)
    s.remove(urgent, StepPlan())
    assert s.cells.total - s.cells.free == used
    worked.append(s.has_work)
    s.batch_paused = False
    worked.append(s.has_work)
    assert worked == [False, True, False, True]
    assert {c.sequence for c in s.schedule(budget(), 0).chunks} == {batch, waiting}


def test_paused_batch_work_makes_room_for_interactive_work() -> None:
    """Places and cells; it comes back when it may."""
    s = scheduler(cells=100, running=1)
    batch = sequence(0, prompt=40, most=30, interactive=False)
    run(s, batch)
    s.batch_paused = True
    urgent = sequence(1, prompt=60, most=20)
    s.add(urgent)
    step = s.schedule(budget(), 0)
    assert SwapOut(batch, 0, 40) in step.moves
    assert s.running == [urgent]
    s.remove(urgent, step)
    assert not s.has_work
    s.batch_paused = False
    step = s.schedule(budget(), 0)
    assert SwapIn(batch, batch.seq_id) in step.moves


def test_nobody_waits_for_a_prefix_that_paused_batch_work_computes() -> None:
    """It would be for ever."""
    s = scheduler()
    batch, urgent = sequence(0, prefix=32, interactive=False), sequence(1, prefix=32)
    s.add(batch)
    s.schedule(budget(8), 0)
    s.add(urgent)
    s.schedule(budget(8), 0)
    assert urgent not in s.running
    s.batch_paused = True
    assert [c.sequence for c in s.schedule(budget(8), 0).chunks] == [urgent]
