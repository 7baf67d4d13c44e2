"""The stored states that fit one loaded model: which of them helps, and what to keep."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct

from edged.engines.llama import snapshot_file
from edged.engines.llama.sequence import MIN_SHARED_TOKENS, common_length
from edged.engines.llama.snapshot_file import Buffer, Header, Key, file_name

log = logging.getLogger(__name__)

SHORTEST_S = 1e-6  # what took no time at all took this long: rates stay finite


class Entry(Struct, frozen=True):
    """A stored state. computed_s: seconds that computing its tokens took on this board; name: its file's."""

    tokens: tuple[int, ...]
    n_bytes: int
    computed_s: float
    name: str


class Store(Protocol):
    """What a shelf needs of the folder; implemented by `snapshots.Snapshots`."""

    def candidates(self, prefix: str) -> list[Entry]: ...

    def expected_s(self, entry: Entry, *, cached: bool) -> float: ...

    def give_up(self, entry: Entry, tokens_per_s: float) -> None: ...

    def has(self, name: str) -> bool: ...

    def is_cached(self, entry: Entry) -> bool: ...

    def read(self, entry: Entry, key: Key) -> tuple[bytes, float] | None: ...

    def refuse(self, name: str, why: str) -> None: ...

    def restored(self, entry: Entry, seconds: float) -> None: ...

    def turned_down(self, *, cached: bool) -> None: ...

    def use(self, name: str) -> None: ...

    def wants(self, name: str, n_tokens: int, n_bytes: int, computed_s: float) -> bool: ...

    def write(self, name: str, header: Callable[[], Header], state: memoryview, wait_s: float) -> bool: ...


class Shelf:
    """The states of one loaded model. The engine thread's."""

    def __init__(self, owner: Store, key: Key, prefix: str) -> None:
        self._owner = owner
        self._key = key
        self._prefix = prefix
        self._read_s: dict[str, float] = {}

    def best(
        self, tokens: Sequence[int], tokens_per_s: float | None = None, *, cuts: bool = True, already: int = 0
    ) -> Entry | None:
        """The state that saves most time for a prompt that begins with `tokens`; None where computing is expected to
        be as fast. What they share is `common_length(tokens, entry.tokens)`.

        Args:
            tokens_per_s: how fast prompts are computed now; None: as fast as when each state was written.
            cuts: the model's memory can keep the first part of a state; False: only whole states are offered.
            already: so many of the first tokens are computed already.
        """
        best, most = None, 0.0
        for entry in self._owner.candidates(self._prefix):
            shared = common_length(entry.tokens, tokens)
            if shared < MIN_SHARED_TOKENS or shared <= already or (shared < len(entry.tokens) and not cuts):
                continue
            rate = tokens_per_s or _rate(entry.tokens, entry.computed_s)
            cached = self._owner.is_cached(entry)
            saved = (shared - already) / rate - self._owner.expected_s(entry, cached=cached)
            if saved > most:
                best, most = entry, saved
            elif saved <= 0:
                self._owner.turned_down(cached=cached)
        return best

    def read(self, entry: Entry) -> bytes | None:
        """The state, every bit of it as it was written; None where it is gone or damaged (it is dropped then)."""
        done = self._owner.read(entry, self._key)
        if done is None:
            return None
        state, self._read_s[entry.name] = done
        return state

    def observe(self, entry: Entry, seconds: float, tokens_per_s: float | None = None) -> None:
        """A state was read and the model took it in, in so many seconds altogether. Where computing the whole of it
        is as fast, it is dropped, and not stored again before computing has become a lot slower."""
        self._owner.restored(entry, seconds - self._read_s.pop(entry.name, 0.0))
        rate = tokens_per_s or _rate(entry.tokens, entry.computed_s)
        if seconds >= len(entry.tokens) / rate:
            log.info("a state of %d tokens took %.2f s to read; computing is faster", len(entry.tokens), seconds)
            self._owner.give_up(entry, rate)

    def refuse(self, entry: Entry, why: str) -> None:
        """The model would not take the state in: it is dropped."""
        self._read_s.pop(entry.name, None)
        self._owner.refuse(entry.name, why)

    def has(self, tokens: Sequence[int]) -> bool:
        """Whether exactly these tokens are stored, or are being written. Counts as a use: they are worth keeping."""
        name = file_name(self._key, tokens)
        self._owner.use(name)
        return self._owner.has(name)

    def wants(self, tokens: Sequence[int], n_bytes: int, computed_s: float) -> bool:
        """Whether `write` would take a state of so many bytes: ask before making a copy of it. Counts as a use of one
        that is stored already, as `has` does."""
        name = file_name(self._key, tokens)
        self._owner.use(name)
        return self._owner.wants(name, len(tokens), n_bytes, computed_s)

    def write(self, tokens: Sequence[int], state: Buffer, computed_s: float, wait_s: float = 0.0) -> bool:
        """Store a state, soon: the writer does it. Nobody may change `state` any more.

        Args:
            computed_s: seconds that computing the tokens took.
            wait_s: how long to wait where so much is queued already that there is no room for it.

        Returns:
            False: not wanted (see `wants`), or no room in the queue.
        """
        view = memoryview(state).cast("B")
        if not self.wants(tokens, view.nbytes, computed_s):
            return False
        kept, name = tuple(tokens), file_name(self._key, tokens)

        def header() -> Header:  # made by the writer: the digest takes a while
            return Header(self._key, kept, view.nbytes, computed_s, time.time(), snapshot_file.digest_of(view))

        return self._owner.write(name, header, view, wait_s)


def _rate(tokens: Sequence[int], computed_s: float) -> float:
    """Tokens/s."""
    return max(len(tokens), 1) / max(computed_s, SHORTEST_S)
