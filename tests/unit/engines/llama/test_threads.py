"""How many threads compute, on boards that are made up from measured figures."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle, pairwise
from statistics import mean

import pytest

from edged.engines.llama.thread_trial import Shapes
from edged.engines.llama.threads import DECODE_TOKENS, Counts, Tuner
from edged.host.cpus import Board, Load, quota_cpus, thread_limit

SEEDS = range(5)


@pytest.mark.parametrize(
    ("texts", "cpus_allowed"),
    [
        ([], None),
        (["max 100000\n"], None),
        (["150000 100000\n"], 1.5),
        (["max 100000", "400000 100000", "200000 100000"], 2.0),
        (["", "nonsense", "1 2 3", "100000 0"], None),
    ],
)
def test_quota_is_the_smallest_of_all_groups(texts: list[str], cpus_allowed: float | None) -> None:
    assert quota_cpus(texts) == cpus_allowed


@pytest.mark.parametrize(
    ("affinity", "quota", "configured", "threads"),
    [
        (4, None, None, 4),
        (64, None, None, 8),
        (4, 2.5, None, 2),
        (4, 0.5, None, 1),
        (2, 8.0, None, 2),
        (4, None, 1, 1),
        (2, 1.0, 6, 6),
        (4, None, 0, 1),
    ],
)
def test_most_threads(affinity: int, quota: float | None, configured: int | None, threads: int) -> None:
    assert thread_limit(affinity, quota, configured) == threads


# Boards. Each gives tokens/s of one sequence by busy processes beside it and threads.

Table = dict[int, dict[int, float]]
# Measured on two cores of x86 with a model of 0.5B.
TWO: Table = {0: {1: 47, 2: 60}, 1: {1: 46, 2: 20}, 2: {1: 35, 2: 18}, 4: {1: 18, 2: 4}}
# ... with threads that hardly spin: the counts are nearly equal on a busy board.
TWO_PATIENT: Table = {0: {1: 47, 2: 58}, 1: {1: 46, 2: 36}, 2: {1: 35, 2: 33}, 4: {1: 18, 2: 19}}


def crowded(quiet: dict[int, float], cores: int) -> Table:
    """What too many threads cost, as on the two cores: a single one gets its part, several wait for one another."""
    table: Table = {}
    for busy in (0, 1, 2, 4):
        part = cores / (cores + busy)
        table[busy] = {n: v if n + busy <= cores else v * part * (1 if n == 1 else 0.3) for n, v in quiet.items()}
    return table


FOUR = crowded({1: 12, 2: 22, 3: 30, 4: 36}, 4)
EIGHT = crowded({n: 30 * n**0.8 for n in range(1, 9)}, 8)
MEMORY_BOUND = crowded({1: 12, 2: 18, 3: 16, 4: 13}, 4)  # two threads saturate the memory

Noise = Callable[[random.Random, bool], float]


def even(rng: random.Random, crowded: bool) -> float:
    """Steps that hardly differ."""
    return rng.uniform(0.95, 1.05)


def bimodal(rng: random.Random, crowded: bool) -> float:
    """Steps that run undisturbed or lose time slices, where there are too many threads."""
    if crowded:
        return (2.6 if rng.random() < 0.3 else 0.3142) * rng.lognormvariate(0, 0.1)
    return rng.lognormvariate(0, 0.06)


@dataclass
class Bench:
    """Work on a board, step by step."""

    table: Table
    cores: int
    tuner: Tuner
    noise: Noise = even
    seed: int = 1
    tells_load: bool = True
    shapes: Iterator[int] = field(default_factory=lambda: cycle((1,)))
    hot: bool = False
    now: float = 0.0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.looked = self.now
        self.others = self.own = 0.0

    def run(self, busy: int, seconds: float, after: float = 0.0) -> float:
        """Tokens of one sequence (or as much work) a second, from `after` seconds on, in terms of the best count's."""
        began, counted_from, work = self.now, None, 0.0
        while self.now < began + seconds:
            if counted_from is None and self.now >= began + after:
                counted_from = self.now
            done = self._step(busy)
            work += done if counted_from is not None else 0.0
        assert counted_from is not None
        return work / (self.now - counted_from) / max(self.table[busy].values())

    def _step(self, busy: int) -> float:
        if self.now - self.looked >= 0.5:
            self._look()
        tokens = next(self.shapes)
        threads = self.tuner.threads(tokens)
        work = (tokens + 1.1) / 2.1
        seconds = work / self.table[busy][threads] * self.noise(self.rng, threads > 1 and threads + busy > self.cores)
        part = min(1.0, self.cores / (threads + busy))
        self.now += seconds
        self.others += seconds * busy * part
        self.own += seconds * threads * part
        self.tuner.observe(tokens, seconds)
        return work

    def _look(self) -> None:
        seconds = self.now - self.looked
        idle = max(0.0, self.cores - (self.others + self.own) / seconds)
        load = Load(self.cores, self.others / seconds, idle) if self.tells_load else None
        self.tuner.adapt(Board(self.cores, load, self.hot))
        self.looked, self.others, self.own = self.now, 0.0, 0.0


BOARDS = {
    "two": (TWO, 2),
    "two, patient": (TWO_PATIENT, 2),
    "four": (FOUR, 4),
    "eight": (EIGHT, 8),
    "memory bound": (MEMORY_BOUND, 4),
}


def bench(board: str, noise: Noise = even, seed: int = 1, tells_load: bool = True) -> Bench:
    table, cores = BOARDS[board]
    return Bench(table, cores, Tuner(cores), noise, seed, tells_load)


@pytest.mark.parametrize("noise", [even, bimodal])
@pytest.mark.parametrize(
    ("board", "best"), [("two", 2), ("two, patient", 2), ("four", 4), ("eight", 8), ("memory bound", 2)]
)
def test_a_quiet_board_loses_less_than_a_hundredth(board: str, best: int, noise: Noise) -> None:
    benches = [bench(board, noise, seed) for seed in SEEDS]
    for one in benches:
        one.run(0, 10)
    reached = [one.run(0, 60) for one in benches]
    assert [one.tuner.count for one in benches] == [best] * len(benches)
    # What equal noise gives or takes in a minute is not the tuner's.
    assert mean(reached) > 0.99
    assert min(reached) > 0.98


@pytest.mark.parametrize("tells_load", [True, False])
@pytest.mark.parametrize("noise", [even, bimodal])
@pytest.mark.parametrize(
    ("board", "busy", "best"),
    [
        ("two", 1, {1}),
        ("two", 2, {1}),
        ("two", 4, {1}),
        ("two, patient", 1, {1}),
        ("two, patient", 2, {1, 2}),
        ("two, patient", 4, {1, 2}),
        ("four", 1, {3}),
        ("four", 2, {2}),
        ("eight", 1, {7}),
        ("eight", 2, {6}),
        ("eight", 4, {4}),
    ],
)
def test_a_board_that_becomes_busy(board: str, busy: int, best: set[int], noise: Noise, tells_load: bool) -> None:
    """Nine tenths of the best count's speed from two seconds after the change on, or from the start."""
    reached, settled = [], []
    for seed in SEEDS:
        for seconds_quiet in (0, 30):
            one = bench(board, noise, seed, tells_load)
            if seconds_quiet:
                one.run(0, seconds_quiet)
            reached.append(one.run(busy, 12, after=2))
            settled.append(one.tuner.count)
    assert mean(reached) > (0.9 if tells_load else 0.85)
    assert sum(count in best for count in settled) >= 0.8 * len(settled)


@pytest.mark.parametrize("noise", [even, bimodal])
@pytest.mark.parametrize("board", ["two", "two, patient", "four", "eight"])
@pytest.mark.parametrize("busy", [1, 2, 4])
def test_a_board_that_becomes_quiet_again(board: str, busy: int, noise: Noise) -> None:
    reached = []
    for seed in SEEDS:
        one = bench(board, noise, seed)
        one.run(busy, 20)
        reached.append(one.run(0, 12, after=3))
        assert one.tuner.count == one.cores
    assert min(reached) > 0.95


def test_a_quiet_board_is_noticed_by_those_who_are_not_told() -> None:
    """Without a load to be seen a count that was no use is tried again, more and more seldom."""
    one = bench("two", tells_load=False)
    one.run(4, 10)
    assert one.tuner.count == 1
    one.run(0, 3)
    assert one.tuner.count == 2, "steps that become faster are a sign"
    one.run(1, 3)
    assert one.tuner.count == 1
    one.run(0, 70)
    assert one.tuner.count == 2, "one thread is as fast beside one process as alone"


def mixed() -> Iterator[int]:
    """Tool calls: a turn of some length, single tokens, forced runs of all lengths."""
    rng = random.Random(7)
    while True:
        yield rng.randrange(16, 64)
        for _ in range(12):
            yield rng.choice((1, 1, 1, 2, 3, 5, 8))


@pytest.mark.parametrize("board", ["two", "four", "eight"])
def test_any_mix_of_work(board: str) -> None:
    """Both phases follow the board, whatever the size of the steps."""
    one = bench(board)
    one.shapes = mixed()
    one.run(0, 30)
    assert one.run(0, 60) > 0.985
    assert one.tuner.counts == Counts(one.cores, one.cores)
    best = {"two": 1, "four": 3, "eight": 7}[board]
    assert one.run(1, 30, after=5) > 0.9
    assert one.tuner.counts == Counts(best, best)
    one.run(0, 20)
    assert one.tuner.counts == Counts(one.cores, one.cores)


def test_phases_have_counts_of_their_own() -> None:
    """A board whose memory is saturated by two threads, and whose cores all help with a prompt."""
    tuner = Tuner(4)
    decode, prompt = {1: 1.5, 2: 1.0, 3: 1.2, 4: 1.4}, {1: 4.0, 2: 2.0, 3: 1.4, 4: 1.0}
    rng = random.Random(3)
    for i in range(1500):
        tokens = 64 if i % 10 == 0 else 1
        threads = tuner.threads(tokens)
        seconds = prompt[threads] / 10 if tokens > DECODE_TOKENS else decode[threads] / 50
        tuner.observe(tokens, seconds * rng.uniform(0.95, 1.05))
    assert tuner.counts == Counts(decode=2, prompt=4)
    assert tuner.count == 2


def test_the_other_phase_follows_a_board_that_has_changed() -> None:
    """After many tokens of an answer beside a busy process the next prompt does not start with every core."""
    one = bench("two")
    one.shapes = cycle((64, 1, 1, 1))
    one.run(0, 20)
    one.shapes = cycle((1,))
    one.run(1, 5)
    assert one.tuner.threads(64) == 1
    one.run(0, 5)
    assert one.tuner.threads(64) == 2


def test_a_few_hiccups_move_nothing() -> None:
    """A stall of the medium, a burst of another program: seconds long, over when it is noticed."""
    tuner, rng, counts = Tuner(4), random.Random(5), []
    for i in range(3000):
        stalled = i % 150 == 149
        threads = tuner.threads(1)
        tuner.observe(1, 0.4 if stalled else rng.uniform(0.95, 1.05) / FOUR[0][threads])
        counts.append(threads)
    assert tuner.count == 4
    assert sum(count != 4 for count in counts) < 0.05 * len(counts)


def test_equal_counts_do_not_take_turns() -> None:
    table = {0: {1: 50.0, 2: 50.0}}
    for seed in SEEDS:
        one, counts = Bench(table, 2, Tuner(2), bimodal, seed), []
        for _ in range(60):
            one.run(0, 1)
            counts.append(one.tuner.count)
        assert sum(a != b for a, b in pairwise(counts)) <= 3


@pytest.mark.parametrize("tuner", [Tuner(4, fixed=True), Tuner(1)])
def test_nothing_to_choose(tuner: Tuner) -> None:
    """A configured count stays whatever the board does, and one core leaves no choice."""
    before = tuner.counts
    one = Bench(FOUR, 4 if tuner.count == 4 else 1, tuner, hot=True)
    one.run(4, 10)
    assert tuner.counts == before
    assert tuner.threads(1) == tuner.threads(100) == before.decode


def test_a_quota_that_changes() -> None:
    """Fewer CPUs at once, more when they have proved to be useful."""
    one = bench("four")
    one.run(0, 5)
    one.tuner.adapt(Board(2))
    assert (one.tuner.threads(1), one.tuner.threads(64)) == (2, 2)
    one.cores = 2
    one.run(0, 5)
    assert one.tuner.count == 2
    one.cores = 4
    one.run(0, 5)
    assert one.tuner.count == 4


def test_a_hot_board_computes_with_one_less() -> None:
    one = bench("four")
    one.run(0, 5)
    one.hot = True
    one.run(0, 5)
    assert one.tuner.counts == Counts(3, 3)
    one.hot = False
    one.run(0, 3)
    assert one.tuner.count == 4
    one.tuner.adapt(Board(1, hot=True))
    assert one.tuner.threads(1) == one.tuner.threads(64) == 1


def test_nothing_is_learned_from_no_work() -> None:
    tuner = Tuner(2)
    for _ in range(100):
        tuner.observe(0, 1.0)
        tuner.observe(1, 0.0)
    assert tuner.counts == Counts(2, 2)
    assert tuner.threads(1) == 2


def test_shapes_learn_what_a_size_costs() -> None:
    """Steps of four tokens that take as long as those of one: whoever mixes them compares equal with equal."""
    shapes = Shapes()
    first = shapes.units(1)
    for _ in range(60):
        shapes.learn(4, first / shapes.units(4))
        shapes.learn(1, 1.0)
    assert shapes.units(4) == pytest.approx(first, rel=0.02)
    assert shapes.units(1) == first
    assert shapes.units(3) < shapes.units(4), "alike but for their tokens"
