#!/usr/bin/env python3
"""Prints the part of scripts/requirements.lock that a board needs: what edged itself depends on, and what that needs.

The lock names behind `# via` who wants a package; everything is followed from [project.dependencies] of pyproject.toml.
llama-cpp-python is left out: it is built for the CPU (llama_wheel.py). Uses the standard library only.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "scripts" / "requirements.lock"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
BUILT_HERE = "llama-cpp-python"


def blocks(lock: str) -> list[tuple[str, str, set[str]]]:
    """(package, its lines, who wants it) of every entry; a package may have several, for different machines."""
    found = []
    listed = lock.partition("\n\n#")[0] + "\n"  # what follows says what the lock was made without
    for text in re.split(r"(?m)^(?=[A-Za-z0-9])", listed)[1:]:
        comments = " ".join(line.strip(" #") for line in text.splitlines() if line.lstrip().startswith("#"))
        name = NAME.match(text)
        assert name is not None  # the split is at one
        found.append((name[0], text, set(NAME.findall(comments.removeprefix("via")))))
    return found


def needed(direct: set[str], entries: list[tuple[str, str, set[str]]]) -> set[str]:
    """The packages that are wanted directly or by one that is."""
    known: set[str] = set()
    more = direct
    while more:
        known |= more
        more = {name for name, _, wanted_by in entries if wanted_by & known} - known
    return known


def main() -> int:
    """Print it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = {match[0] for text in project["dependencies"] if (match := NAME.match(text))}
    entries = blocks(LOCK.read_text())
    names = needed(direct, entries)
    if missing := names - {name for name, _, _ in entries} - {BUILT_HERE}:
        print(f"{LOCK} lacks {', '.join(sorted(missing))}: make it again", file=sys.stderr)
        return 1
    print("".join(text for name, text, _ in entries if name in names and name != BUILT_HERE), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
