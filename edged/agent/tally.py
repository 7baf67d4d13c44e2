"""What the generations of one request took: tokens and times, wherever they were made."""

from __future__ import annotations

from edged.clock import Stopwatch
from edged.types import ChatAnswer, Completion, Timing, Usage


class Tally:
    """Adds up. Times count from its making."""

    def __init__(self) -> None:
        self.watch = Stopwatch()
        self.tools_ms = 0.0
        self._first_token_ms: float | None = None
        self._local: list[Completion] = []
        self._remote: list[ChatAnswer] = []

    def add(self, done: Completion | ChatAnswer, *, asked_ms: float) -> None:
        """A generation that was asked for when the watch showed `asked_ms`."""
        if self._first_token_ms is None:
            self._first_token_ms = asked_ms + done.first_token_ms
        if isinstance(done, Completion):
            self._local.append(done)
        else:
            self._remote.append(done)

    def usage(self) -> Usage:
        """Tokens so far."""
        done: list[Completion | ChatAnswer] = [*self._local, *self._remote]
        return Usage(
            prompt_tokens=sum(d.prompt_tokens for d in done),
            cached_tokens=sum(d.cached_tokens for d in done),
            completion_tokens=sum(d.completion_tokens for d in done),
            decode_steps=sum(d.decode_steps for d in self._local),
        )

    def timing(self) -> Timing:
        """Times so far; the pipeline adds what passed before. Of an upstream the wait for its first token counts as
        prefill."""
        local, remote = self._local, self._remote
        return Timing(
            queue_ms=sum(d.queue_ms for d in local),
            load_ms=sum(d.load_ms for d in local),
            prefill_ms=sum(d.prefill_ms for d in local) + sum(d.first_token_ms for d in remote),
            first_token_ms=self._first_token_ms or 0.0,
            decode_ms=sum(d.decode_ms for d in local) + sum(d.total_ms - d.first_token_ms for d in remote),
            tools_ms=self.tools_ms,
            total_ms=self.watch.ms(),
        )
