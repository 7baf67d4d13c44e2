"""Decides what one model computes next. Pure: it keeps the books of cells and sequence ids, and the runner does to
llama.cpp what a Step says.

A sequence gets cells as it grows. Where there are none left, kept states go first, those that are least likely to be of
use; then running sequences make room, batch work before interactive work and the younger before the older: their state
is set aside and they go on later. Any sequence fits an empty context, so the first in rank always gets on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

from edged.engines.llama.cells import Cells
from edged.engines.llama.sequence import MIN_SHARED_TOKENS, Chunk, Kept, Sequence, common_length

# Cells that have to stay free for each running sequence when another one is admitted: some ten steps of growth, so
# that what was admitted does not have to make room at once.
GROWTH_CELLS = 16
# How often a fixed prefix counts as used when it is new: it belongs to an agent, a conversation may have been the last.
FIXED_USES = 4.0
# Beside interactive work, batch work gets one token for so many: a step with one of each takes less than twice as long,
# and a prompt of fifty tokens a fifth longer.
BATCH_SHARE = 4
# A prompt whose text is to repeat is computed in chunks of so many tokens, whatever the board's speed allows: chunks of
# another size round differently. Every budget has room for them (`pace.MIN_RHYTHM_TOKENS`).
REPEATABLE_TOKENS = 16


@dataclass(slots=True, frozen=True)
class Forget:
    """Free what only this sequence id uses."""

    seq_id: int


@dataclass(slots=True, frozen=True)
class Share:
    """Let `target` use the cells of the first `length` tokens of `source`, too."""

    source: int
    target: int
    length: int


@dataclass(slots=True, frozen=True)
class SetAside:
    """Copy the state of a sequence's first `length` tokens out of the context, if that is the cheaper way, and free its
    cells; its `n_saved` becomes 0 where nothing was copied."""

    sequence: Sequence
    seq_id: int
    length: int


@dataclass(slots=True, frozen=True)
class BringBack:
    """Put the state that was set aside into the context again, under this id."""

    sequence: Sequence
    seq_id: int


Move = Forget | Share | SetAside | BringBack


@dataclass(slots=True)
class StepPlan:
    """What to do: the moves in their order, then compute the chunks. admitted: those that begin, or go on."""

    moves: list[Move] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)


@dataclass(slots=True, frozen=True)
class Budget:
    """Tokens of one step. most: of all; it reaches for one of every sequence. rhythm: of prompts, while others
    generate. outputs: rows that may have logits. batch: generations of a step of batch work alone."""

    most: int
    rhythm: int
    outputs: int
    batch: int


class Scheduler:
    """Waiting and running sequences of one model.

    Args:
        cells: cells of the context.
        max_running: most sequences at once.
        max_ids: sequence ids there are; those that do not run hold kept states.
        sharing: whether the model's memory can share and cut part of a sequence; without, nothing is kept.
    """

    def __init__(self, cells: int, max_running: int, max_ids: int, *, sharing: bool) -> None:
        self.cells = Cells(cells)
        self.max_running = max_running
        self.max_ids = max_ids
        self.running: list[Sequence] = []
        self.kept: list[Kept] = []
        # Batch work gets nothing to compute and no place. What runs keeps its cells: copying it out would take memory,
        # and it makes room as ever where interactive work needs it.
        self.batch_paused = False
        self._sharing = sharing
        self._waiting: tuple[deque[Sequence], deque[Sequence]] = (deque(), deque())  # interactive, batch
        self._free_ids = set(range(max_ids))
        self._served = 0
        self._batch_waits = False  # it was left out of the last step
        self._now = 0.0

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
    def free_ids(self) -> frozenset[int]:
        """Sequence ids that hold nothing."""
        return frozenset(self._free_ids)

    def is_paused(self, sequence: Sequence) -> bool:
        """Whether it waits until batch work goes on."""
        return self.batch_paused and not sequence.interactive

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Its worst case must fit an empty context, or it could never end."""
        if sequence.n_prompt + sequence.max_tokens > self.cells.total:
            raise ValueError("a sequence that never fits was added")
        self._queue(sequence).append(sequence)

    def schedule(self, budget: Budget, now: float) -> StepPlan:
        """Admit who fits and hand out tokens. now: seconds, on a clock that does not go back."""
        self._now = now
        step = StepPlan()
        self._admit(step)
        self._fill(step, budget)
        return step

    # Ends

    def retire(self, sequence: Sequence, step: StepPlan) -> None:
        """A running sequence has ended: its state is kept for whoever goes on from there."""
        self.running.remove(sequence)
        tokens = tuple(sequence.tokens[: sequence.n_computed])
        if not self._sharing or len(tokens) < MIN_SHARED_TOKENS:
            self._forget(sequence.seq_id, step)
            return
        kept = Kept(sequence.seq_id, tokens, fixed=False, uses=1.0, used_at=self._now)
        for older in self._outgrown_by(tokens):
            kept.used(self._now, older.chance(self._now))
            self._evict(older, step)
        self.kept.append(kept)

    def remove(self, sequence: Sequence, step: StepPlan) -> None:
        """Forget a sequence, wherever it is."""
        queue = self._queue(sequence)
        if sequence in queue:
            queue.remove(sequence)
        elif sequence in self.running:
            self.running.remove(sequence)
            self._forget(sequence.seq_id, step)

    def cut(self, sequence: Sequence) -> None:
        """A running sequence has given up what lies behind its computed tokens (drafts that were wrong)."""
        self.cells.cut(sequence.seq_id, sequence.n_computed)

    # What is kept

    def publish(self, sequence: Sequence, step: StepPlan) -> None:
        """Keep the prefix that a running sequence has computed, if it is to be kept and is not."""
        wanted, sequence.prefix_tokens = self._is_unpublished(sequence), 0
        if not wanted or not self._find_id(step):
            return
        kept = Kept(self._free_ids.pop(), sequence.prefix_key, fixed=True, uses=FIXED_USES, used_at=self._now)
        self._share(sequence.seq_id, kept.seq_id, len(kept.tokens), step)
        self.kept.append(kept)

    def adopt(self, tokens: tuple[int, ...], step: StepPlan) -> Kept | None:
        """Make a place for a fixed prefix whose state comes from elsewhere; None where only running sequences could
        make room."""
        unkept = self.cells.total - self.cells.used_by(s.seq_id for s in self.running)
        if not self._sharing or unkept < len(tokens) or not self._find_id(step):
            return None
        self._evict_until(len(tokens), step)
        kept = Kept(self._free_ids.pop(), tokens, fixed=True, uses=FIXED_USES, used_at=self._now)
        self.cells.grow(kept.seq_id, len(tokens))
        self.kept.append(kept)
        return kept

    def drop(self, kept: Kept, step: StepPlan) -> None:
        """Keep it no longer."""
        self._evict(kept, step)

    def best_match(self, tokens: list[int], without: Collection[int] = ()) -> tuple[int, int]:
        """(sequence id, length) of the state in the context that has most of these tokens at its beginning; (-1, 0)
        where none has enough. The last token is never among them: without computing it there are no logits to go on
        from. without: ids that do not count."""
        best, most = -1, 0
        if not self._sharing:
            return best, most
        states: Iterable[tuple[int, list[int] | tuple[int, ...], int]] = chain(
            ((k.seq_id, k.tokens, len(k.tokens)) for k in self.kept),
            ((s.seq_id, s.tokens, s.n_computed) for s in self.running),
        )
        asked = tuple(tokens)
        for seq_id, known, computed in states:
            shared = min(common_length(tuple(known[:computed]), asked), len(tokens) - 1)
            if shared > most and shared >= MIN_SHARED_TOKENS and seq_id not in without:
                best, most = seq_id, shared
        return best, most

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
        if len(key) < MIN_SHARED_TOKENS or sequence.n_saved or not self._sharing:
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
            self._set_aside(victims.pop(), step)
        if not self._find_id(step, keep=source):
            return False
        self._begin(sequence, source, shared, step)
        while self.cells.free < cells:
            if not self._evict_one(step):
                self._set_aside(victims.pop(), step)
        if sequence.n_saved:
            self._bring_back(sequence, step)
        return True

    def _beginning_for(self, sequence: Sequence, leaving: Collection[int]) -> tuple[int, int]:
        """(sequence id, length) of what it begins from; (-1, 0) for nothing. leaving: ids of those that make way."""
        if sequence.n_saved:
            return -1, 0
        if not sequence.repeatable:
            return self.best_match(sequence.tokens, leaving)
        own = (k for k in self.kept if k.fixed and k.tokens == sequence.prefix_key)
        return next(((k.seq_id, len(k.tokens)) for k in own), (-1, 0))

    def _begin(self, sequence: Sequence, source: int, shared: int, step: StepPlan) -> None:
        self._queue(sequence).remove(sequence)
        sequence.seq_id = self._free_ids.pop()
        if shared:
            self._share(source, sequence.seq_id, shared, step)
        for kept in self.kept:
            if kept.seq_id == source or (kept.fixed and kept.tokens == sequence.prefix_key):
                kept.used(self._now)
        sequence.n_computed = shared
        self.running.append(sequence)
        step.admitted.append(sequence)

    def _bring_back(self, sequence: Sequence, step: StepPlan) -> None:
        self.cells.grow(sequence.seq_id, sequence.n_saved)
        step.moves.append(BringBack(sequence, sequence.seq_id))
        sequence.n_computed, sequence.n_saved = sequence.n_saved, 0

    def _victims_for(self, sequence: Sequence) -> list[Sequence]:
        """Running batch sequences, the one to make room first at the end."""
        return sorted((s for s in self.running if not s.interactive and s.rank > sequence.rank), key=lambda s: s.rank)

    def _set_aside(self, victim: Sequence, step: StepPlan) -> None:
        """Let a running sequence make room; it is the next of its kind to be admitted."""
        step.moves.append(SetAside(victim, victim.seq_id, victim.n_computed))
        step.chunks = [chunk for chunk in step.chunks if chunk.sequence is not victim]
        self.running.remove(victim)
        self.cells.release(victim.seq_id)
        self._free_ids.add(victim.seq_id)
        victim.n_saved, victim.n_computed, victim.seq_id = victim.n_computed, 0, -1
        queue = self._queue(victim)
        queue.append(victim)
        ranked = sorted(queue, key=lambda s: s.rank)
        queue.clear()
        queue.extend(ranked)

    # Room

    def _find_id(self, step: StepPlan, keep: int = -1) -> bool:
        """See that an id is free; the kept state goes that would save the least."""
        if self._free_ids:
            return True
        others = [k for k in self.kept if k.seq_id != keep]
        if not others:
            return False
        self._evict(min(others, key=lambda k: self.cells.alone(k.seq_id) * k.chance(self._now)), step)
        return True

    def _evict_one(self, step: StepPlan) -> bool:
        """Let the kept state go that is least likely to be of use, among those whose cells come back."""
        if not self.kept:
            return False
        least = min(self.kept, key=lambda k: (not self.cells.alone(k.seq_id), k.chance(self._now)))
        self._evict(least, step)
        return True

    def _evict_until(self, cells: int, step: StepPlan) -> None:
        while self.cells.free < cells and self._evict_one(step):
            pass

    def _evict(self, kept: Kept, step: StepPlan) -> None:
        self.kept.remove(kept)
        self._forget(kept.seq_id, step)

    def _forget(self, seq_id: int, step: StepPlan) -> None:
        self.cells.release(seq_id)
        self._free_ids.add(seq_id)
        step.moves.append(Forget(seq_id))

    def _share(self, source: int, target: int, length: int, step: StepPlan) -> None:
        self.cells.share(source, target, length)
        step.moves.append(Share(source, target, length))

    def _is_unpublished(self, sequence: Sequence) -> bool:
        if not self._sharing or sequence.prefix_tokens < MIN_SHARED_TOKENS:
            return False
        return all(not k.fixed or k.tokens != sequence.prefix_key for k in self.kept)

    def _outgrown_by(self, tokens: tuple[int, ...]) -> list[Kept]:
        """Kept states that a longer one makes superfluous; fixed prefixes never are, for other requests."""
        return [k for k in self.kept if not k.fixed and tokens[: len(k.tokens)] == k.tokens]

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
        end, or set it aside."""
        self._evict_until(cells, step)
        while self.cells.free < cells:
            last = max(self.running, key=lambda s: s.rank)
            if last is sequence:
                break
            self._set_aside(last, step)
            self._evict_until(cells, step)
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
