"""Fixed prefixes of agents, between the context and the disk: brought in when they are wanted, stored when there is
time."""

from __future__ import annotations

import time
from collections.abc import Callable

from edged.engines.llama.bindings import Llama
from edged.engines.llama.plan import StepPlan
from edged.engines.llama.scheduler import Scheduler
from edged.engines.llama.sequence import Kept
from edged.engines.llama.snapshots import Entry, Shelf

# How long an unload or a stop waits for room in the queue of the disk's writer, in seconds, for each prefix.
LAST_WAIT_S = 2.0


class Prefixes:
    """The prefixes of one loaded model.

    Args:
        shelf: the states on the disk.
        do: does to llama.cpp what a step says.
    """

    def __init__(self, shelf: Shelf, native: Llama, scheduler: Scheduler, do: Callable[[StepPlan], None]) -> None:
        self._shelf = shelf
        self._native = native
        self._scheduler = scheduler
        self._do = do
        self._seen: set[Kept] = set()  # those that are on the disk, or not worth it

    @property
    def unsaved(self) -> bool:
        """Whether there is one that was not looked at yet."""
        return any(k.fixed and k not in self._seen for k in self._scheduler.kept)

    def bring(self, tokens: list[int], tokens_s: float | None) -> bool:
        """Bring in the state that helps most with a prompt, if there is one and reading beats computing.

        tokens_s: how fast prompts are computed, in tokens a second; None: not known yet.
        """
        _, known = self._scheduler.best_match(tokens)
        entry = self._shelf.best(tuple(tokens), tokens_s, already=known)
        return entry is not None and self._restore(entry, tokens_s)

    def save(self, tokens_s: float | None, *, wait: bool = False) -> None:
        """Hand those that are not on the disk to its writer. wait: it is the last chance."""
        if not tokens_s:  # nothing of any length was computed, so nothing is new
            return
        for kept in self._scheduler.kept:
            if not kept.fixed or (kept in self._seen and not wait):
                continue
            self._seen.add(kept)
            computed_s = len(kept.tokens) / tokens_s
            if self._shelf.wants(kept.tokens, self._native.state_bytes(kept.seq_id), computed_s):
                state = self._native.state(kept.seq_id)
                self._shelf.write(kept.tokens, state, computed_s, LAST_WAIT_S if wait else 0.0)
        self._seen.intersection_update(self._scheduler.kept)

    def _restore(self, entry: Entry, tokens_s: float | None) -> bool:
        began = time.monotonic()
        state = self._shelf.read(entry)
        if state is None:
            return False
        room = StepPlan()
        kept = self._scheduler.adopt(entry.tokens, room)
        if kept is None:  # running sequences need the room
            return False
        self._do(room)
        if not self._native.restore(kept.seq_id, state):
            given_up = StepPlan()
            self._scheduler.context.evict(kept, given_up)
            self._do(given_up)
            self._shelf.refuse(entry, "llama.cpp does not take it")
            return False
        self._seen.add(kept)
        self._shelf.observe(entry, time.monotonic() - began, tokens_s)
        return True
