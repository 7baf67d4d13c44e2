"""A sequence is a list of tokens and how many of them are computed. A prompt chunk, a sampled token and a run of
forced tokens differ in nothing else."""

from __future__ import annotations

from collections.abc import Sequence as Row
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Prefix:
    """Tokens that are computed once, under a sequence id of their own, and shared by whoever begins with them.

    users: running sequences that share its cells; it is not evicted while there are any.
    used_at: the scheduler's step count at its last use.
    """

    seq_id: int
    tokens: tuple[int, ...]
    users: int = 0
    used_at: int = 0


@dataclass(slots=True, eq=False)
class Sequence:
    """One generation, as the scheduler sees it.

    tokens: the prompt, and what was generated so far (forced tokens included).
    prefix_tokens: how many of the prompt's first tokens are worth sharing; 0 for none, always less than the prompt.
    max_tokens: most tokens that may follow the prompt.
    n_computed: tokens whose keys and values are in the context, shared ones included.
    n_cached: tokens that were there before this sequence began.
    n_shared: tokens whose cells belong to `prefix`, and not to this sequence.
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
    n_shared: int = 0
    prefix: Prefix | None = None
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
    def own_cells(self) -> int:
        """Cells it needs in the worst case, beside those it shares."""
        return self.n_prompt + self.max_tokens - self.n_shared


@dataclass(slots=True, frozen=True)
class Chunk:
    """Tokens [start, start + count) of a sequence, to be computed in this step."""

    sequence: Sequence
    start: int
    count: int

    @property
    def is_last(self) -> bool:
        """Whether nothing is left to compute after it, so that the next token can be chosen."""
        return self.start + self.count == len(self.sequence.tokens)


def common_length(a: Row[int], b: Row[int]) -> int:
    """How many tokens two lists have in common at their beginning."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
