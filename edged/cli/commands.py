"""`edged ask | status | requests | check | models`: what a person types. stdout is the answer, stderr everything else;
with --json stdout is one JSON document."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from edged import __version__, config
from edged.app import check_all
from edged.cli import models
from edged.client import DEFAULT_SOCKET, Client, EdgedCallError
from edged.errors import ConfigError

EX_DATA, EX_UNREACHABLE, EX_FAILED, EX_RETRY, EX_FORBIDDEN, EX_CONFIG = 65, 69, 70, 75, 77, 78  # CONTRACT section 7
CALLER_CODES = ("bad_request", "too_large", "unknown_agent")

app = typer.Typer(help="The agent daemon for edge boards.", no_args_is_help=True)
requests = typer.Typer(name="requests", help="Requests of the running daemon.", no_args_is_help=True)
app.add_typer(requests)
app.add_typer(models.app)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
# readable=False: what may not be opened is for the daemon's client and the configuration to explain (77, 78), not usage
Socket = Annotated[
    Path | None,
    typer.Option("--socket", envvar="EDGED_SOCKET", readable=False, help="The daemon's Unix socket."),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", envvar="EDGED_CONFIG", readable=False, help="The configuration file."),
]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"edged {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """The agent daemon for edge boards."""


@app.command()
def run() -> None:
    """Run the daemon in the foreground (options: edged run --help)."""
    raise AssertionError("edged.cli.main runs the daemon before this table is looked at")


@app.command()
def ask(
    text: Annotated[str, typer.Argument(help="What to ask.")],
    agent: Annotated[str | None, typer.Option(help="Which agent; needed where there are several.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer as it is made.")] = False,
    as_json: AsJson = False,
    route: Annotated[str | None, typer.Option(help="auto, local or cloud.")] = None,
    deadline: Annotated[float | None, typer.Option(help="Seconds until the answer is of no use.")] = None,
    conversation: Annotated[str | None, typer.Option(help="Name of a conversation to go on with.")] = None,
    id: Annotated[str | None, typer.Option(help="Your name for the request: asking again never does it twice.")] = None,
    socket: Socket = None,
) -> None:
    """Ask an agent and print its answer."""
    given = {"agent": agent, "route": route, "deadline_s": deadline, "conversation": conversation, "id": id}
    fields = {name: value for name, value in given.items() if value is not None}
    with _daemon(socket, as_json) as client:
        reply = client.ask(text, on_text=_show_piece if stream and not as_json else None, **fields)
    if as_json:
        _print_json(reply)
    elif stream and reply["output"] is not None:
        print()
    elif reply["output"] is not None:
        print(reply["output"])
    if reply["error"]:
        raise typer.Exit(_complain(reply["error"]))


@app.command()
def status(as_json: AsJson = False, socket: Socket = None) -> None:
    """What the daemon is doing."""
    with _daemon(socket, as_json) as client:
        state = client.call("status")
    if as_json:
        _print_json(state)
        return
    console = Console()
    console.print(f"edged {state['version']} on {state['node']}, pid {state['pid']}, up {_span(state['uptime_s'])}")
    memory = state["memory"]
    console.print(
        f"memory  {_mib(memory['private_bytes'])} private, budget {_mib(memory['budget_bytes'])}, "
        f"{_mib(memory['available_bytes'])} available on the board"
    )
    counted = ", ".join(f"{n} {name}" for name, n in state["queue"]["requests"].items()) or "none yet"
    console.print(f"requests  {state['queue']['running']} running; {counted}")
    for name, model in state["models"].items():
        console.print(f"model  {name}: {model['state']}")
    if link := state["mqtt"]:
        how = f"MQTT {link['version']}" if link["connected"] else f"not connected ({link['error'] or 'connecting'})"
        console.print(f"broker  {link['broker']}: {how}")


@app.command()
def check(file: ConfigFile = None) -> None:
    """Check the configuration, its tools and models, without starting anything."""
    try:
        settings = config.load(str(file) if file else None)
        problems = asyncio.run(check_all(settings))
    except ConfigError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(EX_CONFIG) from None
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise typer.Exit(EX_CONFIG)
    print(
        f"{settings.files[0]}: {len(settings.agents)} agents, {len(settings.tools)} tools, "
        f"{len(settings.models)} models: all right"
    )


@requests.command("ls")
def list_requests(
    limit: Annotated[int, typer.Option(help="How many, newest first.")] = 20,
    state: Annotated[str | None, typer.Option(help="Only those in this state.")] = None,
    as_json: AsJson = False,
    socket: Socket = None,
) -> None:
    """The newest requests."""
    with _daemon(socket, as_json) as client:
        rows = client.call("requests.list", {"limit": limit, **({"state": state} if state else {})})
    if as_json:
        _print_json(rows)
        return
    table = Table(box=None)
    for column in ("rid", "when", "agent", "state", "tries"):
        table.add_column(column, no_wrap=True)
    table.add_column("input")
    for row in rows:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["accepted_at"]))
        table.add_row(row["rid"], when, row["agent"], row["state"], str(row["attempts"]), row["input"])
    Console(soft_wrap=not sys.stdout.isatty()).print(table)


@requests.command("show")
def show_request(name: Annotated[str, typer.Argument(help="rid or id")], socket: Socket = None) -> None:
    """A request's reply, or how far it is; always JSON."""
    with _daemon(socket, True) as client:
        _print_json(client.call("request.get", {"name": name}))


@requests.command("cancel")
def cancel_request(
    name: Annotated[str, typer.Argument(help="rid or id")], as_json: AsJson = False, socket: Socket = None
) -> None:
    """End a request; one that has its outcome keeps it."""
    with _daemon(socket, as_json) as client:
        reply = client.call("request.cancel", {"name": name})
    if as_json:
        _print_json(reply)
    else:
        print(f"{reply['rid']}: {reply['status']}")


@contextmanager
def _daemon(path: Path | None, as_json: bool) -> Iterator[Client]:
    """A connection to the daemon; what goes wrong becomes a sentence and the contract's exit code. A refusal is also a
    document where one is expected."""
    where = _socket(path)
    try:
        with Client(where) as client:
            yield client
    except EdgedCallError as error:
        refusal = {"code": error.code, "message": error.message, "retryable": error.retryable}
        if as_json:
            _print_json({"status": "refused", "error": {**refusal, "retry_after_s": error.retry_after_s}})
        raise typer.Exit(_complain(refusal)) from None
    except PermissionError:
        print(f"edged: {where}: you may not use this socket; join its group", file=sys.stderr)
        raise typer.Exit(EX_FORBIDDEN) from None
    except OSError as error:
        reason = error.strerror or str(error)
        print(f"edged: no daemon answers on {where} ({reason}); start one with `edged run`", file=sys.stderr)
        raise typer.Exit(EX_UNREACHABLE) from None


def _socket(given: Path | None) -> str:
    """The socket: as given, else that of the configuration, else where the service puts it."""
    if given is not None:
        return str(given)
    try:
        return str(config.load().socket_path) if config.find(None).exists() else DEFAULT_SOCKET
    except ConfigError:
        return DEFAULT_SOCKET


def _complain(error: dict[str, Any]) -> int:
    """Say what went wrong on stderr; returns the exit code."""
    print(f"edged: {error['code']}: {error['message']}", file=sys.stderr)
    if error["code"] == "forbidden":
        return EX_FORBIDDEN
    if error["code"] in CALLER_CODES:
        return EX_DATA
    return EX_RETRY if error["retryable"] else EX_FAILED


def _show_piece(text: str) -> None:
    print(text, end="", flush=True)


def _print_json(document: object) -> None:
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")


def _mib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**20:.0f} MiB"


def _span(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
