"""`edged ask`: a question, its answer."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from edged.cli.common import AgentName, AsJson, ConfigFile, RouteName, Socket, shown
from edged.cli.connection import daemon
from edged.cli.outcome import Stop, complain, fault_of, print_json, reporting_errors
from edged.client import EdgedCallError
from edged.types import Fault
from edged.wire import MAX_REQUEST_BYTES


def ask(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to ask; - reads it from stdin.")],
    agent: AgentName = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer as it is made.")] = False,
    as_json: AsJson = False,
    route: RouteName = None,
    deadline: Annotated[float | None, typer.Option(help="Seconds until the answer is of no use.")] = None,
    conversation: Annotated[str | None, typer.Option(help="Name of a conversation to go on with.")] = None,
    id: Annotated[str | None, typer.Option(help="Your name for the request: asking again never does it twice.")] = None,
    socket: Socket = None,
    config_file: ConfigFile = None,
) -> None:
    """Ask an agent and print its answer."""
    given = {"agent": agent, "route": route, "deadline_s": deadline, "conversation": conversation, "id": id}
    fields = {name: value for name, value in given.items() if value is not None}
    with reporting_errors(as_json):
        question = _stdin() if text == "-" else text
    pieces: list[str] = []

    def show_piece(piece: str) -> None:
        pieces.append(piece)
        print(shown(piece), end="", flush=True)

    with daemon(socket, config_file, as_json) as client:
        try:
            reply = client.ask(question, on_text=show_piece if stream and not as_json else None, **fields)
        except EdgedCallError as refused:
            reply = {"status": "refused", "output": None, "error": fault_of(refused)}
    if as_json:
        print_json(reply)
    elif reply["output"] is not None:
        print(shown(_rest(reply["output"], "".join(pieces))))
    elif pieces:
        print()
    if reply["error"]:
        raise typer.Exit(complain(_fault(reply["error"])))


def _stdin() -> str:
    """The question from a pipe, without the line's end that `echo` adds."""
    data = sys.stdin.buffer.read(MAX_REQUEST_BYTES + 1)  # what never ends would fill the memory first
    if len(data) > MAX_REQUEST_BYTES:
        raise Stop("too_large", f"stdin has more than {MAX_REQUEST_BYTES} bytes")
    try:
        return data.decode("utf-8-sig").removesuffix("\n")
    except UnicodeDecodeError:
        raise Stop("bad_request", "stdin is not UTF-8 text") from None


def _rest(answer: str, streamed: str) -> str:
    """What of the answer was not on the screen yet. An answer that was there already is not streamed, one that began
    anew elsewhere was streamed twice: the reply is what counts."""
    return answer.removeprefix(streamed) if answer.startswith(streamed) else f"\n{answer}"


def _fault(error: Fault | dict[str, Any]) -> Fault:
    return error if isinstance(error, Fault) else Fault(error["code"], error["message"], error["retryable"])
