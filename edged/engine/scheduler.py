"""Decides what one model computes next. Pure: it keeps the books of cells and sequence ids, and the runner does to
llama.cpp what a Step says.

Books: every cell of the context belongs to one running sequence (its worst case, reserved when it is admitted) or to
one shared prefix. So a sequence that was admitted always ends: there is no preemption and no running out of cells.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

from edged.engine.sequence import Chunk, Prefix, Sequence, common_length

# A shorter prefix is not kept: computing so few tokens rides along in the batch of the turn almost for nothing, and a
# kept prefix occupies one of few sequence ids.
MIN_PREFIX_TOKENS = 16


@dataclass(slots=True)
class Step:
    """What to do, in this order: forget the evicted ids, let the admitted share their prefix, compute the chunks."""

    evicted: list[int] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)


class Scheduler:
    """Waiting and running sequences of one model.

    Args:
        cells: cells of the context.
        max_running: most sequences at once.
        max_prefixes: most prefixes kept; 0 where the model's memory cannot share part of a sequence.
    """

    def __init__(self, cells: int, max_running: int, max_prefixes: int) -> None:
        self.cells = cells
        self.max_running = max_running
        self.max_prefixes = max_prefixes
        self.running: list[Sequence] = []
        self.prefixes: list[Prefix] = []
        self._waiting: tuple[deque[Sequence], deque[Sequence]] = (deque(), deque())  # interactive, batch
        self._free_ids = set(range(max_running + max_prefixes))
        self._clock = 0

    @property
    def waiting(self) -> Iterator[Sequence]:
        """Those not admitted yet, next one first."""
        return chain(*self._waiting)

    @property
    def has_work(self) -> bool:
        return bool(self.running or self._waiting[0] or self._waiting[1])

    @property
    def reserved_cells(self) -> int:
        """Cells that are promised to sequences and prefixes."""
        return sum(s.own_cells for s in self.running) + sum(len(p.tokens) for p in self.prefixes)

    @property
    def free_cells(self) -> int:
        return self.cells - self.reserved_cells

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Its worst case must fit an empty context, or it would wait for ever."""
        if sequence.n_prompt + sequence.max_tokens > self.cells:
            raise ValueError("a sequence that never fits was added")
        self._waiting[0 if sequence.interactive else 1].append(sequence)

    def schedule(self, budget: int) -> Step:
        """Admit who fits and hand out `budget` tokens. The budget must reach for one token each."""
        self._clock += 1
        step = Step()
        self._admit(step)
        self._fill(step, budget)
        return step

    def remove(self, sequence: Sequence) -> bool:
        """Forget a sequence, wherever it is. True: it ran, and its id's cells are to be freed."""
        for queue in self._waiting:
            if sequence in queue:
                queue.remove(sequence)
                return False
        if sequence not in self.running:
            return False
        self.running.remove(sequence)
        self._free_ids.add(sequence.seq_id)
        self._detach(sequence)
        return True

    def publish(self, sequence: Sequence, step: Step) -> Prefix | None:
        """Keep the prefix that `sequence` has just computed, so that others share it.

        Returns its new home, to which the cells are to be copied; None where it is not worth it or there is no room.
        `step.evicted` names ids to forget before.
        """
        if not self._wants_to_publish(sequence):
            return None
        # Part of it may be shared with another prefix already: those cells are counted twice from now on, which errs
        # on the safe side (whichever of the two is evicted, the other one's cells stay).
        if not self._make_room(sequence.n_shared, step, keep=sequence.prefix) or not self._make_prefix_id(step):
            sequence.prefix_tokens = 0
            return None
        prefix = Prefix(self._free_ids.pop(), sequence.prefix_key, users=1, used_at=self._clock)
        self.prefixes.append(prefix)
        self._detach(sequence)
        sequence.prefix, sequence.n_shared = prefix, len(prefix.tokens)
        return prefix

    # Admission

    def _admit(self, step: Step) -> None:
        """Interactive before batch, first come first served within; the first one that finds no room stops it, so
        that a large request is not overtaken for ever. One that waits for its prefix is passed by: it is next anyway.
        """
        for sequence in list(self.waiting):
            if len(self.running) >= self.max_running:
                return
            if self._prefix_in_progress(sequence):
                continue
            if not self._place(sequence, step):
                return

    def _prefix_in_progress(self, sequence: Sequence) -> bool:
        """Whether another sequence is computing the same prefix: waiting for it is cheaper than computing it twice."""
        key = sequence.prefix_key
        return bool(key) and any(s.prefix_key == key and self._wants_to_publish(s) for s in self.running)

    def _wants_to_publish(self, sequence: Sequence) -> bool:
        enough = self.max_prefixes > 0 and sequence.prefix_tokens >= MIN_PREFIX_TOKENS
        return enough and sequence.n_shared < sequence.prefix_tokens

    def _place(self, sequence: Sequence, step: Step) -> bool:
        """Admit with the best prefix there is; without one, if keeping the prefix is what leaves no room."""
        prefix, shared = self._best_prefix(sequence)
        whole = sequence.n_prompt + sequence.max_tokens
        if not self._make_room(whole - shared, step, keep=prefix):
            prefix, shared = None, 0
            if not self._make_room(whole, step, keep=None):
                return False
        self._waiting[0 if sequence.interactive else 1].remove(sequence)
        sequence.seq_id = self._free_ids.pop()
        sequence.n_computed = sequence.n_cached = shared
        if prefix:
            sequence.prefix, sequence.n_shared = prefix, shared
            prefix.users += 1
            prefix.used_at = self._clock
        self.running.append(sequence)
        step.admitted.append(sequence)
        return True

    def _best_prefix(self, sequence: Sequence) -> tuple[Prefix | None, int]:
        """The prefix that saves most, and how much. The prompt's last token is never shared: without computing it
        there would be no logits to go on from."""
        best, most = None, MIN_PREFIX_TOKENS - 1
        for prefix in self.prefixes:
            shared = min(common_length(prefix.tokens, sequence.tokens), sequence.n_prompt - 1)
            if shared > most:
                best, most = prefix, shared
        return (best, most) if best else (None, 0)

    def _make_room(self, cells: int, step: Step, keep: Prefix | None) -> bool:
        """Evict unused prefixes, the one unused longest first, until so many cells are free. Evicts none in vain."""
        unused = sorted((p for p in self.prefixes if not p.users and p is not keep), key=lambda p: p.used_at)
        if self.free_cells + sum(len(p.tokens) for p in unused) < cells:
            return False
        for prefix in unused:
            if self.free_cells >= cells:
                break
            self._evict(prefix, step)
        return True

    def _make_prefix_id(self, step: Step) -> bool:
        if len(self.prefixes) < self.max_prefixes:
            return True
        unused = [p for p in self.prefixes if not p.users]
        if not unused:
            return False
        self._evict(min(unused, key=lambda p: p.used_at), step)
        return True

    def _evict(self, prefix: Prefix, step: Step) -> None:
        self.prefixes.remove(prefix)
        self._free_ids.add(prefix.seq_id)
        step.evicted.append(prefix.seq_id)

    def _detach(self, sequence: Sequence) -> None:
        if sequence.prefix:
            sequence.prefix.users -= 1
        sequence.prefix, sequence.n_shared = None, 0

    # The token budget

    def _fill(self, step: Step, budget: int) -> None:
        """Running generations first: they need a token or a short run each and keep their rhythm while a long prompt
        is computed in chunks of what is left; then prompts, interactive before batch."""
        busy = [s for s in self.running if s.n_pending > 0]
        generating = [s for s in busy if s.prompt_done]
        prompts = sorted((s for s in busy if not s.prompt_done), key=lambda s: (not s.interactive, s.order))
        for i, sequence in enumerate(generating):
            others = len(generating) - i - 1  # a long forced run must not take the others' one token
            budget -= self._give(sequence, budget - others, step)
        for sequence in prompts:
            budget -= self._give(sequence, budget, step)

    def _give(self, sequence: Sequence, budget: int, step: Step) -> int:
        """Let a sequence compute up to `budget` tokens; returns how many."""
        count = min(sequence.n_pending, budget)
        if self._wants_to_publish(sequence) and sequence.n_computed < sequence.prefix_tokens:
            # A chunk of its own: a later sequence that shares the prefix then computes its turn in the same shapes as
            # this one, and so gets the same logits.
            count = min(count, sequence.prefix_tokens - sequence.n_computed)
        if count > 0:
            step.chunks.append(Chunk(sequence, sequence.n_computed, count))
        return max(count, 0)
