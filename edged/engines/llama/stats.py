"""What a loaded language model has done, for `status`."""

from __future__ import annotations

from dataclasses import dataclass

from edged.engines.kind import ModelStats
from edged.engines.llama.scheduler import Scheduler
from edged.engines.llama.speed import Rates
from edged.types import ModelState, Speed


@dataclass(slots=True)
class Counters:
    """See LlamaStats."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    forced_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    decode_steps: int = 0
    set_aside: int = 0


class LlamaStats(ModelStats, frozen=True, kw_only=True):
    """See ModelStats. Tokens and steps count since the model was loaded.

    cells_used: cells that hold something: running sequences, and states that are kept for those who begin alike.
    prefixes: fixed prefixes of agents that are kept; kept: all states that are.
    drafted_tokens, accepted_tokens: guessed ahead, and guessed right.
    set_aside: how often a sequence had to make room for another.
    prefill_tokens_s, decode_tokens_s, batch_tokens_s: see speed.Rates; None until measured.
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


def stats_of(
    name: str, load_ms: float, scheduler: Scheduler, threads: int, counters: Counters, rates: Rates
) -> LlamaStats:
    """As things are now."""
    cells = scheduler.cells
    return LlamaStats(
        name=name,
        state=ModelState.READY,
        load_ms=load_ms,
        threads=threads,
        cells=cells.total,
        cells_used=cells.total - cells.free,
        running=len(scheduler.running),
        waiting=sum(1 for _ in scheduler.waiting),
        prefixes=sum(k.fixed for k in scheduler.kept),
        kept=len(scheduler.kept),
        prompt_tokens=counters.prompt_tokens,
        cached_tokens=counters.cached_tokens,
        generated_tokens=counters.generated_tokens,
        forced_tokens=counters.forced_tokens,
        drafted_tokens=counters.drafted_tokens,
        accepted_tokens=counters.accepted_tokens,
        decode_steps=counters.decode_steps,
        set_aside=counters.set_aside,
        prefill_tokens_s=rates.prefill_tokens_s,
        decode_tokens_s=rates.decode_tokens_s,
        batch_tokens_s=rates.batch_tokens_s,
    )
