"""How a command ends: an error as a sentence on stderr, as a document on stdout, and as an exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from edged.client import EdgedCallError
from edged.errors import ConfigError, EdgedError
from edged.types import Fault
from edged.types.json import spelled

# CONTRACT section 7
EX_USAGE, EX_DATA, EX_UNREACHABLE, EX_FAILED, EX_RETRY, EX_FORBIDDEN, EX_CONFIG = 64, 65, 69, 70, 75, 77, 78
EX_INTERRUPTED = 130  # 128 + SIGINT, what a shell reports

# By code: the contract's words, and three of the command line's own: usage, unreachable, config.
EXIT_OF = {
    "usage": EX_USAGE,
    "bad_request": EX_DATA,
    "too_large": EX_DATA,
    "unknown_agent": EX_DATA,
    "unreachable": EX_UNREACHABLE,
    "forbidden": EX_FORBIDDEN,
    "config": EX_CONFIG,
}


class Stop(Exception):
    """Ends a command. code: a word of EXIT_OF, or of the contract's errors."""

    def __init__(self, code: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.fault = Fault(code, message, retryable)


def exit_code(fault: Fault) -> int:
    """What the shell gets for it."""
    return EXIT_OF.get(fault.code) or (EX_RETRY if fault.retryable else EX_FAILED)


def complain(fault: Fault) -> int:
    """Says what went wrong on stderr; returns the exit code."""
    print(f"edged: {fault.message}" if fault.code in OWN else f"edged: {fault.code}: {fault.message}", file=sys.stderr)
    return exit_code(fault)


OWN = {"usage", "unreachable", "config"}  # the sentence alone says it; the word is no error of the daemon's


@contextmanager
def reporting_errors(as_json: bool) -> Iterator[None]:
    """Around a command: what ends it is said, as a document too where one is expected."""
    try:
        yield
    except Stop as stop:
        fault = stop.fault
    except (EdgedError, EdgedCallError) as error:
        fault = fault_of(error)
    except ConfigError as error:
        fault = Fault("config", str(error))
    except UnicodeEncodeError:  # what a shell passes as bytes, Python hands on as half characters
        fault = Fault("bad_request", "the command line holds bytes that are not UTF-8 text")
    except OverflowError:
        fault = Fault("bad_request", "a number has more than 64 bits")
    else:
        return
    if as_json:
        print_json({"error": fault})
    raise SystemExit(complain(fault))


def fault_of(error: EdgedError | EdgedCallError) -> Fault:
    """An error of ours, or one the daemon told, as a value."""
    return Fault(error.code, error.message, error.retryable, error.retry_after_s)


def print_json(document: object) -> None:
    """The one document on stdout."""
    try:
        text = msgspec.json.encode(document)
    except UnicodeEncodeError:  # a path, say, that is no UTF-8
        text = msgspec.json.encode(spelled(msgspec.to_builtins(document)))
    sys.stdout.buffer.write(msgspec.json.format(text, indent=2) + b"\n")
    sys.stdout.buffer.flush()
