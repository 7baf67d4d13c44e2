"""`edged calibrate`: how often an agent's model is right, by how sure it is, on the examples of the configuration."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from edged.cli import complete
from edged.cli.common import AsJson, ConfigFile, Socket, line
from edged.cli.connection import daemon
from edged.cli.outcome import print_json
from edged.cli.progress import SECONDS_BETWEEN_LINES


def calibrate(
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="Which agent.", autocompletion=complete.agents)],
    as_json: AsJson = False,
    socket: Socket = None,
    config_file: ConfigFile = None,
) -> None:
    """Have an agent decide its tools' own examples, at least 30, and fit its confidence to what comes out. Nothing is
    called."""
    with daemon(socket, config_file, as_json) as client:
        found = client.call("agents.calibrate", {"agent": agent}, on_progress=_Told().report)
    if as_json:
        print_json(found)
        return
    print(line(f"{agent}: {found['right']} of {found['examples']} right, {found['wrong_writes']} wrong writes"))
    print(line(f'min_confidence = "auto" is {found["line"]:.3f}: {found["held"]} of the calls are below it'))
    print(line(f"kept in {found['file']}"))


class _Told:
    """How it goes, on stderr, every few seconds."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def report(self, told: dict[str, Any]) -> None:
        if time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            print(f"{told['done']} of {told['total']} examples decided", file=sys.stderr, flush=True)
