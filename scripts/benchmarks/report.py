"""What every benchmark prints beside its figures, and how."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What a bench found. about: what else its figures depend on, told above the table and kept in the JSON. failed:
    what could not be measured and why; it is told behind the table, and the bench has failed."""

    rows: list[Row]
    about: dict[str, Any] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


def machine() -> dict[str, Any]:
    """Processor, usable cores, memory in MiB, load average: without them a figure says nothing."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith(("model name", "Model"))
        ),
        platform.machine(),
    )
    memory = int(Path("/proc/meminfo").read_text(encoding="utf-8").split()[1]) // 1024
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": memory,
        "load": round(os.getloadavg()[0], 1),
    }


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    return {name: version(name) for name in ("edged", "llama-cpp-python", "llguidance", "apsw", "paho-mqtt", "msgpack")}


def say(text: str) -> None:
    """How far it is, for people: stdout carries the result only."""
    print(f"  {text}", file=sys.stderr, flush=True)


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def table(rows: list[Row]) -> str:
    """Columns in the order in which rows have them."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names] + [[_shown(row.get(name)) for name in names] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def _shown(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else "" if value is None else str(value)
