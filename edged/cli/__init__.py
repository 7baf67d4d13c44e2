"""The command line. `edged run` takes the short way: the daemon must not carry typer and rich in its memory."""

from __future__ import annotations

import sys

EX_USAGE = 64  # sysexits.h, CONTRACT section 7


def main() -> None:
    """The console script."""
    if sys.argv[1:2] == ["run"]:
        sys.exit(_run(sys.argv[2:]))
    from edged.cli.entry import command

    sys.exit(command())


def _run(arguments: list[str]) -> int:
    import argparse

    parser = argparse.ArgumentParser(prog="edged run", description="Run the daemon in the foreground.")
    parser.add_argument("--config", metavar="FILE", help="default: $EDGED_CONFIG, else /etc/edged/edged.toml")
    try:
        options = parser.parse_args(arguments)
    except SystemExit as end:
        return EX_USAGE if end.code else 0
    from edged.daemon.supervisor import run

    return run(options.config)
