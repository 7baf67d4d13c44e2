"""What a context holds: cells by sequence, sequence ids, and states that are kept for those who begin alike. Pure.

Where an id or cells are wanted and none are left, the kept states go that are least likely to be of use.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import chain

from edged.engines.llama.cells import Cells
from edged.engines.llama.plan import Forget, Share, StepPlan
from edged.engines.llama.sequence import MIN_SHARED_TOKENS, Kept, Sequence, common_length

# How often a fixed prefix counts as used when it is new: it belongs to an agent, a conversation may have been the last.
FIXED_USES = 4.0


class Context:
    """One model's context.

    now: seconds, on a clock that does not go back; as of the last step.

    Args:
        cells: cells of the context.
        ids: sequence ids there are.
        sharing: whether the model's memory can share and cut part of a sequence; without, nothing is kept.
    """

    def __init__(self, cells: int, ids: int, *, sharing: bool) -> None:
        self.cells = Cells(cells)
        self.kept: list[Kept] = []
        self.max_ids = ids
        self.sharing = sharing
        self.now = 0.0
        self._free_ids = set(range(ids))

    @property
    def free_ids(self) -> frozenset[int]:
        """Sequence ids that hold nothing."""
        return frozenset(self._free_ids)

    # Ids and cells

    def find_id(self, step: StepPlan, keep: int = -1) -> bool:
        """See that an id is free; the kept state goes that would save the least. keep: an id that stays."""
        if self._free_ids:
            return True
        others = [k for k in self.kept if k.seq_id != keep]
        if not others:
            return False
        self.evict(min(others, key=lambda k: self.cells.alone(k.seq_id) * k.chance(self.now)), step)
        return True

    def take_id(self) -> int:
        """A free id; there must be one."""
        return self._free_ids.pop()

    def release(self, seq_id: int) -> None:
        """An id holds nothing any more; its cells are freed by a move that somebody else plans."""
        self.cells.release(seq_id)
        self._free_ids.add(seq_id)

    def forget(self, seq_id: int, step: StepPlan) -> None:
        """An id holds nothing any more."""
        self.release(seq_id)
        step.moves.append(Forget(seq_id))

    def share(self, source: int, target: int, length: int, step: StepPlan) -> None:
        """`target` begins with the first `length` tokens of `source`."""
        self.cells.share(source, target, length)
        step.moves.append(Share(source, target, length))

    # What is kept

    def retire(self, sequence: Sequence, step: StepPlan) -> None:
        """A sequence has ended: its state is kept for whoever goes on from there."""
        tokens = tuple(sequence.tokens[: sequence.n_computed])
        if not self.sharing or len(tokens) < MIN_SHARED_TOKENS:
            self.forget(sequence.seq_id, step)
            return
        kept = Kept(sequence.seq_id, tokens, fixed=False, uses=1.0, used_at=self.now)
        for older in self._outgrown_by(tokens):
            kept.used(self.now, older.chance(self.now))
            self.evict(older, step)
        self.kept.append(kept)

    def publish(self, sequence: Sequence, step: StepPlan) -> None:
        """Keep the prefix that a running sequence has computed, if it is to be kept and is not."""
        wanted, sequence.prefix_tokens = self._is_unpublished(sequence), 0
        if not wanted or not self.find_id(step):
            return
        kept = Kept(self.take_id(), sequence.prefix_key, fixed=True, uses=FIXED_USES, used_at=self.now)
        self.share(sequence.seq_id, kept.seq_id, len(kept.tokens), step)
        self.kept.append(kept)

    def adopt(self, tokens: tuple[int, ...], running: Iterable[Sequence], step: StepPlan) -> Kept | None:
        """Make a place for a fixed prefix whose state comes from elsewhere; None where only running sequences could
        make room."""
        unkept = self.cells.total - self.cells.used_by(s.seq_id for s in running)
        if not self.sharing or unkept < len(tokens) or not self.find_id(step):
            return None
        self.evict_until(len(tokens), step)
        kept = Kept(self.take_id(), tokens, fixed=True, uses=FIXED_USES, used_at=self.now)
        self.cells.grow(kept.seq_id, len(tokens))
        self.kept.append(kept)
        return kept

    def used(self, source: int, sequence: Sequence) -> None:
        """A sequence begins: what it begins from, and its own prefix, was of use."""
        for kept in self.kept:
            if kept.seq_id == source or (kept.fixed and kept.tokens == sequence.prefix_key):
                kept.used(self.now)

    def prefix_of(self, sequence: Sequence) -> tuple[int, int]:
        """(sequence id, length) of a sequence's own fixed prefix; (-1, 0) where it is not kept."""
        own = (k for k in self.kept if k.fixed and k.tokens == sequence.prefix_key)
        return next(((k.seq_id, len(k.tokens)) for k in own), (-1, 0))

    def best_match(
        self, tokens: list[int], running: Iterable[Sequence], without: Collection[int] = ()
    ) -> tuple[int, int]:
        """(sequence id, length) of the state in the context that has most of these tokens at its beginning; (-1, 0)
        where none has enough. The last token is never among them: without computing it there are no logits to go on
        from. without: ids that do not count."""
        best, most = -1, 0
        if not self.sharing:
            return best, most
        states: Iterable[tuple[int, list[int] | tuple[int, ...], int]] = chain(
            ((k.seq_id, k.tokens, len(k.tokens)) for k in self.kept),
            ((s.seq_id, s.tokens, s.n_computed) for s in running),
        )
        asked = tuple(tokens)
        for seq_id, known, computed in states:
            shared = min(common_length(tuple(known[:computed]), asked), len(tokens) - 1)
            if shared > most and shared >= MIN_SHARED_TOKENS and seq_id not in without:
                best, most = seq_id, shared
        return best, most

    def evict_one(self, step: StepPlan) -> bool:
        """Let the kept state go that is least likely to be of use, among those whose cells come back."""
        if not self.kept:
            return False
        least = min(self.kept, key=lambda k: (not self.cells.alone(k.seq_id), k.chance(self.now)))
        self.evict(least, step)
        return True

    def evict_until(self, cells: int, step: StepPlan) -> None:
        """Let kept states go until so many cells are free, or none is left."""
        while self.cells.free < cells and self.evict_one(step):
            pass

    def evict(self, kept: Kept, step: StepPlan) -> None:
        """Keep it no longer."""
        self.kept.remove(kept)
        self.forget(kept.seq_id, step)

    def _is_unpublished(self, sequence: Sequence) -> bool:
        if not self.sharing or sequence.prefix_tokens < MIN_SHARED_TOKENS:
            return False
        return all(not k.fixed or k.tokens != sequence.prefix_key for k in self.kept)

    def _outgrown_by(self, tokens: tuple[int, ...]) -> list[Kept]:
        """Kept states that a longer one makes superfluous; fixed prefixes never are, for other requests."""
        return [k for k in self.kept if not k.fixed and tokens[: len(k.tokens)] == k.tokens]
