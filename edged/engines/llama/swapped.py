"""What the scheduler's moves mean for llama.cpp, and the states of sequences that had to make room: they lie in host
memory and are copied back later, where that is cheaper than computing them again."""

from __future__ import annotations

import time

from edged.engines.llama.bindings import Buffer, Llama
from edged.engines.llama.plan import Forget, Move, Share, StepPlan, SwapIn, SwapOut
from edged.engines.llama.scheduler import Scheduler
from edged.engines.llama.sequence import Sequence
from edged.engines.llama.speed import ModelSpeed

# Bytes a second that copying out or in takes, until it was measured: a hundredth of what a desktop does, a tenth of
# what small boards do.
FIRST_BYTES_S = 100e6
# Weight of the newest measurement.
NEWEST = 0.3


class Swapped:
    """Copies of states, a bounded number of bytes.

    Args:
        most_bytes: of all states together.
    """

    def __init__(self, native: Llama, most_bytes: int) -> None:
        self._native = native
        self._most_bytes = most_bytes
        self.closed = False  # takes nothing more
        self._states: dict[Sequence, Buffer] = {}
        self._bytes_s = FIRST_BYTES_S

    @property
    def n_bytes(self) -> int:
        """What the copies take."""
        return sum(len(state) for state in self._states.values())

    def put(self, sequence: Sequence, seq_id: int, tokens: int, tokens_s: float | None) -> bool:
        """Copy the state of `tokens` tokens out, unless there is no room or computing them again at `tokens_s` tokens a
        second is cheaper (None: not known, and it hardly ever is)."""
        size = self._native.state_bytes(seq_id)
        copying_s = 2 * size / self._bytes_s  # out and in
        if self.closed or self.n_bytes + size > self._most_bytes or (tokens_s and tokens / tokens_s < copying_s):
            return False
        began = time.monotonic()
        self._states[sequence] = self._native.state(seq_id)
        self._learn(size, time.monotonic() - began)
        return True

    def take(self, sequence: Sequence, seq_id: int) -> bool:
        """Put a state back; False where llama.cpp does not take it. It is gone from here in both cases."""
        return self._native.restore(seq_id, self._states.pop(sequence))

    def drop(self, sequence: Sequence) -> None:
        """Forget a state, if there is one."""
        self._states.pop(sequence, None)

    def empty(self) -> int:
        """Forget all states; those whose they were are computed again. Returns the bytes they took."""
        dropped = self.n_bytes
        for sequence in self._states:
            sequence.n_saved = 0
        self._states.clear()
        return dropped

    def _learn(self, size: int, seconds: float) -> None:
        if seconds > 0:
            self._bytes_s += NEWEST * (size / seconds - self._bytes_s)


class Mover:
    """Does to llama.cpp what the scheduler has decided.

    swapped_out: how often a sequence had to make room.
    """

    def __init__(self, native: Llama, scheduler: Scheduler, swapped: Swapped, speed: ModelSpeed) -> None:
        self.swapped_out = 0
        self._native, self._scheduler, self._swapped, self._speed = native, scheduler, swapped, speed

    def do(self, step: StepPlan) -> None:
        """All moves of a step, in their order."""
        for move in step.moves:
            self._do(move, step)

    def _do(self, move: Move, step: StepPlan) -> None:
        native = self._native
        match move:
            case Forget(seq_id):
                native.forget(seq_id)
            case Share(source, target, length):
                native.share(source, target, length)
            case SwapOut(sequence, seq_id, length):
                self.swapped_out += 1
                if not length or not self._swapped.put(sequence, seq_id, length, self._speed.prompt_tokens_s):
                    sequence.n_saved = 0
                native.forget(seq_id)
            case SwapIn(sequence, seq_id):
                if not self._swapped.take(sequence, seq_id):
                    self._begin_anew(sequence, step)

    def _begin_anew(self, sequence: Sequence, step: StepPlan) -> None:
        """Its state is lost: all its tokens are computed again."""
        step.chunks = [chunk for chunk in step.chunks if chunk.sequence is not sequence]
        sequence.n_computed = 0
        self._scheduler.cut(sequence)
