"""Decides what one model computes next. Pure: it keeps the books of cells and sequence ids (`context`), and the runner
does to llama.cpp what a StepPlan says.

A sequence gets cells as it grows. Where there are none left, kept states go first, those that are least likely to be of
use; then running sequences make room, batch work before interactive work and the younger before the older: their state
is copied out and they go on later. Any sequence fits an empty context, so the first in rank always gets on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from itertools import chain

from edged.engines.llama.context import Context
from edged.engines.llama.plan import Budget, StepPlan, SwapIn, SwapOut
from edged.engines.llama.sequence import MIN_SHARED_TOKENS, Chunk, Kept, Sequence

# Cells that have to stay free for each running sequence when another one is admitted: some ten steps of growth, so
# that what was admitted does not have to make room at once.
GROWTH_CELLS = 16
# Beside interactive work, batch work gets one token for so many: a step with one of each takes less than twice as long,
# and a prompt of fifty tokens a fifth longer.
BATCH_SHARE = 4
# A prompt whose text is to repeat is computed in chunks of so many tokens, whatever the board's speed allows: chunks of
# another size round differently. Every budget has room for them (`speed.MIN_RHYTHM_TOKENS`).
REPEATABLE_TOKENS = 16


class Scheduler:
    """Waiting and running sequences of one model.

    Args:
        cells: cells of the context.
        max_running: most sequences at once.
        max_ids: sequence ids there are; those that do not run hold kept states.
        sharing: whether the model's memory can share and cut part of a sequence; without, nothing is kept.
    """

    def __init__(self, cells: int, max_running: int, max_ids: int, *, sharing: bool) -> None:
        self.context = Context(cells, max_ids, sharing=sharing)
        self.cells = self.context.cells
        self.max_running = max_running
        self.running: list[Sequence] = []
        # Batch work gets nothing to compute and no place. What runs keeps its cells: copying it out would take memory,
        # and it makes room as ever where interactive work needs it.
        self.batch_paused = False
        self._waiting: tuple[deque[Sequence], deque[Sequence]] = (deque(), deque())  # interactive, batch
        self._served = 0
        self._batch_waits = False  # it was left out of the last step

    @property
    def waiting(self) -> Iterator[Sequence]:
        """Those without a place, next one first."""
        return chain(*self._waiting)

    @property
    def has_work(self) -> bool:
        """Whether a step would compute something."""
        if not self.batch_paused:
            return bool(self.running or self._waiting[0] or self._waiting[1])
        return bool(self._waiting[0]) or any(s.interactive for s in self.running)

    @property
    def kept(self) -> list[Kept]:
        """The states that are kept."""
        return self.context.kept

    def is_paused(self, sequence: Sequence) -> bool:
        """Whether it waits until batch work goes on."""
        return self.batch_paused and not sequence.interactive

    def draftable(self) -> list[Sequence]:
        """Running sequences whose next step computes one token: something may be guessed behind it. What was drafted
        before is forgotten."""
        for sequence in self.running:
            sequence.drafts = ()
        able = (s for s in self.running if s.prompt_done and s.n_pending == 1 and not s.repeatable)
        return [s for s in able if not self.is_paused(s)]

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Its worst case must fit an empty context, or it could never end."""
        if sequence.n_prompt + sequence.max_tokens > self.cells.total:
            raise ValueError("a sequence that never fits was added")
        self._queue(sequence).append(sequence)

    def schedule(self, budget: Budget, now: float) -> StepPlan:
        """Admit who fits and hand out tokens. now: seconds, on a clock that does not go back."""
        self.context.now = now
        step = StepPlan()
        self._admit(step)
        self._fill(step, budget)
        return step

    # Ends

    def retire(self, sequence: Sequence, step: StepPlan) -> None:
        """A running sequence has ended: its state is kept for whoever goes on from there."""
        self.running.remove(sequence)
        self.context.retire(sequence, step)

    def remove(self, sequence: Sequence, step: StepPlan) -> None:
        """Forget a sequence, wherever it is."""
        queue = self._queue(sequence)
        if sequence in queue:
            queue.remove(sequence)
        elif sequence in self.running:
            self.running.remove(sequence)
            self.context.forget(sequence.seq_id, step)

    def cut(self, sequence: Sequence) -> None:
        """A running sequence has given up what lies behind its computed tokens (drafts that were wrong)."""
        self.cells.cut(sequence.seq_id, sequence.n_computed)

    # What is kept

    def adopt(self, tokens: tuple[int, ...], step: StepPlan) -> Kept | None:
        """See `Context.adopt`."""
        return self.context.adopt(tokens, self.running, step)

    def best_match(self, tokens: list[int], without: Collection[int] = ()) -> tuple[int, int]:
        """See `Context.best_match`."""
        return self.context.best_match(tokens, self.running, without)

    # Admission

    def _admit(self, step: StepPlan) -> None:
        """In order of rank; the first one that finds no room stops it, so that a large request is not overtaken for
        ever. One whose prefix is being computed by another is passed by: it is next anyway."""
        for sequence in list(self.waiting):
            if self.is_paused(sequence) or self._is_prefix_in_progress(sequence):
                continue
            if not self._place(sequence, step):
                return

    def _is_prefix_in_progress(self, sequence: Sequence) -> bool:
        """Whether another one computes the same prefix: waiting for it is cheaper than computing it twice."""
        key = sequence.prefix_key
        if len(key) < MIN_SHARED_TOKENS or sequence.n_saved or not self.context.sharing:
            return False
        computing = (s for s in self.running if s.prefix_tokens and not self.is_paused(s))
        return any(s.prefix_key == key and s.n_computed < len(key) for s in computing)

    def _place(self, sequence: Sequence, step: StepPlan) -> bool:
        """Give it an id and the best beginning there is, if there is room for all its tokens."""
        victims = self._victims_for(sequence) if sequence.interactive else []
        stay = [s.seq_id for s in self.running if s not in victims]
        if len(stay) >= self.max_running:
            return False
        leaving = {victims[-i].seq_id for i in range(1, len(self.running) - self.max_running + 2)}
        source, shared = self._beginning_for(sequence, leaving)
        cells = len(sequence.tokens) - shared + (GROWTH_CELLS * (len(self.running) + 1) if self.running else 0)
        if self.cells.total - self.cells.used_by(stay, beside=(source, shared)) < cells:
            return False
        while len(self.running) >= self.max_running:
            self._swap_out(victims.pop(), step)
        if not self.context.find_id(step, keep=source):
            return False
        self._begin(sequence, source, shared, step)
        while self.cells.free < cells:
            if not self.context.evict_one(step):
                self._swap_out(victims.pop(), step)
        if sequence.n_saved:
            self._swap_in(sequence, step)
        return True

    def _beginning_for(self, sequence: Sequence, leaving: Collection[int]) -> tuple[int, int]:
        """(sequence id, length) of what it begins from; (-1, 0) for nothing. leaving: ids of those that make way."""
        if sequence.n_saved:
            return -1, 0
        if not sequence.repeatable:
            return self.best_match(sequence.tokens, leaving)
        return self.context.prefix_of(sequence)

    def _begin(self, sequence: Sequence, source: int, shared: int, step: StepPlan) -> None:
        self._queue(sequence).remove(sequence)
        sequence.seq_id = self.context.take_id()
        if shared:
            self.context.share(source, sequence.seq_id, shared, step)
        self.context.used(source, sequence)
        sequence.n_computed = shared
        self.running.append(sequence)
        step.admitted.append(sequence)

    def _swap_in(self, sequence: Sequence, step: StepPlan) -> None:
        self.cells.grow(sequence.seq_id, sequence.n_saved)
        step.moves.append(SwapIn(sequence, sequence.seq_id))
        sequence.n_computed, sequence.n_saved = sequence.n_saved, 0

    def _victims_for(self, sequence: Sequence) -> list[Sequence]:
        """Running batch sequences, the one to make room first at the end."""
        return sorted((s for s in self.running if not s.interactive and s.rank > sequence.rank), key=lambda s: s.rank)

    def _swap_out(self, victim: Sequence, step: StepPlan) -> None:
        """Let a running sequence make room; it is the next of its kind to be admitted."""
        step.moves.append(SwapOut(victim, victim.seq_id, victim.n_computed))
        step.chunks = [chunk for chunk in step.chunks if chunk.sequence is not victim]
        self.running.remove(victim)
        self.context.release(victim.seq_id)
        victim.n_saved, victim.n_computed, victim.seq_id = victim.n_computed, 0, -1
        queue = self._queue(victim)
        queue.append(victim)
        ranked = sorted(queue, key=lambda s: s.rank)
        queue.clear()
        queue.extend(ranked)

    def _queue(self, sequence: Sequence) -> deque[Sequence]:
        return self._waiting[0 if sequence.interactive else 1]

    # The token budget

    def _fill(self, step: StepPlan, budget: Budget) -> None:
        """Interactive work, then batch work in what that leaves it.

        Somebody waits for the first token of an interactive request: the step that brings it is as short as can be,
        and batch work is left out. Not twice in a row: short prompts that follow one another must not stop it.
        """
        busy = [s for s in self.running if s.n_pending > 0 and not self.is_paused(s)]
        given = self._serve([s for s in busy if s.interactive], budget.most, budget, step)
        room = budget.most - given
        if given:
            room = min(room, -(-given // BATCH_SHARE))
        self._batch_waits = not self._batch_waits and any(c.is_last and not c.sequence.prompt_done for c in step.chunks)
        if self._batch_waits:
            room = 0
        batch = [s for s in busy if not s.interactive]
        if not given:  # whoever comes meanwhile waits for the end of the step
            room = min(room, budget.rhythm)
            generating = sorted((s for s in batch if s.prompt_done), key=lambda s: (s.served_at, s.order))
            batch = generating[: budget.batch] + [s for s in batch if not s.prompt_done]
        self._serve(batch, room, budget, step)
        self._add_drafts(step, budget)

    def _serve(self, sequences: list[Sequence], room: int, budget: Budget, step: StepPlan) -> int:
        """Generations first, a token or a short run each: they keep their rhythm while a long prompt is computed in
        chunks of what is left. Returns how many tokens were given."""
        generating = sorted((s for s in sequences if s.prompt_done), key=lambda s: (s.served_at, s.order))
        prompts = sorted((s for s in sequences if not s.prompt_done), key=lambda s: s.order)
        given = 0
        for i, sequence in enumerate(generating):
            others = len(generating) - i - 1  # a long forced run must not take the others' one token
            given += self._give(sequence, min(room - given, max(1, room - given - others)), step)
        if generating:
            room = min(room, given + budget.rhythm)
        for sequence in prompts:
            given += self._give(sequence, room - given, step)
        return given

    def _give(self, sequence: Sequence, most: int, step: StepPlan) -> int:
        """Let a sequence compute up to `most` tokens; returns how many."""
        if sequence not in self.running:  # it had to make room within this step
            return 0
        count = min(sequence.n_pending, most)
        if sequence.n_computed < sequence.prefix_tokens:
            # A chunk of its own: a later sequence that shares the prefix then computes its turn in the same shapes as
            # this one, and so gets the same logits.
            count = min(count, sequence.prefix_tokens - sequence.n_computed)
        if sequence.repeatable:
            count = min(count, REPEATABLE_TOKENS)
        if count > 0:
            count = min(count, self._free_for(sequence, count, step))
        if count <= 0:
            return 0
        self.cells.grow(sequence.seq_id, count)
        self._served += 1
        sequence.served_at = self._served
        step.chunks.append(Chunk(sequence, sequence.n_computed, count))
        return count

    def _free_for(self, sequence: Sequence, cells: int, step: StepPlan) -> int:
        """Free cells, after those made room that stand behind the sequence. Without any it waits: those before it
        end, or have it swapped out."""
        self.context.evict_until(cells, step)
        while self.cells.free < cells:
            last = max(self.running, key=lambda s: s.rank)
            if last is sequence:
                break
            self._swap_out(last, step)
            self.context.evict_until(cells, step)
        return self.cells.free

    def _add_drafts(self, step: StepPlan, budget: Budget) -> None:
        """Drafts ride along where nobody has to make room for them, and only in steps without prompts."""
        if any(not c.sequence.prompt_done for c in step.chunks):
            return
        room = budget.most - sum(c.count for c in step.chunks)
        interactive = any(c.sequence.interactive for c in step.chunks)
        outputs = (budget.outputs if interactive else min(budget.outputs, budget.batch)) - len(step.chunks)
        for i, chunk in enumerate(step.chunks):
            drafts = chunk.sequence.drafts[: max(0, min(room, outputs, self.cells.free))]
            if not drafts or not chunk.is_last:
                continue
            self.cells.grow(chunk.sequence.seq_id, len(drafts))
            step.chunks[i] = Chunk(chunk.sequence, chunk.start, chunk.count, drafts)
            room, outputs = room - len(drafts), outputs - len(drafts)
