"""What the commands share: their options, and how sizes, times and texts are written."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from edged.cli import complete
from edged.cli.outcome import Stop

if TYPE_CHECKING:
    from rich.table import Table

    from edged.types import ToolCall

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
# readable=False: a file that may not be opened is for the daemon's client (77) or the configuration (78) to explain; it
# is no wrong usage. The variables are read where the options are used, because what was typed goes before them all.
Socket = Annotated[
    Path | None,
    typer.Option("--socket", readable=False, help="The daemon's Unix socket. [env var: EDGED_SOCKET]"),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", readable=False, help="The configuration file. [env var: EDGED_CONFIG]"),
]
ModelsDir = Annotated[
    Path | None, typer.Option("--models-dir", help="Folder that holds the models. [env var: EDGED_MODELS_DIR]")
]
AgentName = Annotated[
    str | None,
    typer.Option("--agent", help="Which agent; needed where there are several.", autocompletion=complete.agents),
]
RouteName = Annotated[str | None, typer.Option("--route", help="auto, local or cloud.", autocompletion=complete.routes)]
RequestName = Annotated[
    str, typer.Argument(metavar="NAME", help="rid, or the client's id.", autocompletion=complete.requests)
]

Calls = Annotated[
    list[str], typer.Argument(metavar="CALL...", help="""The right calls, each as 'set_valve(valve="north")'.""")
]

PIPE_COLUMNS = 10_000  # without a terminal a table's lines are not broken: another program is going to read them
# What a terminal would act upon: a text of a model or of a client must not move the cursor or set the window's title.
CONTROL = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def table(*headings: str, right: tuple[str, ...] = ()) -> Table:
    """A table whose lines can be cut with ordinary tools; only the last column may be broken."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False)
    for number, heading in enumerate(headings, start=1):
        justify = "right" if heading in right else "left"
        made.add_column(heading, no_wrap=number < len(headings), justify=justify)  # type: ignore[arg-type]  # a Literal
    return made


def row(into: Table, *cells: object) -> None:
    """A row of texts as they are: what looks like markup in them is none."""
    from rich.text import Text

    into.add_row(*(Text(line(str(cell))) for cell in cells))


def print_table(made: Table) -> None:
    """To stdout, as wide as the terminal, or without an end."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS, highlight=False).print(made)


def line(text: str) -> str:
    """A text on one line, without what a terminal would act upon."""
    return " ".join(text.split()).translate(CONTROL)


def shown(text: str) -> str:
    """A text for stdout: whole and as it is for another program, harmless on a terminal."""
    return text.translate(CONTROL) if sys.stdout.isatty() else text


def size(bytes: float | None) -> str:
    """Bytes for people; "unknown" for None."""
    if bytes is None:
        return "unknown"
    if bytes < 2**20:
        return f"{bytes / 2**10:.0f} KiB"
    return f"{bytes / 2**30:.1f} GiB" if bytes >= 10 * 2**30 else f"{bytes / 2**20:.0f} MiB"


def span(seconds: float) -> str:
    """A time that passed, in its two largest units."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def when(wall: float) -> str:
    """A point in time, here."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wall))


def calls_of(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Calls that were written as `call_text` writes them, as {name, arguments}. Stop: one is none."""
    from edged.agent.dialects import compact  # only now: few commands need it

    made: list[ToolCall] = []
    for text in texts:
        try:
            made += compact.parse(text.strip())
        except ValueError as error:
            what = """write it as 'set_valve(valve="north", open=true)', values as JSON"""
            raise Stop("bad_request", f"{text!r} is no call: {error}; {what}") from None
    return [{"name": call.name, "arguments": call.arguments} for call in made]


def call_text(name: str, arguments: dict[str, Any]) -> str:
    """A call as its code would look: set_valve(valve="north")."""
    return f"{name}({', '.join(f'{key}={msgspec.json.encode(value).decode()}' for key, value in arguments.items())})"
