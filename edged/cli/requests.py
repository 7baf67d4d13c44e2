"""`edged requests`: what was asked, and what became of it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from edged.cli import complete
from edged.cli.common import AsJson, RequestName, Socket, daemon, print_table, row, shown, table, when
from edged.cli.outcome import print_json
from edged.cli.view import request_lines

app = typer.Typer(name="requests", help="Requests of the running daemon.", no_args_is_help=True)


@app.command("ls")
def list_requests(
    limit: Annotated[int, typer.Option(help="How many, newest first.")] = 20,
    state: Annotated[str | None, typer.Option(help="Only those in this state.", autocompletion=complete.states)] = None,
    as_json: AsJson = False,
    socket: Socket = None,
) -> None:
    """The newest requests."""
    with daemon(socket, as_json) as client:
        rows = client.call("requests.list", {"limit": limit, **({"state": state} if state else {})})
    if as_json:
        print_json(rows)
        return
    listing = table("rid", "when", "agent", "state", "tries", "input", right=("tries",))
    for found in rows:
        cells = (found["rid"], when(found["accepted_at"]), found["agent"], found["state"], found["attempts"])
        row(listing, *cells, found["input"])
    print_table(listing)


@app.command("show")
def show_request(name: RequestName, as_json: AsJson = False, socket: Socket = None) -> None:
    """A request's reply, or how far it is."""
    with daemon(socket, as_json) as client:
        document = client.call("request.get", {"name": name})
    if as_json:
        print_json(document)
    else:
        print(shown("\n".join(request_lines(document))))


@app.command("cancel")
def cancel_request(name: RequestName, as_json: AsJson = False, socket: Socket = None) -> None:
    """End a request; one that has its outcome keeps it."""
    with daemon(socket, as_json) as client:
        document = client.call("request.cancel", {"name": name})
    _print_state(document, as_json)


@app.command("requeue")
def requeue_request(name: RequestName, as_json: AsJson = False, socket: Socket = None) -> None:
    """Try a request again that failed, expired or was quarantined."""
    with daemon(socket, as_json) as client:
        document = client.call("request.requeue", {"name": name})
    _print_state(document, as_json)


def _print_state(document: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(document)
    else:
        print(f"{document['rid']}: {document['status']}")
