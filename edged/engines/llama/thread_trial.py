"""Which of two thread counts is faster, from steps of all sizes. Pure.

What predicts throughput is the mean time of steps, not the median: beside a busy process a step either runs undisturbed
or waits for one or more time slices, and the waits are what is lost. Means of few steps are noise, so two counts take
turns until their difference is larger than the noise seen, and no longer.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from itertools import takewhile

# What reading the weights once costs, in tokens of computing: a step of n tokens takes about as long as n plus this.
# Measured 1.1 with two models on x86 (1, 4 and 8 tokens); boards with slow memory have more. Only the first guess for
# a size of step that was not seen yet.
FIXED_COST_TOKENS = 2
# Least weight of the newest step in what a size of step costs in terms of the others.
NEWEST = 0.1

# A count has to be faster by this part: equal counts must not take turns because of noise.
GAIN = 0.05
# ... and by so many standard errors; but half the time is always evidence enough: where steps take 3 to 30 times
# longer, each further one of proof is expensive.
SURE = 2.0
CLEAR = 0.5
# To be turned down a challenger has to be slower by so many standard errors: being wrong costs little, its turn comes.
DOUBTFUL = 1.0
# A challenger's step that takes so many times what is usual ends the trial: one thread too many beside a busy process.
# A long step (BLOCK_S) is a mean of its own.
HOPELESS, HOPELESS_LONG = 4.0, 1.5
# Steps of a block before the other count has its turn, and the seconds after which a block ends anyway. The first step
# of a block profits from what the scheduler owes to threads that slept; several show what they get in the long run.
BLOCK_STEPS = 3
BLOCK_S = 0.3
# Least noise assumed, in terms of the mean: three steps that happen to be alike are no certainty.
LEAST_SPREAD = 0.05
# Most steps of a challenger while it does not seem faster, and while it does.
PATIENCE, LONG_PATIENCE = 12, 32
# Seconds after which the likelier count is taken, with so many standard errors: the right one late is no gain either.
LONG_S, LIKELY = 1.5, 0.5

# The board has changed when the last WINDOW_S, and at least WINDOW_STEPS steps, took this much longer or shorter than
# usual, the slowest of them left out. Two steps of that time that take COLLAPSE times what is usual are evidence, too;
# a single one may be a stall of the medium.
WINDOW_S = 0.3
WINDOW_STEPS = 4
SLOWER, FASTER = 1.4, 0.7
COLLAPSE = 2.0


@dataclass(frozen=True, slots=True)
class TimedStep:
    """What was computed at once; `units` of work (`Shapes`)."""

    tokens: int
    seconds: float
    units: float

    @property
    def cost(self) -> float:
        """Seconds of a unit."""
        return self.seconds / self.units


class Shapes:
    """What steps of different sizes cost in terms of one another, so that any mix of work can be compared."""

    def __init__(self) -> None:
        self._weights: dict[int, float] = {}
        self._seen: dict[int, int] = {}

    def units(self, tokens: int) -> float:
        """The work of a step; in the first size seen a token is one unit."""
        size = _size(tokens)
        if size not in self._weights:
            near = min(self._weights, key=lambda s: abs(s - size), default=None)
            self._weights[size] = 1.0 if near is None else self._weights[near]
            self._seen[size] = 0
        return self._weights[size] * (tokens + FIXED_COST_TOKENS)

    def learn(self, tokens: int, ratio: float) -> None:
        """A step took `ratio` times what its work should have. The first size is the measure of all others."""
        size = _size(tokens)
        if size == next(iter(self._weights)):
            return
        self._seen[size] += 1
        newest = max(NEWEST, 1 / (1 + self._seen[size]))
        self._weights[size] *= min(2.0, max(0.5, ratio)) ** newest


def _size(tokens: int) -> int:
    """Steps up to the same power of two are alike but for their tokens."""
    return (tokens - 1).bit_length()


@dataclass(slots=True)
class TrialScore:
    """Steps with one count."""

    steps: int = 0
    seconds: float = 0.0
    units: float = 0.0
    squares: float = 0.0  # of seconds per unit
    worst: TimedStep | None = None

    def add(self, step: TimedStep) -> None:
        self.steps += 1
        self.seconds += step.seconds
        self.units += step.units
        self.squares += step.cost**2
        if self.worst is None or step.cost > self.worst.cost:
            self.worst = step

    @property
    def mean(self) -> float:
        """Seconds of a unit."""
        return self.seconds / self.units

    @property
    def mean_but_worst(self) -> float:
        """Seconds of a unit without the slowest step, which may have been a hiccup. Needs two."""
        assert self.worst is not None
        return (self.seconds - self.worst.seconds) / (self.units - self.worst.units)

    @property
    def variance(self) -> float:
        """Of the steps, in terms of the squared mean."""
        return max(0.0, self.squares / self.steps / self.mean**2 - 1)


class Recent:
    """The last steps with one count: enough of them to see that the board has changed."""

    def __init__(self) -> None:
        self._steps: deque[TimedStep] = deque()
        self._seconds = 0.0
        self._units = 0.0

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: TimedStep) -> list[TimedStep]:
        """Take one in; returns those that are too old."""
        self._steps.append(step)
        self._seconds += step.seconds
        self._units += step.units
        aged = []
        while len(self._steps) > WINDOW_STEPS and self._seconds - self._steps[0].seconds >= WINDOW_S:
            old = self._steps.popleft()
            self._seconds -= old.seconds
            self._units -= old.units
            aged.append(old)
        return aged

    def clear(self) -> None:
        self._steps.clear()
        self._seconds = self._units = 0.0

    def change(self, usual: float, noise: float) -> float | None:
        """What a unit takes in terms of what is usual, where that is no longer so.

        noise: variance of the steps in terms of the squared mean.
        """
        slow = self.last_slow(COLLAPSE * usual)
        if slow.steps > 1 and slow.seconds >= WINDOW_S:
            return slow.mean / usual
        if len(self._steps) < WINDOW_STEPS or self._seconds < WINDOW_S:
            return None
        worst = max(self._steps, key=lambda step: step.cost)
        ratio = (self._seconds - worst.seconds) / (self._units - worst.units) / usual
        margin = SURE * math.sqrt(noise / len(self._steps))
        return None if FASTER - margin < ratio < SLOWER + margin else ratio

    def last_slow(self, cost: float) -> TrialScore:
        """Those at the end that took longer than `cost` seconds a unit, without a faster one between them."""
        tally = TrialScore()
        for step in takewhile(lambda s: s.cost > cost, reversed(self._steps)):
            tally.add(step)
        return tally


@dataclass(slots=True)
class ThreadTrial:
    """Two counts take turns, the challenger first.

    settled: the count in use.
    usual: seconds of a unit with it, lately.
    noise: variance of the steps with it, lately, in terms of the squared mean.
    urged: something asked for the trial.
    ours: steps with the count in use; some may have been taken before, where they are known to be of the same board.
    """

    challenger: int
    settled: int
    usual: float
    noise: float
    urged: bool
    ours: TrialScore = field(default_factory=TrialScore)
    theirs: TrialScore = field(default_factory=TrialScore)
    _block: TrialScore = field(default_factory=TrialScore)
    _challenging: bool = True

    @property
    def count(self) -> int:
        """Threads of the next step."""
        return self.challenger if self._challenging else self.settled

    @property
    def up(self) -> bool:
        """Is it about more threads?"""
        return self.challenger > self.settled

    @property
    def gain(self) -> float:
        """What the challenger's steps took in terms of the other's."""
        return self.theirs.mean / self.ours.mean

    @property
    def lost(self) -> float:
        """Seconds that the challenger's steps took longer than they would have."""
        usual = self.ours.mean if self.ours.steps else self.usual
        return max(0.0, self.theirs.seconds - self.theirs.units * usual)

    def add(self, step: TimedStep) -> bool | None:
        """Count a step with `count` threads. True: the challenger has won; False: it has not."""
        (self.theirs if self._challenging else self.ours).add(step)
        self._block.add(step)
        hopeless = HOPELESS_LONG if step.seconds >= BLOCK_S and self.usual * step.units >= BLOCK_S / 2 else HOPELESS
        if self._challenging and step.cost > hopeless * self.usual:
            return False
        if self._block.steps == BLOCK_STEPS or self._block.seconds >= BLOCK_S:
            self._block = TrialScore()
            self._challenging = not self._challenging
        return self._verdict()

    def _verdict(self) -> bool | None:
        theirs, ours = self.theirs, self.ours
        if min(theirs.steps, ours.steps) < 2:
            return None
        spread = max(LEAST_SPREAD, math.sqrt(max(theirs.variance, ours.variance, self.noise)))
        error = spread * math.sqrt(1 / theirs.steps + 1 / ours.steps)
        ratio = self.gain
        if ratio < 1 - max(GAIN, SURE * error) or theirs.mean < CLEAR * ours.mean_but_worst:
            return True
        if ratio > 1 + DOUBTFUL * error:
            return False
        if theirs.seconds + ours.seconds >= LONG_S:
            return ratio < 1 - max(GAIN, LIKELY * error)
        over = theirs.steps >= (PATIENCE if ratio > 1 - GAIN else LONG_PATIENCE)
        return False if over else None
