"""llama.cpp's decode, with as many threads as are fastest at the moment."""

from __future__ import annotations

import time

from edged.engines.llama.bindings import Llama, Row
from edged.engines.llama.sequence import Chunk
from edged.engines.llama.speed import ModelSpeed
from edged.engines.llama.threads import Tuner
from edged.host.cpus import BoardWatch


class Decoder:
    """Computes chunks, and tells the model's speed and the number of threads what that took.

    Args:
        threads: most threads to compute with.
        tuned: fewer are used where it is faster; False where the count was configured.
        now: time.monotonic().
    """

    def __init__(self, native: Llama, speed: ModelSpeed, threads: int, *, tuned: bool, now: float) -> None:
        self._native, self._speed = native, speed
        self._tuner = Tuner(threads, fixed=not tuned)
        self._board = BoardWatch(now)

    @property
    def threads(self) -> int:
        """Threads a token of an answer is computed with."""
        return self._tuner.count

    def decode(self, chunks: list[Chunk]) -> None:
        """Compute. DecodeError: llama.cpp did not; without room nothing was changed."""
        rows = [row for chunk in chunks for row in _rows(chunk)]
        if board := self._board.look(time.monotonic()):
            self._tuner.adapt(board)
        self._native.set_threads(self._tuner.threads(len(rows)))
        began = time.monotonic()
        self._native.decode(rows)
        seconds = time.monotonic() - began
        self._speed.computed(len(rows), seconds, generations=all(c.count == 1 and c.is_last for c in chunks))
        self._tuner.observe(len(rows), seconds)


def _rows(chunk: Chunk) -> list[Row]:
    """A chunk as llama.cpp wants it; its last token has logits if nothing is left after it, and so have the drafts."""
    sequence, end = chunk.sequence, chunk.start + chunk.count
    tokens = [*sequence.tokens[chunk.start : end], *chunk.drafts]
    wanted = end - 1 if chunk.is_last else end
    return [(t, i, sequence.seq_id, i >= wanted) for i, t in enumerate(tokens, chunk.start)]
