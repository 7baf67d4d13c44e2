"""What the kernel says about memory, in bytes. None where it does not say."""

from __future__ import annotations

import re
from pathlib import Path

from edged.governor.budget import Group

MEMINFO = Path("/proc/meminfo")
ROLLUP = Path("/proc/self/smaps_rollup")
SMAPS = Path("/proc/self/smaps")
OWN_CGROUP = Path("/proc/self/cgroup")
CGROUP_ROOT = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as a number near 2^63
# A mapping of a file that holds weights, with all that smaps says of it. The kernel marks files that are gone.
WEIGHTS = re.compile(
    rb"^[0-9a-f]+-[0-9a-f]+ [^\n]* (/[^\n]*\.(?:gguf|onnx)(?: \(deleted\))?)\n((?:\w+:[^\n]*\n)+)", re.MULTILINE
)
FIELD = re.compile(rb"^(\w+): +(\d+) kB$", re.MULTILINE)
# Names of the same thing in both versions: limits, usage, file pages in memory.stat.
V1 = (("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
V2 = (("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file"))


def board_bytes() -> int:
    """RAM this process may use: the board's, or the cgroup's limit where that is smaller."""
    limits = [_meminfo("MemTotal"), cgroup_limit()]
    return min(limit for limit in limits if limit)


def available_bytes() -> int | None:
    """MemAvailable: free memory and what the kernel can reclaim without swapping."""
    return _meminfo("MemAvailable")


def private_bytes() -> int:
    """Memory of this process alone: what is freed if it goes, swapped out or not. Mapped weights are not in it, though
    the kernel counts pages of a file as private where nobody else maps it."""
    fields = dict(_fields(ROLLUP))
    own = sum(fields.get(name, 0) for name in ("Private_Clean", "Private_Dirty", "Swap"))
    weights = sum(of["Private_Clean"] + of["Private_Dirty"] for _, of in _weights())
    return max(0, own - weights)


def mapped_bytes(*names: str) -> int:
    """Resident pages of weights that this process maps: of the files of these names, or of all."""
    return sum(of["Rss"] for path, of in _weights() if not names or Path(path).name in names)


def cgroup_limit() -> int | None:
    """The smallest memory limit on the way from our cgroup to the root; v2, and v1's memory controller."""
    return min((group.limit for group in cgroups()), default=None)


def cgroups() -> list[Group]:
    """Cgroups with a limit, from ours to the root. One that does not say what it uses counts as empty."""
    groups = []
    for line in _lines(OWN_CGROUP):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            groups += _groups(CGROUP_ROOT, path, *V2)
        elif "memory" in controllers.split(","):
            groups += _groups(CGROUP_ROOT / "memory", path, *V1)
    return groups


def _groups(root: Path, path: str, limits: tuple[str, ...], usage: str, cache: tuple[str, ...]) -> list[Group]:
    folder = root / path.strip("/")
    found = []
    while True:
        numbers = [number for name in limits if (number := _number(folder / name)) is not None and number < UNLIMITED]
        if numbers:
            pages = dict(line.split()[:2] for line in _lines(folder / "memory.stat") if len(line.split()) == 2)
            cached = sum(int(pages.get(name, 0)) for name in cache)
            found.append(Group(min(numbers), _number(folder / usage) or 0, cached))
        if folder == root or folder == folder.parent:
            return found
        folder = folder.parent


def _number(path: Path) -> int | None:
    """A file's only number; None for `max`, and where there is no such file."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _weights() -> list[tuple[str, dict[str, int]]]:
    """Mappings of weights: the file, and its sizes in bytes."""
    try:
        text = SMAPS.read_bytes()
    except OSError:
        return []
    sizes = ("Rss", "Private_Clean", "Private_Dirty")
    found = []
    for path, fields in WEIGHTS.findall(text):
        told = {name.decode(): int(size) * 1024 for name, size in FIELD.findall(fields)}
        name = path.decode(errors="replace").removesuffix(" (deleted)")
        found.append((name, {each: told.get(each, 0) for each in sizes}))
    return found


def _meminfo(name: str) -> int | None:
    return dict(_fields(MEMINFO)).get(name)


def _fields(path: Path) -> list[tuple[str, int]]:
    """`Name:   123 kB` lines as bytes."""
    fields = []
    for line in _lines(path):
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdigit():
            fields.append((name, int(words[0]) * 1024))
    return fields


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
