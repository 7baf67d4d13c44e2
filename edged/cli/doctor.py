"""`edged doctor`: everything that may be wrong with a board, looked at in turn."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

from edged import __version__
from edged.cli.checks.finding import Finding, Level, fail, ok
from edged.cli.common import AsJson, ConfigFile, line
from edged.cli.connection import load_config
from edged.cli.outcome import EX_FAILED, print_json
from edged.client import DEFAULT_SOCKET
from edged.config import Config
from edged.errors import ConfigError

WORST = (Level.FAIL, Level.WARN, Level.OK)


def doctor(config_file: ConfigFile = None, as_json: AsJson = False) -> None:
    """Look for what is wrong with this board and this installation; needs no daemon. 70 when something fails."""
    logging.getLogger("edged").setLevel(logging.CRITICAL)  # what the daemon's parts would log, the findings say
    found = asyncio.run(_collect(config_file, as_json))
    worst = next(level for level in WORST if any(finding.level is level for finding in found))
    if as_json:
        print_json({"version": __version__, "result": worst, "checks": found})
    if worst is Level.FAIL:
        raise SystemExit(EX_FAILED)


async def _collect(config_file: Path | None, as_json: bool) -> list[Finding]:
    """All findings; for people each is printed as soon as there is one."""
    found = []
    async for finding in examine(config_file):
        found.append(finding)
        if not as_json:
            print(f"{finding.level:<5} {finding.check:<13} {line(finding.message)}", flush=True)
            if finding.do:
                print(f"{'':<20}do: {line(finding.do)}", flush=True)
    return found


async def examine(config_file: Path | None) -> AsyncIterator[Finding]:
    """Every check, from what the others depend on to what stands alone."""
    # Everything the daemon is made of: loaded by this command only.
    from edged.cli.checks import board, files, models, network, permissions, service, tools

    finding, settings = _configuration(config_file)
    yield finding
    where = settings.socket_path if settings else Path(DEFAULT_SOCKET)
    finding, status = await service.daemon(where)
    yield finding
    yield service.group(settings, where)
    if (unit := await service.unit()) is not None:
        yield unit
    if settings is not None:
        for finding in permissions.look(settings):
            yield finding
        for finding in files.look(settings):
            yield finding
        for finding in models.look(settings, status):
            yield finding
        for finding in await network.servers(settings, status):
            yield finding
        for finding in await tools.look(settings):
            yield finding
        yield await network.broker(settings, status)
        for finding in await network.upstreams(settings, status):
            yield finding
    for finding in board.look():
        yield finding


def _configuration(config_file: Path | None) -> tuple[Finding, Config | None]:
    try:
        settings = load_config(config_file)
    except ConfigError as error:
        return fail("configuration", str(error), "correct it; what depends on it was not looked at"), None
    counts = f"{len(settings.agents)} agents, {len(settings.tools)} tools, {len(settings.models)} models"
    return ok("configuration", f"{', '.join(settings.files)}: {counts}"), settings
