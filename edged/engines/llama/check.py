"""Does what we believe agree with llama.cpp? The books after a step, and logits against a recomputation."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Row
from itertools import pairwise

from edged.engines.llama.bindings import Llama
from edged.engines.llama.sampler import Logits
from edged.engines.llama.scheduler import Scheduler

NOTHING = (-1, -1)


class BooksWrong(Exception):
    """The engine's idea of the cells differs from llama.cpp's: every answer from here on may be wrong."""


def books(scheduler: Scheduler, native: Llama) -> None:
    """Compare the scheduler's books with llama.cpp's memory.

    Raises:
        BooksWrong: says which sequence, and what was expected.
    """
    cells = scheduler.cells
    used = [s.seq_id for s in scheduler.running] + [k.seq_id for k in scheduler.kept]
    _require(len(set(used)) == len(used), f"a sequence id is used twice: {sorted(used)}")
    _require(set(used).isdisjoint(scheduler.context.free_ids), f"an id that is used counts as free: {sorted(used)}")
    _require(len(used) + len(scheduler.context.free_ids) == scheduler.context.max_ids, "a sequence id is lost")
    _require(cells.used_by(used) + cells.free == cells.total, "cells are lost")
    for sequence in scheduler.running:
        _require_length(scheduler, native, sequence.seq_id, sequence.n_computed)
        _require(sequence.n_computed <= len(sequence.tokens), f"{sequence.seq_id} computed tokens it does not have")
    for kept in scheduler.kept:
        _require_length(scheduler, native, kept.seq_id, len(kept.tokens))
    for seq_id in scheduler.context.free_ids:
        _require_length(scheduler, native, seq_id, 0)


def recompute(scratch: Llama, tokens: Row[int], ends: Iterable[int]) -> dict[int, Logits]:
    """Logits after the first `end` tokens, for each of the ends, computed from nothing, alone, without shared cells:
    an oracle for what the engine computed in batches, chunks and forced runs.

    Each end begins a new batch. A batch of another shape rounds differently: with the ends of the engine's own batches
    a sequence that ran alone is repeated exactly; for one that ran among others compare within a tolerance.

    scratch: a context that nobody else uses.
    """
    cuts = sorted({0, *ends, *range(0, len(tokens), scratch.batch_tokens)})
    found: dict[int, Logits] = {}
    scratch.forget(0)
    for start, end in pairwise(cuts):
        scratch.decode([(tokens[i], i, 0, i + 1 == end) for i in range(start, end)])
        found[end] = scratch.logits(end - start - 1).copy()
    return found


def distance(a: Logits, b: Logits) -> float:
    """Root mean square difference of two rows, in nats, without what softmax ignores (a constant on all logits)."""
    difference = a - b
    return float(difference.std())


def _require_length(scheduler: Scheduler, native: Llama, seq_id: int, length: int) -> None:
    """A sequence has so many tokens, in our books and in llama.cpp's (by the span of its positions)."""
    booked = scheduler.cells.length(seq_id)
    _require(booked == length, f"sequence {seq_id} has {booked} cells, and {length} tokens")
    expected = (0, length - 1) if length else NOTHING
    found = native.span(seq_id)
    _require(found == expected, f"sequence {seq_id} spans {found} in llama.cpp, {expected} in the books")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise BooksWrong(otherwise)
