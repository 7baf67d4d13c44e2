"""scripts/bench NAME [--json FILE] [--rounds N] [--peer-bin FILE | --peer-build] [--only SECTION] [--cycles N]
[--requests N] [--seconds N] [--model NAME]
[--adapter FILE]: runs one benchmark, prints a table, writes one JSON object."""

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
from edged.models.catalog import catalog

BENCHES = (
    "answers",
    "learn",
    "clients",
    "ipc",
    "routing",
    "claims",
    "heads",
    "schemas",
    "toolcall",
    "restart",
    "concurrency",
    "contention",
    "memory",
    "mqtt",
    "durability",
)
NAMES = {name: f"benchmarks.{name}" for name in BENCHES}
COUNTS = ("rounds", "cycles", "requests", "seconds")


def main() -> int:
    """Returns the exit status: 64 for wrong usage and names that do not exist; 70 where a peer fails, or
    something could not be measured."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Run one benchmark.")
    parser.add_argument("name", help=f"one of: {', '.join(NAMES)}")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the result as one JSON object")
    parser.add_argument("--rounds", metavar="N", type=int, help="turns of edged and its peers; fewer are less sure")
    parser.add_argument("--peer-bin", metavar="FILE", type=Path, help="the llama-server to measure against")
    parser.add_argument("--peer-build", action="store_true", help="build that llama-server for this CPU, once")
    parser.add_argument("--only", metavar="SECTION", help="of a bench that has several")
    parser.add_argument("--cycles", metavar="N", type=int, help="of loads and unloads")
    parser.add_argument("--requests", metavar="N", type=int, help="of one kind of work")
    parser.add_argument("--seconds", metavar="N", type=int, help="how long clients ask")
    parser.add_argument("--model", metavar="NAME", help="of the catalog, where a section can use another one")
    parser.add_argument("--adapter", metavar="FILE", type=Path, help="that the default model is taught with")
    options = parser.parse_args()
    if options.name not in NAMES:
        known = f"there is: {', '.join(NAMES)}"
        return refused(f"{options.name}: unknown; {known}")
    for name in COUNTS:
        if (count := getattr(options, name)) is not None and count < 1:
            return refused(f"{options.name}: --{name} is at least 1")
    bench = importlib.import_module(NAMES[options.name])
    if options.peer_build and options.peer_bin:
        return refused(f"{options.name}: --peer-bin and --peer-build are two peers")
    wanted = {name: getattr(options, name) for name in (*COUNTS, "only", "model", "adapter")}
    wanted["peer_bin"] = options.peer_bin or (options.peer_build or None)
    arguments = {key: value for key, value in wanted.items() if value is not None}
    if unknown := sorted(arguments.keys() - inspect.signature(bench.run).parameters.keys()):
        peer = "--peer-build" if options.peer_build else "--peer-bin"
        flags = ", ".join(peer if key == "peer_bin" else f"--{key}" for key in unknown)
        return refused(f"{options.name}: {flags} means nothing here")
    sections = getattr(bench, "SECTIONS", ())
    if options.only is not None and options.only not in sections:
        return refused(f"{options.name}: --only {options.only}: there is: {', '.join(sections)}")
    if options.model is not None and options.model not in (known := catalog()):
        return refused(f"{options.name}: --model {options.model}: there is: {', '.join(known)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # daemons and peers are ended then, too
    try:
        if options.peer_build:
            arguments["peer_bin"] = peer_build.llama_server()
        failed = show(options.name, bench, arguments, options.json)
    except PeerError as error:
        failed = [str(error)]
    for why in failed:
        print(f"bench {options.name}: {why}", file=sys.stderr)
    return 70 if failed else 0


def show(name: str, bench: ModuleType, arguments: dict[str, Any], json_file: Path | None) -> list[str]:
    """Run it, print what it found, and write it where wanted; what of it could not be measured."""
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
    return result.failed


def refused(why: str) -> int:
    """Say what is wrong with the command line."""
    print(f"bench {why}", file=sys.stderr)
    return 64


if __name__ == "__main__":
    sys.exit(main())
