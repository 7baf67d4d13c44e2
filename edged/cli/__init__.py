"""The command line. `edged run` takes the short way: the daemon must not carry typer and rich in its memory."""

from __future__ import annotations

import os
import sys

EX_USAGE = 64  # sysexits.h, CONTRACT section 7


def main() -> None:
    """The console script."""
    _speak_utf8()
    if sys.argv[1:2] == ["run"]:
        sys.exit(_run(sys.argv[2:]))
    from edged.cli.entry import command

    sys.exit(command())


def _speak_utf8() -> None:
    """Start this process anew in Python's UTF-8 mode where the locale has another encoding: words of the command line,
    paths in the configuration and texts in files are UTF-8 on every board. Only the interpreter can change that, and
    only when it starts. The process keeps its number, its descriptors and its environment."""
    if sys.getfilesystemencoding().lower().replace("-", "") == "utf8" or not sys.executable:
        return
    try:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606  # no shell
    except OSError:  # no memory, say: then it goes on in the locale's
        return


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
