"""The checks, and the ways to go through them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from msgspec import Struct

from edged.config import Config
from edged.daemon.checks import agents, models, places, secrets, tools
from edged.daemon.checks.finding import WHOLE, Finding, Inspection, Level, warn
from edged.daemon.checks.verdicts import Verdicts

Look = Callable[[Inspection], Iterable[Finding]]  # blocks

# What may be wrong with the whole: found in a moment, and in the way of a start.
OF_THE_WHOLE: list[Look] = [places.look, secrets.look]
OF_PARTS: list[Look] = [
    models.look,
    models.scores,
    models.learning,
]  # and those of `tools` and `agents`, which take processes


class Report(Struct, frozen=True):
    """A configuration and what is wrong with it. settings, prepared: as `tools.prepare` gave them. found: everything,
    with what is as it should be."""

    settings: Config
    prepared: list[Finding]
    found: list[Finding]


async def everything(settings: Config, *, in_service: bool = False) -> Report:
    """All there is to find in a configuration that is right by itself. Nothing is made or changed.

    Args:
        in_service: see Inspection. The daemon leaves out what it never does, see `agents.trials`.
    """
    settings, prepared = await tools.prepare(settings)
    inspected = Inspection(settings=settings, left_out=tools.named(prepared), in_service=in_service)
    found = list(prepared)
    for look in (*OF_THE_WHOLE, *OF_PARTS):
        found += await asyncio.to_thread(list, look(inspected))
    found += await tools.look(inspected)
    verdicts = Verdicts(settings.state_dir / agents.FILE, writes=in_service)
    for trial in await asyncio.to_thread(agents.trials, settings, offered_only=in_service):
        if (trouble := await agents.rehearse(trial, verdicts)) is not None:
            found.append(warn("agents", trouble, "try again later, with other programs ended"))
        found += agents.known(inspected, trial, verdicts)
        found += agents.doubts(inspected, trial, verdicts)
    return Report(settings, prepared, found)


def refuse_start(settings: Config) -> None:
    """Raises the ConfigError of what keeps a daemon of this configuration from starting. Blocks for a moment."""
    inspected = Inspection(settings=settings, in_service=True)
    for look in OF_THE_WHOLE:
        for finding in failures(look(inspected)):
            if finding.subject == WHOLE:
                raise finding.error()


def failures(found: Iterable[Finding]) -> list[Finding]:
    """Those because of which something does not work, each once."""
    return list(dict.fromkeys(finding for finding in found if finding.level is Level.FAIL))
