"""How fast the loaded models are, by what was measured of them."""

from __future__ import annotations

from edged.engines.llama.ticket import ModelStats
from edged.engines.registry import Runtime
from edged.types import Speed


class Speeds:
    """Asked of the engine whenever somebody wants to know.

    Args:
        keeps_states: states of prefixes are on the disk, so that an unload loses nothing.
    """

    def __init__(self, engine: Runtime, *, keeps_states: bool) -> None:
        self._engine = engine
        self._keeps_states = keeps_states

    def measured(self) -> dict[str, Speed]:
        """The loaded models whose speed was measured."""
        return {
            stats.name: Speed(stats.prefill_tokens_s, stats.decode_tokens_s, stats.batch_tokens_s)
            for stats in self._engine.stats()
            if isinstance(stats, ModelStats)
            and stats.prefill_tokens_s
            and stats.decode_tokens_s
            and stats.batch_tokens_s
        }

    def lost_s(self, model: str) -> float:
        """Seconds to compute again what a model holds, were it unloaded."""
        if self._keeps_states:
            return 0.0
        held = next((stats for stats in self._engine.stats() if stats.name == model), None)
        if not isinstance(held, ModelStats) or not held.prefill_tokens_s:
            return 0.0
        return held.cells_used / held.prefill_tokens_s
