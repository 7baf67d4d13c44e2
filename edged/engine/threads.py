"""How many threads compute. Pure.

No fixed setting is right: as many threads as cores is best on a quiet board, and several times slower than one thread
beside one busy process, because all threads wait for the slowest at every layer. So the count starts with what the
process may use and is revised from measured step times while running.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from statistics import median

# More threads only share the same memory bandwidth, which one token's step is bound by.
MOST_THREADS = 8
# Steps between two looks at another count. A step takes some 20 ms on a board, so one every few seconds of work.
REVISE_STEPS = 128
# Steps of one trial; the median of so few is not moved by one hiccup, and a bad count costs no more than these.
TRIAL_STEPS = 7
# A trial has to be faster by this factor: equal counts must not take turns because of noise.
GAIN = 0.92
# The board has become busy when steps take this much longer than usual: try other counts at once.
SLOWER = 1.5
# ... and with two such steps in a row there is no need for more evidence. Threads that wait for one another on a busy
# board are up to 28 times slower, which makes even a trial long.
MUCH_SLOWER = 3.0
# Weight of the newest step in what is usual: slow enough that a change is seen as one.
NEWEST = 0.1
# What reading the weights once costs, in tokens of computing: a step of n tokens takes about as long as n plus this.
# Measured 1.1 with two models on x86 (1, 4 and 8 tokens); boards with slow memory have more. Only used to compare a
# step with one of another size, where being off by a third is good enough to see a collapse.
FIXED_COST_TOKENS = 2


def quota_cpus(cpu_max: Iterable[str]) -> float | None:
    """CPUs that the cgroups allow, from the texts of `cpu.max` of the own group and those above it.

    None where none of them limits. The format is "<quota|max> <period>", in microseconds (cgroup v2 of the kernel's
    documentation). Text that is none of it is no limit.
    """
    limits = []
    for text in cpu_max:
        match text.split():
            case [quota, period] if quota.isdecimal() and period.isdecimal() and int(period):
                limits.append(int(quota) / int(period))
    return min(limits, default=None)


def most_threads(affinity: int, quota: float | None, configured: int | None) -> int:
    """Most threads that make sense: the configured count as it is, else what affinity and quota leave.

    A quota is rounded down: a thread beyond it is stopped in mid-layer, and all others wait for it.
    """
    if configured is not None:
        return max(1, configured)
    allowed = affinity if quota is None else min(affinity, int(quota))
    return max(1, min(allowed, MOST_THREADS))


class Tuner:
    """Chooses the number of threads from the times of steps.

    Steps are compared with what is usual for their number of tokens (or, where none had as many, for the nearest), so
    that any mix of work tells something. Now and
    then a neighbour of the count in use is tried for TRIAL_STEPS steps, and all neighbours when steps have become
    slow; the fastest stays.

    Args:
        most: the highest count; the first one, too.
        fixed: the count was configured and is not revised.
    """

    def __init__(self, most: int, *, fixed: bool = False) -> None:
        self.count = most
        self._most = most
        self._fixed = fixed or most == 1
        self._settled = most
        self._usual: dict[int, float] = {}  # seconds of a step with the settled count, by its tokens
        self._recent: deque[float] = deque(maxlen=TRIAL_STEPS)  # times of the last steps in terms of what was usual
        self._steps = 0
        self._revisions = 0
        self._to_try: list[int] = []
        self._trial: list[float] = []
        self._best = (1.0, most)  # time in terms of what is usual, and the count that took it

    def observe(self, tokens: int, seconds: float) -> int:
        """Learn from a step; returns the count for the next one."""
        if self._fixed:
            return self.count
        self._steps += 1
        if self._to_try:
            self._on_trial_step(tokens, seconds)
        else:
            self._on_usual_step(tokens, seconds)
        return self.count

    def _on_usual_step(self, tokens: int, seconds: float) -> None:
        self._recent.append(self._ratio(tokens, seconds))
        usual = self._usual.get(tokens, seconds)
        self._usual[tokens] = usual + NEWEST * (seconds - usual)
        slow, compared = self._is_slow(), self._revisions > 0
        if len(self._recent) < 2 or not (slow or self._is_due(compared)):
            return
        candidates = self._candidates()
        # The first look is a broad one, too: the board may have been busy from the start.
        self._to_try = candidates if slow or not compared else [candidates[self._revisions % len(candidates)]]
        self._revisions += 1
        self._best = (self._now(), self._settled)
        self._begin_trial()

    def _is_due(self, compared: bool) -> bool:
        return self._steps >= (REVISE_STEPS if compared else TRIAL_STEPS)

    def _is_slow(self) -> bool:
        ratios = list(self._recent)
        lasting = len(ratios) == TRIAL_STEPS and median(ratios) > SLOWER
        return lasting or (len(ratios) > 1 and min(ratios[-2:]) > MUCH_SLOWER)

    def _now(self) -> float:
        """How long steps take at the moment with the settled count, in terms of what is usual."""
        return median(list(self._recent)[-3:])

    def _ratio(self, tokens: int, seconds: float) -> float:
        """How long a step took in terms of what is usual; 1 while nothing is."""
        if not self._usual:
            return 1.0
        near = min(self._usual, key=lambda n: abs(n - tokens))
        usual = self._usual[near] * (tokens + FIXED_COST_TOKENS) / (near + FIXED_COST_TOKENS)
        return seconds / usual if usual > 0 else 1.0

    def _begin_trial(self) -> None:
        self.count = self._to_try[0]
        self._trial = []
        self._steps = 0

    def _on_trial_step(self, tokens: int, seconds: float) -> None:
        self._trial.append(self._ratio(tokens, seconds))
        hopeless = len(self._trial) > 1 and min(self._trial) > MUCH_SLOWER * self._best[0]
        if len(self._trial) >= TRIAL_STEPS or hopeless:
            self._end_trial()

    def _end_trial(self) -> None:
        if len(self._trial) >= TRIAL_STEPS and median(self._trial) < GAIN * self._best[0]:
            self._best = (median(self._trial), self.count)
        self._to_try.pop(0)
        if self._to_try:
            self._begin_trial()
        else:
            self._settle()

    def _settle(self) -> None:
        factor, self._settled = self._best
        self.count = self._settled
        self._usual = {tokens: seconds * factor for tokens, seconds in self._usual.items()}
        self._recent.clear()
        self._steps = 0

    def _candidates(self) -> list[int]:
        """Fewer first (a busy board is where the large losses are), then more."""
        now = self._settled
        near = dict.fromkeys((now // 2, 1, now - 1, now + 1, now * 2, self._most))
        return [n for n in near if 1 <= n <= self._most and n != now]
