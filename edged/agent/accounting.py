"""What one request took: its tokens, and a home for each of its milliseconds, wherever it is answered."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import msgspec

from edged.errors import EdgedError
from edged.host import clock
from edged.types import ChatAnswer, Completion, Need, Spent, Timing, Usage

PARTS = ("queue_ms", "load_ms", "prefill_ms", "decode_ms", "tools_ms", "other_ms")
DIGITS = 1  # times are given in tenths of a millisecond

OnText = Callable[[str], None]


class Generating:
    """A generation that is under way. Times in milliseconds since the acceptance.

    done: what came of it; None: it was broken off.
    """

    def __init__(self, now_ms: Callable[[], float]) -> None:
        self.began_ms = now_ms()
        self.first_ms: float | None = None  # when its first piece of text came
        self.done: Completion | ChatAnswer | None = None
        self._now_ms = now_ms

    def hearing(self, on_text: OnText | None) -> OnText:
        """Hands on what comes, and notes when the first of it did."""

        def heard(text: str) -> None:
            if self.first_ms is None:
                self.first_ms = self._now_ms()
            if on_text is not None:
                on_text(text)

        return heard


class Accounting:
    """Adds up. What is measured has a name; what passes between the measurements is `other_ms`, so the parts are the
    whole by their making. The time before this object was made was a wait, but for what earlier attempts knew of it.

    Args:
        accepted_boot: clock.boot() when the request was accepted; None: now.
        earlier: what earlier attempts have taken.
    """

    def __init__(self, accepted_boot: float | None = None, earlier: Spent | None = None) -> None:
        self._accepted_boot = clock.boot() if accepted_boot is None else accepted_boot
        earlier = earlier or Spent()
        self._usage = earlier.usage
        self._ms = {name: getattr(earlier.timing, name) for name in PARTS}
        self._first_token_ms: float | None = earlier.timing.first_token_ms or None
        self._began_ms = self.ms()
        self._ms["queue_ms"] += max(0.0, self._began_ms - sum(self._ms.values()))
        # of this attempt only, for `need`: tokens and steps of generations on the board; milliseconds of waits, of
        # loads, of those generations
        self._prompt_tokens = self._steps = 0
        self._waited_ms = self._loaded_ms = self._generated_ms = 0.0

    def ms(self) -> float:
        """Milliseconds since the acceptance."""
        return (clock.boot() - self._accepted_boot) * 1000

    @contextlib.contextmanager
    def tool(self) -> Iterator[None]:
        """Around a call of a tool, with what the journal writes of it."""
        with self._spends("tools_ms"):
            yield

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """Around bringing something of the model in."""
        began_ms = self.ms()
        with self._spends("load_ms"):
            yield
        self._loaded_ms += self.ms() - began_ms

    @contextlib.contextmanager
    def local(self) -> Iterator[Generating]:
        """Around a generation on the board. One that is refused was waiting for its model, to no avail. One that is
        broken off waited, or its prompt was computed: before its first token these look alike."""
        one = Generating(self.ms)
        try:
            yield one
        except BaseException as error:
            self._broken_off(one, "load_ms" if isinstance(error, EdgedError) else None)
            raise
        if isinstance(done := one.done, Completion):
            self._add(done, done.decode_steps)
            self._note_first(one.began_ms + done.first_token_ms)
            decode_ms = max(0.0, self.ms() - one.began_ms - done.first_token_ms)
            for name in ("queue_ms", "load_ms", "prefill_ms"):
                self._ms[name] += getattr(done, name)
            self._ms["decode_ms"] += decode_ms
            self._prompt_tokens += done.prompt_tokens - done.cached_tokens
            self._steps += done.decode_steps
            self._waited_ms += done.queue_ms
            self._loaded_ms += done.load_ms
            self._generated_ms += done.prefill_ms + decode_ms

    @contextlib.contextmanager
    def upstream(self) -> Iterator[Generating]:
        """Around a generation elsewhere. One that fails waited for a token that never came."""
        one = Generating(self.ms)
        try:
            yield one
        except BaseException:
            self._broken_off(one, "prefill_ms")
            raise
        if isinstance(done := one.done, ChatAnswer):
            before_ms = max(0.0, self.ms() - one.began_ms - done.total_ms)  # for room in the upstream's budget
            self._add(done, 0)
            self._note_first(one.began_ms + before_ms + done.first_token_ms)
            self._ms["queue_ms"] += before_ms
            self._ms["prefill_ms"] += done.first_token_ms
            self._ms["decode_ms"] += done.total_ms - done.first_token_ms

    def usage(self) -> Usage:
        """Tokens so far."""
        return self._usage

    def timing(self) -> Timing:
        """Times so far, rounded; the rounded parts are the rounded whole."""
        parts = {name: round(value, DIGITS) for name, value in self._ms.items()}
        rest = round(self.ms() - sum(parts.values()), DIGITS)
        parts["other_ms"] = round(parts["other_ms"] + max(0.0, rest), DIGITS)
        total = round(sum(parts.values()), DIGITS)
        first = min(total, round(self._first_token_ms or 0.0, DIGITS))
        return Timing(**parts, first_token_ms=first, total_ms=total)

    def need(self) -> Need:
        """What this attempt took of the board."""
        worked_ms = max(0.0, self.ms() - self._began_ms - self._loaded_ms - self._waited_ms)
        other_ms = max(0.0, worked_ms - self._generated_ms)
        return Need(self._prompt_tokens, self._steps, other_ms / 1000, worked_ms / 1000)

    def spent(self) -> Spent:
        """For the attempt that comes after this one."""
        return Spent(self.usage(), self.timing())

    @contextlib.contextmanager
    def _spends(self, name: str) -> Iterator[None]:
        began_ms = self.ms()
        try:
            yield
        finally:
            self._ms[name] += self.ms() - began_ms

    def _broken_off(self, one: Generating, before: str | None) -> None:
        """before: where the time until its first token belongs."""
        now_ms = self.ms()
        first_ms = now_ms if one.first_ms is None else one.first_ms
        if before:
            self._ms[before] += first_ms - one.began_ms
        if one.first_ms is not None:
            self._note_first(one.first_ms)
            self._ms["decode_ms"] += now_ms - one.first_ms

    def _note_first(self, first_ms: float) -> None:
        if self._first_token_ms is None:
            self._first_token_ms = first_ms

    def _add(self, done: Completion | ChatAnswer, steps: int) -> None:
        counted = self._usage
        self._usage = msgspec.structs.replace(
            counted,
            prompt_tokens=counted.prompt_tokens + done.prompt_tokens,
            cached_tokens=counted.cached_tokens + done.cached_tokens,
            completion_tokens=counted.completion_tokens + done.completion_tokens,
            decode_steps=counted.decode_steps + steps,
        )
