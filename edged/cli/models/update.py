"""`edged models update|rollback`: a new file for a model of the running daemon, with a way back."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from edged.cli import complete
from edged.cli.common import AsJson, ConfigFile, Socket, line
from edged.cli.connection import daemon
from edged.cli.outcome import complain, print_json
from edged.cli.progress import SECONDS_BETWEEN_LINES, amount
from edged.models.pull import Progress
from edged.types import Fault

Alias = Annotated[
    str, typer.Argument(metavar="NAME", help="Name in the configuration.", autocompletion=complete.aliases)
]
WORDS = {
    "pulling": "bringing the new file here",
    "loading": "loading it beside the old one",
    "testing": "asking it its self-test",
    "switching": "switching between requests",
}


def update_model(
    name: Alias,
    source: Annotated[
        str | None,
        typer.Option(help="catalog:, https:, hf: or file:; without it the source in force, whose bytes may be others."),
    ] = None,
    as_json: AsJson = False,
    socket: Socket = None,
    config_file: ConfigFile = None,
) -> None:
    """Take a new file for a model, if it passes its self-test; else the old one stays."""
    params = {"name": name, **({"source": source} if source else {})}
    with daemon(socket, config_file, as_json) as client:
        document = client.call("models.update", params, on_progress=_Told().report)
    _end(document, as_json)


def rollback_model(name: Alias, as_json: AsJson = False, socket: Socket = None, config_file: ConfigFile = None) -> None:
    """Go back to the file before a model's last update."""
    with daemon(socket, config_file, as_json) as client:
        document = client.call("models.rollback", {"name": name})
    _end(document, as_json)


class _Told:
    """How it goes, on stderr: each step once, amounts every few seconds."""

    def __init__(self) -> None:
        self._state = ""
        self._last = time.monotonic()

    def report(self, told: dict[str, Any]) -> None:
        state = str(told.get("state"))
        if state != self._state:
            self._state = state
            print(line(WORDS.get(state, state)), file=sys.stderr, flush=True)
        if "file" not in told:
            return
        if told.get("note"):
            print(line(f"{told['file']}: {told['note']}"), file=sys.stderr, flush=True)
        elif time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            progress = Progress(told["file"], told["done"], told["total"], told["rate"])
            print(line(f"{told['file']}: {amount(progress)}"), file=sys.stderr, flush=True)


def _end(document: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(document)
    elif document["error"] is None:
        said = {"done": "updated to", "current": "there is nothing newer than", "rolled_back": "back to"}
        print(line(f"{document['model']}: {said[document['state']]} {document['path']}"))
    if (error := document["error"]) is not None:
        raise SystemExit(complain(Fault(error["code"], error["message"], error["retryable"])))
