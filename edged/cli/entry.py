"""The way into the commands: stdout that may be a pipe, wrong usage, and what nobody expected."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from typing import Any

import typer

from edged.cli.commands import app
from edged.cli.outcome import EX_FAILED, EX_INTERRUPTED, EX_USAGE, Stop, complain, print_json
from edged.types import Fault

STDOUT = 1
SIGNALLED = 128  # + the signal: what a shell reports of a process that a signal ended


def command() -> int:
    """Run what the command line asks for; the exit code."""
    as_json = "--json" in sys.argv
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(encoding="utf-8", errors="backslashreplace")
    if sys.stdout is not None:
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(_Stdout(STDOUT, "wb", closefd=False)),
            encoding="utf-8",  # whatever the locale: what reads the output has to know
            errors="backslashreplace",  # half a surrogate pair must not cost the rest of the answer
            line_buffering=sys.stdout.isatty(),
        )
    try:
        code = _run()
        if sys.stdout is not None:
            sys.stdout.flush()
    except typer.TyperException as error:
        return _usage(error, as_json)
    except typer.Abort:
        return EX_INTERRUPTED
    except Stop as stop:
        return complain(stop.fault)
    except Exception as error:
        traceback.print_exc()
        if as_json:
            print_json({"error": Fault("internal", f"a bug in edged's command line: {error!r}")})
        return EX_FAILED
    return code


def _run() -> int:
    """The command's own exit code."""
    try:
        code = app(prog_name="edged", standalone_mode=False)
    except SystemExit as end:
        code = end.code
    return code if isinstance(code, int) else 0


class _Stdout(io.FileIO):
    """Ends the process as other tools end when whoever reads them is gone, and whichever library was writing."""

    full = False

    def write(self, data: Any, /) -> int:
        """As FileIO.write; Stop where the output cannot be written. What comes after that goes nowhere: the buffer
        above would try it again at the exit, and fail with a traceback."""
        if self.full:
            return len(data)
        try:
            return super().write(data)
        except BrokenPipeError:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGPIPE)
            os._exit(SIGNALLED + signal.SIGPIPE)  # whoever started us had blocked the signal
        except OSError as error:
            self.full = True
            # Not an OSError any more: those are taken for a daemon that does not answer.
            raise Stop("internal", f"the output cannot be written: {error.strerror}") from None


def _usage(error: typer.TyperException, as_json: bool) -> int:
    """Wrong usage: where help is, and what was wrong."""
    message = error.format_message()
    if message:  # else its help was printed already: a command that needs another one behind it
        context = getattr(error, "ctx", None)
        if context is not None:
            print(f"{context.get_usage()}\nTry '{context.command_path} --help'.", file=sys.stderr)
        complain(Fault("usage", message))
    if as_json:
        print_json({"error": Fault("usage", message or "a command is missing")})
    return EX_USAGE
