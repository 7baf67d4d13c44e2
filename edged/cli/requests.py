"""`edged requests`: what was asked, and what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from edged.cli import complete
from edged.cli.common import (
    AsJson,
    Calls,
    ConfigFile,
    RequestName,
    Socket,
    calls_of,
    print_table,
    row,
    shown,
    table,
    when,
)
from edged.cli.connection import daemon, load_config
from edged.cli.outcome import EX_FAILED, Stop, print_json, reporting_errors
from edged.cli.view import request_lines

if TYPE_CHECKING:
    from edged.store.audit import Found

app = typer.Typer(name="requests", help="Requests of the running daemon.", no_args_is_help=True)


@app.command("ls")
def list_requests(
    limit: Annotated[int, typer.Option(help="How many, newest first.")] = 20,
    state: Annotated[str | None, typer.Option(help="Only those in this state.", autocompletion=complete.states)] = None,
    as_json: AsJson = False,
    socket: Socket = None,
    config_file: ConfigFile = None,
) -> None:
    """The newest requests."""
    with daemon(socket, config_file, as_json) as client:
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
def show_request(
    name: RequestName, as_json: AsJson = False, socket: Socket = None, config_file: ConfigFile = None
) -> None:
    """A request's reply, or how far it is."""
    with daemon(socket, config_file, as_json) as client:
        document = client.call("request.get", {"name": name})
    if as_json:
        print_json(document)
    else:
        print(shown("\n".join(request_lines(document))))


@app.command("cancel")
def cancel_request(
    name: RequestName, as_json: AsJson = False, socket: Socket = None, config_file: ConfigFile = None
) -> None:
    """End a request; one that has its outcome keeps it."""
    with daemon(socket, config_file, as_json) as client:
        document = client.call("request.cancel", {"name": name})
    _print_state(document, as_json)


@app.command("requeue")
def requeue_request(
    name: RequestName, as_json: AsJson = False, socket: Socket = None, config_file: ConfigFile = None
) -> None:
    """Try a request again that failed, expired or was quarantined."""
    with daemon(socket, config_file, as_json) as client:
        document = client.call("request.requeue", {"name": name})
    _print_state(document, as_json)


@app.command("correct")
def correct_request(
    name: RequestName, calls: Calls, as_json: AsJson = False, socket: Socket = None, config_file: ConfigFile = None
) -> None:
    """Say which calls would have been right: the agent learns them as an example. Nothing is called."""
    with daemon(socket, config_file, as_json) as client:
        made = client.call("request.correct", {"name": name, "calls": calls_of(calls)})
    if as_json:
        print_json(made)
    else:
        print(f"example {made['id']}")


@app.command("audit")
def audit_log(
    limit: Annotated[int, typer.Option(min=1, help="How many, the newest.")] = 50,
    who: Annotated[str | None, typer.Option(help="Only what this client did, as `unix:1000`.")] = None,
    rid: Annotated[str | None, typer.Option(help="Only of this request.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check the chain of hashes, and print its head.")] = False,
    head: Annotated[str | None, typer.Option(help="With --verify: a head noted earlier must be in the chain.")] = None,
    config_file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Who did what: read from the store's file, with or without a running daemon."""
    from edged.store import audit  # only now: SQLite is not for every command

    with (
        reporting_errors(as_json),
        audit.reading(load_config(config_file).store_path) as store,
    ):
        if verify:
            _print_found(audit.verify(store, head), head, as_json)
            return
        rows = audit.entries(store, limit, who=who, rid=rid)
    if as_json:
        print_json(rows)
        return
    listing = table("number", "when", "what", "outcome", "who", "about", right=("number",))
    for each in rows:
        about = " ".join(f"{name}={msgspec.json.encode(value).decode()}" for name, value in each["about"].items())
        who_ = each["who"] + (f" ({each['role']})" if each.get("role") else "")
        row(listing, each["seq"], when(each["at"]), each["what"], each.get("outcome", "ok"), who_, about)
    print_table(listing)


def _print_found(found: Found, head: str | None, as_json: bool) -> None:
    problem = found.problem or ("that head is not in it" if head is not None and not found.knows else None)
    good = f"rows {found.first} to {found.last} are as they were written"
    if as_json:
        print_json({"first": found.first, "last": found.last, "head": found.head, "problem": problem})
        if problem is not None:
            raise typer.Exit(EX_FAILED)
    elif problem is not None:
        raise Stop("internal", f"the audit log was changed: {problem}; {good}")
    else:
        print(f"{good}; head {found.head}")


def _print_state(document: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(document)
    else:
        print(f"{document['rid']}: {document['status']}")
