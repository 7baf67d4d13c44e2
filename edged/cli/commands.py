"""The table of commands: what a person types. stdout is the answer, stderr everything else; with --json stdout is one
JSON document."""

from __future__ import annotations

from typing import Annotated

import typer

from edged import __version__
from edged.cli import models, requests, tools
from edged.cli.ask import ask
from edged.cli.check import check
from edged.cli.common import ConfigFile
from edged.cli.doctor import doctor
from edged.cli.route import route
from edged.cli.status import status
from edged.cli.top import top

app = typer.Typer(help="The agent daemon for edge boards.", no_args_is_help=True, pretty_exceptions_enable=False)


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
def run(file: ConfigFile = None) -> None:
    """Run the daemon in the foreground."""
    raise AssertionError("edged.cli.main runs the daemon before this table is looked at")


for command in (ask, status, top, check, doctor):
    app.command()(command)
app.add_typer(models.app)
app.add_typer(requests.app)
app.add_typer(tools.app)
app.command()(route)
