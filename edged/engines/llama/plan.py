"""What the scheduler decides, for the runner to do. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field

from edged.engines.llama.sequence import Chunk, Sequence


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
class SwapOut:
    """Copy the state of a sequence's first `length` tokens out of the context, if that is the cheaper way, and free its
    cells; its `n_saved` becomes 0 where nothing was copied."""

    sequence: Sequence
    seq_id: int
    length: int


@dataclass(slots=True, frozen=True)
class SwapIn:
    """Put the state that was copied out into the context again, under this id."""

    sequence: Sequence
    seq_id: int


Move = Forget | Share | SwapOut | SwapIn


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
