"""scripts/bench NAME [--json FILE] [--rounds N] [--peer-bin FILE | --peer-build]: runs one benchmark, prints a table,
writes one JSON object."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks import peer_build
from benchmarks.peers import PeerError
from benchmarks.report import Result, machine, table, versions

NAMES = {name: f"benchmarks.{name}" for name in ("ipc", "routing", "toolcall", "restart", "concurrency", "contention")}
LATER = ("memory", "mqtt", "durability")


def main() -> int:
    """Returns the exit status: 64 for wrong usage and names that do not exist, or not yet; 70 where a peer fails."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Run one benchmark.")
    parser.add_argument("name", help=f"one of: {', '.join(NAMES)}")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the result as one JSON object")
    parser.add_argument("--rounds", metavar="N", type=int, help="turns of edged and its peers; fewer are less sure")
    parser.add_argument("--peer-bin", metavar="FILE", type=Path, help="the llama-server to measure against")
    parser.add_argument("--peer-build", action="store_true", help="build that llama-server for this CPU, once")
    options = parser.parse_args()
    if options.name not in NAMES:
        known = f"there is: {', '.join(NAMES)}"
        return refused(f"{options.name}: {'not available yet' if options.name in LATER else 'unknown'}; {known}")
    if options.rounds is not None and options.rounds < 1:
        return refused(f"{options.name}: --rounds is at least 1")
    bench = importlib.import_module(NAMES[options.name])
    if options.peer_build and options.peer_bin:
        return refused(f"{options.name}: --peer-bin and --peer-build are two peers")
    wanted = {"rounds": options.rounds, "peer_bin": options.peer_bin or (options.peer_build or None)}
    arguments = {key: value for key, value in wanted.items() if value is not None}
    if unknown := sorted(arguments.keys() - inspect.signature(bench.run).parameters.keys()):
        names = {"rounds": "--rounds", "peer_bin": "--peer-build" if options.peer_build else "--peer-bin"}
        flags = ", ".join(names[key] for key in unknown)
        return refused(f"{options.name}: {flags} means nothing here")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # daemons and peers are ended then, too
    try:
        if options.peer_build:
            arguments["peer_bin"] = peer_build.llama_server()
        show(options.name, bench, arguments, options.json)
    except PeerError as error:
        print(f"bench {options.name}: {error}", file=sys.stderr)
        return 70
    return 0


def show(name: str, bench: ModuleType, arguments: dict[str, Any], json_file: Path | None) -> None:
    """Run it, print what it found, and write it where wanted."""
    print(f"{name}: {(bench.__doc__ or '').strip().splitlines()[0]}")
    before = machine()
    print(", ".join(f"{key}: {value}" for key, value in before.items()), flush=True)
    found = bench.run(**arguments)
    result = found if isinstance(found, Result) else Result(found)
    for key, value in result.about.items():
        print(f"{key}: {json.dumps(value)}")
    print(table(result.rows))
    if json_file:
        document = {"bench": name, "machine": before, "versions": versions(), **result.about, "rows": result.rows}
        json_file.write_text(json.dumps(document, indent=2) + "\n")


def refused(why: str) -> int:
    """Say what is wrong with the command line."""
    print(f"bench {why}", file=sys.stderr)
    return 64


if __name__ == "__main__":
    sys.exit(main())
