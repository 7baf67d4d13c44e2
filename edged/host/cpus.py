"""Which CPUs this process may use, and who else uses them. Reads small files of the kernel."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Collection, Iterable, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from edged.host import cgroups
from edged.host.kernel_files import NUMBER, text
from edged.host.thermal import Strain

STAT = Path("/proc/stat")
INFO = Path("/proc/cpuinfo")
FREQUENCY = Path("/sys/devices/system/cpu/cpu0/cpufreq")

# Seconds between two looks. Load: its clock ticks every 0.01 s, so in less time it says little; a look takes 0.1 ms.
LOAD_S = 0.5
HEAT_S = 5.0
ALLOWED_S = 10.0
# A load over a longer time says nothing about now.
LATE_S = 5.0
# Turns of the loop in which a thread waits for the others before it sleeps, some 0.4 ms on x86 (before_loading).
SPIN_COUNT = 10_000
# ... where a turn takes about 40 ns: with the instruction `pause` in it.
SPINS_LONG = ("x86_64", "i686")
# Fields of a CPU in STAT that are idle and iowait. The two after the first eight are parts of others (proc(5)).
IDLE = slice(3, 5)
FIELDS = 8


def before_loading(environment: MutableMapping[str, str] | None = None, machine: str | None = None) -> None:
    """Let threads of OpenMP that wait for one another sleep sooner. Before the first import of llama_cpp: libgomp reads
    the environment when it is loaded. What the user has set stays.

    libgomp's own 300,000 turns are 12 ms on x86, longer than the time slice of whatever a thread waits for, so a busy
    board loses them nearly all; without `pause` (ARM: 0.1 to 0.6 ms in all) they are well chosen, and stay.
    Two threads on two cores, a model of 0.5B; busy: tokens/s beside one to four processes and other work of about one
    CPU, medians. Alone: ms of a step of one token and of 64, both threads with real-time priority so that nothing came
    between them, and how often one slept in it.

    | turns | busy 1, 2, 4 | one token | sleeps | 64 tokens | sleeps |
    |---|---|---|---|---|---|
    | 300,000 | 0.4, 0.8, 0.1 | 19.6 | 0 | 299 | 0 |
    | 30,000 | 1.9, 1.9, 0.4 | 20.1 | 0 | 280 | 1 |
    | 10,000 | 2.4, 2.5, 1.7 | 19.4 | 1 | 287 | 13 |
    | 3,000 | 7.5, 4.1, 5.0 | 19.8 | 1 | 289 | 55 |
    | 1,000 | | 20.1 | 1.5 | 291 | 123 |
    | 0 (`OMP_WAIT_POLICY=passive`) | | 28.2 | 670 | 295 | 676 |

    One thread is better than any of these beside busy processes (`threads.Tuner`); this bounds what it costs until that
    is found, and what short bursts of other programs cost all the time.

    Args:
        environment: instead of this process's.
        machine: as `platform.machine()`.
    """
    environment = os.environ if environment is None else environment
    if (machine or platform.machine()) in SPINS_LONG and not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(environment):
        environment["GOMP_SPINCOUNT"] = str(SPIN_COUNT)


class BoardWatch:
    """Looks at the board now and then. For one thread.

    Args:
        now: seconds on any clock that only goes forward, as for all looks.
        configured: threads that were configured; else as many as affinity and quota allow.
        strain: tells whether the board is hot or badly powered.
    """

    def __init__(self, now: float, configured: int | None = None, strain: Strain | None = None) -> None:
        self._configured = configured
        self._strain = strain or Strain()
        self._most = most_threads(configured)
        self._hot = self._strain.look() is not None
        self._load = _LoadMeter(now)
        self._allowed_at = self._heat_at = self._load_at = now

    def look(self, now: float) -> Board | None:
        """What has been seen; None where nothing was due. Often called."""
        if now - self._load_at < LOAD_S:
            return None
        self._load_at = now
        if now - self._allowed_at >= ALLOWED_S:
            self._allowed_at = now
            self._most = most_threads(self._configured)
        if self._strain.exists and now - self._heat_at >= HEAT_S:
            self._heat_at = now
            self._hot = self._strain.look() is not None
        return Board(self._most, self._load.read(now), self._hot)


class _LoadMeter:
    """Who used the CPUs since the last reading."""

    def __init__(self, now: float) -> None:
        self._at = now
        self._cpus = frozenset(os.sched_getaffinity(0))
        self._times = _read_times(self._cpus)
        self._own = time.process_time()

    def read(self, now: float) -> Load | None:
        """None where it cannot be told, or the last reading was too long ago."""
        before, own_before, cpus_before, seconds = self._times, self._own, self._cpus, now - self._at
        self._cpus = frozenset(os.sched_getaffinity(0))
        self._times, self._own, self._at = _read_times(self._cpus), time.process_time(), now
        if before is None or self._times is None or self._cpus != cpus_before or not 0 < seconds <= LATE_S:
            return None
        used, idle = (max(0.0, b - a) / seconds for a, b in zip(before, self._times, strict=True))
        return Load(len(self._cpus), others=max(0.0, used - (self._own - own_before) / seconds), idle=idle)


def _read_times(cpus: Collection[int]) -> tuple[float, float] | None:
    return cpu_times(text(STAT), cpus, os.sysconf("SC_CLK_TCK"))


def cpu_times(stat: str, cpus: Collection[int], ticks: int) -> tuple[float, float] | None:
    """Seconds that these CPUs were used and were idle since the boot, from the text of /proc/stat.

    None where it does not tell. What a hypervisor took from this machine (steal) was used by others.
    """
    wanted = {f"cpu{cpu}" for cpu in cpus}
    used = idle = found = 0
    for line in stat.splitlines():
        name, *fields = line.split() or [""]
        if name not in wanted:
            continue
        if not all(NUMBER.fullmatch(field) for field in fields[:FIELDS]):
            return None
        times = [int(field) for field in fields[:FIELDS]]
        found += 1
        idle += sum(times[IDLE])
        used += sum(times) - sum(times[IDLE])
    return (used / ticks, idle / ticks) if found == len(wanted) else None


def most_threads(configured: int | None) -> int:
    """Most threads that make sense in this process at this moment."""
    return thread_limit(len(os.sched_getaffinity(0)), quota_cpus(_cpu_max_texts()), configured)


def _cpu_max_texts() -> list[str]:
    """`cpu.max` of the own cgroup and of all above it: each of them limits. The root group has none, nor has cgroup v1,
    whose quotas nobody asks about here."""
    return [text(folder / "cpu.max") for version, folder in cgroups.up("cpu") if version == 2]


def model_name() -> str:
    """What the CPUs, or the board, are called; the architecture where the kernel does not say."""
    lines = [line for line in text(INFO).splitlines() if line.startswith(("model name", "Model"))]
    return lines[-1].partition(":")[2].strip() if lines else platform.machine()


def governor() -> tuple[str, str]:
    """(what governs the clock of the CPUs, the driver); empty where the kernel does not change it."""
    return text(FREQUENCY / "scaling_governor"), text(FREQUENCY / "scaling_driver")


def quota_cpus(cpu_max: Iterable[str]) -> float | None:
    """CPUs that the cgroups allow, from the texts of `cpu.max` of the own group and those above it.

    None where none of them limits. The format is "<quota|max> <period>", in microseconds (cgroup v2 of the kernel's
    documentation). Text that is none of it is no limit.
    """
    limits = []
    for line in cpu_max:
        match line.split():
            case [quota, period] if NUMBER.fullmatch(quota) and NUMBER.fullmatch(period) and int(period):
                limits.append(int(quota) / int(period))
    return min(limits, default=None)


def thread_limit(affinity: int, quota: float | None, configured: int | None) -> int:
    """Most threads that make sense: the configured count as it is, else what affinity and quota leave.

    A quota is rounded down: a thread beyond it is stopped in mid-layer, and all others wait for it.
    """
    if configured is not None:
        return max(1, configured)
    allowed = affinity if quota is None else min(affinity, int(quota))
    return max(1, min(allowed, MOST_THREADS))


@dataclass(frozen=True, slots=True)
class Load:
    """Who used the CPUs since the last look, of those this process may use; in CPUs.

    cpus: how many there are.
    others: what other programs used.
    idle: what nobody used.
    """

    cpus: int
    others: float
    idle: float


@dataclass(frozen=True, slots=True)
class Board:
    """What a look at the board told.

    most: threads that affinity and quota allow.
    load: None where nothing is known, or nothing new.
    hot: throttled, or about to be; or badly powered, against which computing less helps as well.
    """

    most: int
    load: Load | None = None
    hot: bool = False


# More threads only share the same memory bandwidth, which one token's step is bound by.
MOST_THREADS = 8
