"""A sequence is a list of tokens and how many of them are computed. A prompt chunk, a sampled token and a run of
forced tokens differ in nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence as Row
from dataclasses import dataclass, field

# A shorter beginning is neither kept, in the context or on the disk, nor shared: so few tokens ride along in the batch
# of the turn almost for nothing, and two dialects have as many in common by chance.
MIN_SHARED_TOKENS = 16
# Compared at once: slices compare in C, so a thousand tokens take microseconds.
STRIDE = 64
# How long it takes for a use to count half, in seconds: an agent that was asked five minutes ago is half as likely to
# be asked next as one that was asked just now.
HALF_LIFE_S = 300.0


@dataclass(slots=True, eq=False)
class Kept:
    """Tokens whose state stays in the context under a sequence id of its own, for those who begin alike.

    fixed: an agent's fixed prefix, which every request of the agent begins with.
    uses: how often it was of use, older uses count less; as of `used_at`, seconds of the scheduler's clock.
    """

    seq_id: int
    tokens: tuple[int, ...]
    fixed: bool
    uses: float
    used_at: float

    def chance(self, now: float) -> float:
        """How likely it is to be of use next, compared with others."""
        return self.uses * math.exp2((self.used_at - now) / HALF_LIFE_S)

    def used(self, now: float, times: float = 1.0) -> None:
        """It was of use."""
        self.uses, self.used_at = self.chance(now) + times, now


@dataclass(slots=True, eq=False)
class Sequence:
    """One generation, as the scheduler sees it.

    tokens: the prompt, and what was generated so far (forced tokens included).
    drafts: tokens that may come next; computed beside the others where there is room, and checked.
    prefix_tokens: how many of the prompt's first tokens are the same for others, too, and are to be kept for them; 0
        for none, always less than the prompt.
    max_tokens: most tokens that may follow the prompt.
    n_computed: tokens whose keys and values are in the context, shared ones included.
    n_cached: tokens that were there before this sequence began.
    n_saved: tokens whose state was copied out of the context when the sequence had to make room.
    served_at: larger than that of all who got something to compute before it did.
    repeatable: alone, it is computed in the same way every time: it begins from its own fixed prefix only, and nothing
        is drafted for it. Other batches round differently.
    """

    order: int
    interactive: bool
    tokens: list[int]
    n_prompt: int
    prefix_tokens: int
    max_tokens: int
    seq_id: int = -1
    n_computed: int = 0
    n_cached: int = 0
    n_saved: int = 0
    served_at: int = 0
    repeatable: bool = False
    drafts: tuple[int, ...] = ()
    prefix_key: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.prefix_key = tuple(self.tokens[: self.prefix_tokens])

    @property
    def n_pending(self) -> int:
        """Tokens still to be computed."""
        return len(self.tokens) - self.n_computed

    @property
    def prompt_done(self) -> bool:
        """Whether the whole prompt is computed."""
        return self.n_computed >= self.n_prompt

    @property
    def rank(self) -> tuple[bool, int]:
        """Lower goes first: interactive before batch, then the older one."""
        return not self.interactive, self.order


@dataclass(slots=True, frozen=True)
class Chunk:
    """Tokens [start, start + count) of a sequence, to be computed in this step, and drafts behind them."""

    sequence: Sequence
    start: int
    count: int
    drafts: tuple[int, ...] = ()

    @property
    def is_last(self) -> bool:
        """Whether nothing is left to compute after it, so that the next token can be chosen."""
        return self.start + self.count == len(self.sequence.tokens)


def common_length(a: Row[int], b: Row[int]) -> int:
    """How many tokens two lists of one kind have in common at their beginning."""
    most = min(len(a), len(b))
    at = 0
    while at < most and a[at : at + STRIDE] == b[at : at + STRIDE]:
        at += STRIDE
    while at < most and a[at] == b[at]:
        at += 1
    return min(at, most)
