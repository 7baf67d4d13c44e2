"""scripts/bench NAME [--json FILE]: runs one benchmark, prints a table, writes one JSON object."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from benchmarks.report import machine, table, versions

NAMES = {"ipc": "benchmarks.ipc", "routing": "benchmarks.routing"}
LATER = ("toolcall", "restart", "concurrency", "contention", "memory", "mqtt", "durability")


def main() -> int:
    """Returns the exit status: 64 for a name that does not exist, or does not yet."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Run one benchmark.")
    parser.add_argument("name", help=f"one of: {', '.join(NAMES)}")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the result as one JSON object")
    options = parser.parse_args()
    if options.name not in NAMES:
        known = f"there is: {', '.join(NAMES)}"
        print(
            f"bench {options.name}: {'not available yet' if options.name in LATER else 'unknown'}; {known}",
            file=sys.stderr,
        )
        return 64
    bench = importlib.import_module(NAMES[options.name])
    print(f"{options.name}: {(bench.__doc__ or '').strip().splitlines()[0]}")
    print(", ".join(f"{key}: {value}" for key, value in machine().items()))
    rows = bench.run()
    print(table(rows))
    if options.json:
        document = {"bench": options.name, "machine": machine(), "versions": versions(), "rows": rows}
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


sys.exit(main())
