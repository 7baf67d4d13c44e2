"""Which CPUs this process may use. Reads small files of the kernel."""

from __future__ import annotations

import os
from pathlib import Path

from edged.engine import threads

CGROUP_ROOT = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def most_threads(configured: int | None) -> int:
    """Most threads that make sense in this process at this moment."""
    return threads.most_threads(len(os.sched_getaffinity(0)), threads.quota_cpus(_cpu_max_texts()), configured)


def _cpu_max_texts() -> list[str]:
    """`cpu.max` of the own cgroup and of all above it: each of them limits."""
    texts = []
    group = CGROUP_ROOT / _own_group()
    while group.is_relative_to(CGROUP_ROOT):
        try:
            texts.append((group / "cpu.max").read_text())
        except OSError:
            pass  # the root group has none, nor has cgroup v1
        group = group.parent
    return texts


def _own_group() -> str:
    """Path of the own cgroup below the root, empty where it cannot be told (cgroup v1)."""
    try:
        lines = OWN_CGROUP.read_text().splitlines()
    except OSError:
        return ""
    return next((line[3:].lstrip("/") for line in lines if line.startswith("0::")), "")
