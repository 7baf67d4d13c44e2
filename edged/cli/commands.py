"""The table of commands: what a person types. stdout is the answer, stderr everything else; with --json stdout is one
JSON document."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer

from edged import __version__
from edged.cli import homeassistant, learn, mcp, requests, tools
from edged.cli.ask import ask
from edged.cli.calibrate import calibrate
from edged.cli.common import AsJson, ConfigFile, Socket
from edged.cli.connection import daemon, load_config
from edged.cli.doctor import doctor
from edged.cli.foundry import foundry
from edged.cli.models import commands as models
from edged.cli.outcome import EX_CONFIG, print_json, reporting_errors
from edged.cli.route import route
from edged.cli.top import top
from edged.cli.view import status_lines
from edged.daemon.checks.finding import Level

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
def run(config_file: ConfigFile = None) -> None:
    """Run the daemon in the foreground."""
    raise AssertionError("edged.cli.main runs the daemon before this table is looked at")


def status(as_json: AsJson = False, socket: Socket = None, config_file: ConfigFile = None) -> None:
    """What the daemon is doing."""
    with daemon(socket, config_file, as_json) as client:
        state = client.call("status")
    if as_json:
        print_json(state)
    else:
        print("\n".join(status_lines(state)))


def check(config_file: ConfigFile = None, as_json: AsJson = False) -> None:
    """Check the configuration, its tools and models, without starting anything."""
    from edged.daemon.checks import table  # only here: everything the daemon is made of

    with reporting_errors(as_json):
        settings = load_config(config_file)
        found = asyncio.run(table.everything(settings)).found
    problems = [str(finding) for finding in table.failures(found)]
    notes = [str(finding) for finding in found if finding.level is Level.WARN]
    if as_json:
        counts = {"agents": len(settings.agents), "tools": len(settings.tools), "models": len(settings.models)}
        error = {"code": "config", "message": problems[0], "retryable": False} if problems else None
        document = {"files": settings.files, **counts, "problems": problems, "notes": notes, "error": error}
        print_json(document)
    elif not problems:
        print(
            f"{settings.files[0]}: {len(settings.agents)} agents, {len(settings.tools)} tools, "
            f"{len(settings.models)} models: all right"
        )
    for line in (*problems, *(f"note: {each}" for each in notes)):
        print(line, file=sys.stderr)
    if problems:
        raise SystemExit(EX_CONFIG)


for command in (ask, status, top, check, doctor, calibrate, foundry):
    app.command()(command)
app.add_typer(models.app)
app.add_typer(requests.app)
app.add_typer(tools.app)
app.add_typer(learn.app)
app.add_typer(mcp.app)
app.add_typer(homeassistant.app)
app.command()(route)
