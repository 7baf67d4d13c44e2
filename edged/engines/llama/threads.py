"""How many threads compute. Pure.

No fixed setting is right: as many threads as cores is best on a quiet board, and several times slower than one thread
beside one busy process, because all threads wait for the slowest at every layer. And the phases differ: a prompt is
bound by arithmetic, where every core helps; a token of an answer by memory, where some boards are fastest with fewer.
So each phase starts with what the process may use and goes on from measured step times (`thread_trial`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from edged.engines.llama.thread_trial import (
    COLLAPSE,
    FASTER,
    HOPELESS,
    SLOWER,
    Recent,
    Shapes,
    ThreadTrial,
    TimedStep,
    TrialScore,
)
from edged.host.cpus import Board, Load

NUMBER = re.compile(r"[0-9]{1,20}")  # as the kernel writes 64 bits
# Steps of up to so many tokens are bound by reading the weights (a token of each of a few sequences, short forced
# runs), longer ones by arithmetic.
DECODE_TOKENS = 8
# Weight of the newest step in what is usual: slow enough that a change is seen as one.
NEWEST = 0.05

# Part of the time that fruitless trials in one direction may cost: what one lost is earned before the next.
BUDGET = 0.004
# Bounds of the time between two trials in one direction, in seconds of computing; doubled while they bring nothing.
LEAST_INTERVAL_S, MOST_INTERVAL_S = 1.0, 64.0
# ... of the first time where others use the CPUs that more threads would need, and of what a trial has to earn.
CROWDED_INTERVAL_S, MOST_DEBT_S = 30.0, 256.0
# ... and of the time before one that something asks for.
HOLD_S = 1.0
# Most that one step adds to the noise: four times what is usual is hopeless, and no noise.
MOST_NOISE = (HOPELESS - 1) ** 2
# A move with such a gain is the board's doing rather than the phase's: the other phase follows it.
BOARD_GAIN = 0.6
# A trial that lasts longer, because its phase seldom has work, compares times that have nothing to do with one another.
STALE_S = 30.0
# Others use CPUs in parts: what they leave is another count when it is this far from the one before.
FREE_HYSTERESIS = 0.65
# ... and all CPUs are in use when less than this was idle, in CPUs.
FULL = 0.15


@dataclass(frozen=True, slots=True)
class Counts:
    """Threads in each phase."""

    decode: int
    prompt: int


class Tuner:
    """Chooses the number of threads of each step from the times of those before.

    Now and then, seldom while it brings nothing, another count is compared with the one in use; at once where steps
    have become slower or faster, or other programs use more or less of the CPUs than before.

    Args:
        most: the highest count; the first one, too.
        fixed: the count was configured and is not revised.
    """

    def __init__(self, most: int, *, fixed: bool = False) -> None:
        self._fixed = fixed
        self._decode = _Phase(most)
        self._prompt = _Phase(most)
        self._clock = 0.0  # seconds of computing
        self._used = most  # threads of the last step
        self._fit: int | None = None

    @property
    def count(self) -> int:
        """Threads a token of an answer is computed with; comparisons aside."""
        return self._decode.settled

    @property
    def counts(self) -> Counts:
        """What each phase has settled on."""
        return Counts(decode=self._decode.settled, prompt=self._prompt.settled)

    def threads(self, tokens: int) -> int:
        """Threads for the next step, which computes so many tokens."""
        return self._phase(tokens).count

    def observe(self, tokens: int, seconds: float) -> None:
        """Learn from the step that `threads` was asked for last."""
        if self._fixed or tokens < 1 or seconds <= 0:
            return
        self._clock += seconds
        phase = self._phase(tokens)
        self._used = phase.count
        move = phase.observe(tokens, seconds, self._clock)
        if move and move.board:
            (self._prompt if phase is self._decode else self._decode).follow(move)

    def adapt(self, board: Board) -> None:
        """Take notice of the board. For between two steps; nothing has to have changed."""
        if self._fixed:
            return
        most = max(1, board.most - 1 if board.hot else board.most)
        before = self._fit
        if board.load is not None:
            self._fit = _fit(board.load, self._used, most, before)
        for phase in (self._decode, self._prompt):
            phase.limit(most)
            if self._fit is not None and self._fit != before:
                phase.leave(self._fit)

    def _phase(self, tokens: int) -> _Phase:
        return self._decode if tokens <= DECODE_TOKENS else self._prompt


def _fit(load: Load, threads: int, most: int, before: int | None) -> int:
    """Threads that find a CPU of their own; the count before stays where it is nearly right.

    threads: what was computed with at the time of the load.
    """
    wanted = load.others
    if load.idle < FULL and 0 < load.others < load.cpus:  # everybody got a part: others * threads / own
        wanted *= max(1.0, threads / (load.cpus - load.others))
    free = min(load.cpus - wanted, most)
    if before is not None and before <= most and abs(free - before) < FREE_HYSTERESIS:
        return before
    return max(1, math.floor(free + 0.5))


@dataclass(frozen=True, slots=True)
class _Move:
    """A phase went to another count. board: because the board changed."""

    count: int
    up: bool
    board: bool


@dataclass(slots=True)
class _Side:
    """When fewer threads, or more, are compared with the count in use.

    due: the clock at which the next trial may begin.
    ended: the clock at which the last one did.
    trials: since the count in use is in use; each tries another count.
    urged: something asks for the next one.
    """

    due: float = 0.0
    interval: float = LEAST_INTERVAL_S
    ended: float = -HOLD_S
    trials: int = 0
    urged: bool = False


class _Phase:
    """One phase's count.

    Args:
        most: the highest count, and the first one.
    """

    def __init__(self, most: int) -> None:
        self.settled = most
        self._most = most
        self._fit: int | None = None
        self._shapes = Shapes()
        self._trial: ThreadTrial | None = None
        self._trial_began = 0.0  # on everybody's clock
        # The board may be busy from the start: at first all of the fewer are compared.
        self._fewer, self._more = _Side(urged=True), _Side()
        self._clock = 0.0  # seconds of computing in this phase
        self._usual: float | None = None  # seconds of a unit of work with the count in use
        self._noise = 0.0  # variance of the steps, in terms of the squared mean
        self._recent = Recent()
        self._collapsed = TrialScore()  # steps that have just shown that the board is another one

    @property
    def count(self) -> int:
        """Threads of the next step."""
        return self._trial.count if self._trial else self.settled

    def observe(self, tokens: int, seconds: float, clock: float) -> _Move | None:
        """Learn from a step with `count` threads."""
        self._clock += seconds
        step = TimedStep(tokens, seconds, self._shapes.units(tokens))
        if self._trial is None:
            self._collapsed = TrialScore()
            self._on_usual_step(step)
            self._begin_if_due(clock)
            return None
        if clock - self._trial_began > STALE_S:
            self._trial = None
            return None
        won = self._trial.add(step)
        return None if won is None else self._end_trial(self._trial, won=won)

    def follow(self, move: _Move) -> None:
        """The other phase found that the board has changed."""
        count = min(move.count, self._most)
        if count != self.settled and (count > self.settled) == move.up:
            self._settle(count, None)

    def limit(self, most: int) -> None:
        """The highest count is another one."""
        before, self._most = self._most, most
        if self.settled > most:
            self._settle(most, None)
        elif self._trial and self._trial.challenger > most:
            self._trial = None
        if most > before:
            self._urge(self._more)

    def leave(self, fit: int) -> None:
        """Others leave CPUs for so many threads, which is news."""
        self._fit = fit
        if self._usual is None and self._trial is None:  # nothing is known better
            self.settled = min(self.settled, fit)
        elif fit != self.settled:
            self._trial = None
            self._urge(self._fewer if fit < self.settled else self._more)

    # The usual step

    def _on_usual_step(self, step: TimedStep) -> None:
        if self._usual is None:
            self._usual = step.cost
        for aged in self._recent.add(step):
            ratio = aged.cost / self._usual
            self._shapes.learn(aged.tokens, ratio)
            self._usual += NEWEST * (aged.cost - self._usual)
            self._noise += NEWEST * (min(MOST_NOISE, (ratio - 1) ** 2) - self._noise)
        change = self._recent.change(self._usual, self._noise)
        if change is None:
            return
        self._urge(self._fewer if change > 1 else self._more)
        self._collapsed = self._recent.last_slow(COLLAPSE * self._usual)
        self._usual *= change

    # Duels

    def _urge(self, side: _Side) -> None:
        side.due = min(side.due, max(self._clock, side.ended + HOLD_S))
        side.trials = 0
        side.urged = True

    def _begin_if_due(self, clock: float) -> None:
        for side in sorted((self._fewer, self._more), key=lambda s: s.due):
            candidates = self._candidates(side)
            if self._clock >= side.due and len(self._recent) > 1 and candidates:
                self._begin(candidates[side.trials % len(candidates)], side, clock)
                return

    def _candidates(self, side: _Side) -> list[int]:
        """Counts to compare with the one in use, the likeliest first."""
        now = self.settled
        if side is self._more:
            near = [now + 1, 2 * now, self._most]
        elif side.urged:
            near = [1, now // 2, now - 1]  # one thread waits for nobody
        else:
            near = [now - 1, now // 2, 1]
        if self._fit is not None:
            near.insert(0, self._fit)
        low, high = (1, now - 1) if side is self._fewer else (now + 1, self._most)
        return [n for n in dict.fromkeys(near) if low <= n <= high]

    def _begin(self, challenger: int, side: _Side, clock: float) -> None:
        assert self._usual is not None
        self._trial = ThreadTrial(challenger, self.settled, self._usual, self._noise, side.urged)
        self._trial_began = clock
        if side is self._fewer:
            self._trial.ours = self._collapsed

    def _end_trial(self, trial: ThreadTrial, *, won: bool) -> _Move | None:
        self._trial = None
        side = self._more if trial.up else self._fewer
        side.ended = self._clock
        side.trials += 1
        if won:
            self._settle(trial.challenger, trial.theirs.mean)
            return _Move(trial.challenger, trial.up, board=trial.urged or trial.gain < BOARD_GAIN)
        side.urged = trial.urged and side.trials < len(self._candidates(side))
        if not side.urged:
            side.due = self._clock + max(side.interval, min(MOST_DEBT_S, trial.lost / BUDGET))
            side.interval = min(MOST_INTERVAL_S, 2 * side.interval)
        if self._usual and trial.ours.steps > 1 and not FASTER < trial.ours.mean / self._usual < SLOWER:
            self._usual = trial.ours.mean
        self._recent.clear()
        return None

    def _settle(self, count: int, usual: float | None) -> None:
        """Use another count; go on in the same direction at once, and look back soon."""
        up = count > self.settled
        self.settled = count
        self._trial = None
        self._usual = usual
        self._recent.clear()
        for side in (self._fewer, self._more):
            crowded = side is self._more and self._fit is not None and self._fit <= count
            side.interval = CROWDED_INTERVAL_S if crowded else LEAST_INTERVAL_S
            side.trials = 0
            side.urged = False
            side.due = self._clock + (0 if (side is self._more) == up else side.interval)
