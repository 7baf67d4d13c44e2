"""What the commands share: their options, the connection to the daemon, how sizes, times and texts are written."""

from __future__ import annotations

import getpass
import grp
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from edged import config
from edged.cli import complete
from edged.cli.outcome import Stop, reporting_errors
from edged.client import DEFAULT_SOCKET, Client
from edged.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

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
AgentName = Annotated[
    str | None,
    typer.Option("--agent", help="Which agent; needed where there are several.", autocompletion=complete.agents),
]
RouteName = Annotated[str | None, typer.Option("--route", help="auto, local or cloud.", autocompletion=complete.routes)]
RequestName = Annotated[
    str, typer.Argument(metavar="NAME", help="rid, or the client's id.", autocompletion=complete.requests)
]

PIPE_COLUMNS = 10_000  # without a terminal a table's lines are not broken: another program is going to read them
# What a terminal would act upon: a text of a model or of a client must not move the cursor or set the window's title.
CONTROL = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


@contextmanager
def daemon(given: Path | None, as_json: bool) -> Iterator[Client]:
    """A connection to the daemon. What goes wrong ends the command with a sentence and the contract's exit code."""
    with reporting_errors(as_json):
        where, trouble = socket_path(given)
        try:
            with Client(where) as client:
                yield client
        except PermissionError:
            raise Stop("forbidden", f"{where}: you may not use this socket; {_how_to_join(where)}") from None
        except OSError as error:
            raise Stop("unreachable", _unreachable(where, error, trouble)) from None


def socket_path(given: Path | None) -> tuple[str, str | None]:
    """The socket, as given, else that of the configuration, else where the service puts it; and why the configuration
    was of no use, if it was."""
    if given is not None:
        return str(given), None
    try:
        if not config.find(None).exists():
            return DEFAULT_SOCKET, None
        return str(config.load().socket_path), None
    except (ConfigError, OSError) as error:  # OSError: a folder that may not be looked into
        return DEFAULT_SOCKET, str(error)


def _unreachable(where: str, error: OSError, trouble: str | None) -> str:
    if isinstance(error, ConnectionError) and error.errno is None:  # of our client: it was connected
        return f"{where}: {error}; what it took in goes on, and asking again under the same --id does nothing twice"
    text = f"no daemon answers on {where} ({error.strerror or error}); start one with `edged run`"
    return f"{text}. The configuration, which would say where, is of no use: {trouble}" if trouble else text


def _how_to_join(where: str) -> str:
    """The command that lets somebody in, where the socket's group can be seen."""
    try:
        group = grp.getgrgid(Path(where).stat().st_gid).gr_name
    except (OSError, KeyError):
        return "join its group"
    if group == "root":
        return "its group is root: set [ipc] group"
    return f"join its group: sudo usermod -aG {group} {getpass.getuser()}, then log in again"


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


def call_text(name: str, arguments: dict[str, Any]) -> str:
    """A call as its code would look: set_valve(valve="north")."""
    return f"{name}({', '.join(f'{key}={msgspec.json.encode(value).decode()}' for key, value in arguments.items())})"
