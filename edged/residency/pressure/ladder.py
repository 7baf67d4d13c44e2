"""What is given up while something lasts that must not, one step at a time, and taken back in reverse when it is over.
Pure: sights and the time in, steps out. Seconds on any one clock that only goes forward."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from msgspec import Struct


class Rung(Struct, frozen=True):
    """One thing to give up.

    after_s: seconds that the rung before gets to take effect.
    anew: only where trouble was seen again behind them; else what led to the rung before is enough.
    """

    name: str
    after_s: float = 0.0
    anew: bool = True


class Calm(Struct, frozen=True):
    """When what was given up is taken back, in seconds.

    first_s: without trouble, before the first rung; doubled whenever trouble comes back within `again_s` of a rung that
        was taken back, up to `most_s`; as it was after `most_s` without trouble.
    next_s: from one rung to the next.
    """

    first_s: float
    next_s: float
    again_s: float = 60.0
    most_s: float = 300.0


class Move(Enum):
    """A step: the rung above is taken, or the one stood on is left."""

    UP = "up"
    DOWN = "down"


class Ladder:
    """Where one stands. `level` rungs are taken, lowest first; 0 is the ground.

    (1) a rung is free, its time has come, and trouble was seen (again, where the rung wants that): up;
    (2) no trouble for as long as it takes, and the last step was long enough ago: down;
    (3) else: stay.
    """

    def __init__(self, rungs: Sequence[Rung], calm: Calm) -> None:
        self.rungs = tuple(rungs)
        self.level = 0
        self._calm = calm
        self._patience_s = calm.first_s
        self._seen_at: float | None = None
        self._uneasy_at: float | None = None
        self._moved_at: float | None = None
        self._fell_at: float | None = None
        self._answered = True  # the last sight has led to a step, or came too early for one

    @property
    def patience_s(self) -> float:
        """How long it has to be calm before the first rung is taken back."""
        return self._patience_s

    def see(self, now: float) -> None:
        """Trouble, now."""
        if self._fell_at is not None:
            if now - self._fell_at < self._calm.again_s:
                self._patience_s = min(2 * self._patience_s, self._calm.most_s)
            elif now - self._fell_at >= self._calm.most_s:
                self._patience_s = self._calm.first_s
            self._fell_at = None
        self._seen_at = self._uneasy_at = now
        self._answered = False

    def doubt(self, now: float) -> None:
        """No trouble, and not well either: nothing is taken back yet."""
        self._uneasy_at = now

    def step(self, now: float) -> Move | None:
        """The next step, if one is due; it counts as taken at once."""
        up_at, down_at = self._up_at(), self._down_at()
        if up_at is not None and now >= up_at:  # (1)
            rising = self.level < len(self.rungs) - 1 and not self.rungs[self.level + 1].anew
            self.level, self._moved_at, self._answered = self.level + 1, now, not rising
            return Move.UP
        if down_at is not None and now >= down_at:  # (2)
            self.level, self._moved_at, self._fell_at = self.level - 1, now, now
            self._answered = True  # an old sight leads nowhere any more
            return Move.DOWN
        return None  # (3)

    def settled(self, now: float) -> None:
        """What the last step asked for is done: its effect is waited for from now on."""
        self._moved_at = now

    def next_at(self) -> float | None:
        """When `step` has to be asked again though nothing new is seen; None: not at all."""
        times = [at for at in (self._up_at(), self._down_at()) if at is not None]
        return min(times, default=None)

    def _up_at(self) -> float | None:
        if self._seen_at is None or self._answered or self.level == len(self.rungs):
            return None
        rung = self.rungs[self.level]
        if self._moved_at is None or self.level == 0:
            return self._seen_at
        due = self._moved_at + rung.after_s
        return None if rung.anew and self._seen_at < due else due

    def _down_at(self) -> float | None:
        if self.level == 0 or self._uneasy_at is None or self._moved_at is None:
            return None
        return max(self._uneasy_at + self._patience_s, self._moved_at + self._calm.next_s)
