"""States of sequences that had to make room, in host memory: copied back later if that is cheaper than computing."""

from __future__ import annotations

import time

from edged.engines.llama.bindings import Buffer, Llama
from edged.engines.llama.sequence import Sequence

# Bytes a second that copying out or in takes, until it was measured: a hundredth of what a desktop does, a tenth of
# what small boards do.
FIRST_BYTES_S = 100e6
# Weight of the newest measurement.
NEWEST = 0.3


class Aside:
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
