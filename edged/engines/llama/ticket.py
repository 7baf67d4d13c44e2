"""What passes between the event loop and the engine thread."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from edged.engines.kind import ModelStats
from edged.interfaces import OnPiece
from edged.types import Completion, Job, Speed, TokenLogprob


@dataclass(slots=True, eq=False)
class Ticket:
    """A job on its way through the engine thread.

    on_piece, future: belong to the event loop; the thread only names them in what it sends there.
    called_at: time.monotonic() when the caller asked; load_ms: of that, spent to bring the model in.
    warm: only get ready for such jobs: compile the grammar, compute the prompt, generate nothing.
    """

    job: Job
    on_piece: OnPiece | None
    future: asyncio.Future[Completion]
    called_at: float
    load_ms: float
    warm: bool = False


@dataclass(slots=True)
class News:
    """What one step brought for a ticket: more text (and log-probabilities of its tokens where asked for), and at the
    end the outcome."""

    ticket: Ticket
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    outcome: Completion | Exception | None = None


class LlamaStats(ModelStats, frozen=True, kw_only=True):
    """See ModelStats. Tokens and steps count since the model was loaded.

    cells_used: cells that hold something: running sequences, and states that are kept for those who begin alike.
    prefixes: fixed prefixes of agents that are kept; kept: all states that are.
    drafted_tokens, accepted_tokens: guessed ahead, and guessed right.
    set_aside: how often a sequence had to make room for another.
    prefill_tokens_s, decode_tokens_s, batch_tokens_s: see rates.Rates; None until measured.
    """

    cells: int
    cells_used: int
    running: int
    waiting: int
    prefixes: int
    kept: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    forced_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    decode_steps: int
    set_aside: int
    prefill_tokens_s: float | None = None
    decode_tokens_s: float | None = None
    batch_tokens_s: float | None = None

    @property
    def speed(self) -> Speed | None:
        """See ModelStats."""
        if not self.prefill_tokens_s or not self.decode_tokens_s or not self.batch_tokens_s:
            return None
        return Speed(self.prefill_tokens_s, self.decode_tokens_s, self.batch_tokens_s)
