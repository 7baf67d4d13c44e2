"""What a running daemon cannot work with: found at its start, kept true while it runs, shown by `status`.

A fault of one model, agent or tool leaves that one out and spares the rest: it answers `model_unavailable` or
`tool_failed` with the text of the finding. What was put right meanwhile is found so and comes back; a tool that could
not be read, or described, comes back with a reload.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable

from edged.config import Config
from edged.daemon.checks import agents, models, secrets, table, tools
from edged.daemon.checks.finding import About, Finding, Inspection, Subject
from edged.daemon.checks.verdicts import Verdicts
from edged.errors import ModelUnavailable
from edged.models.examined import Examined
from edged.tools.toolbox import Toolbox
from edged.types import JSON, Event

log = logging.getLogger("edged.daemon.faults")

AGAIN_S = 30.0  # while there are faults: what was put right is found so; looking takes milliseconds
CHANGES = {"model_updated", "model_rolled_back", "model_switched"}  # events after which a model has another file


class Faults:
    """The faults of one daemon.

    Args:
        settings: as `tools.prepare` left them.
        prepared: what that found. It stays until the next reload.
        publish: gets the events `fault_found` and `fault_gone`.
    """

    def __init__(
        self,
        settings: Config,
        prepared: Iterable[Finding],
        toolbox: Toolbox,
        examined: Examined,
        publish: Callable[[str, dict[str, JSON]], None],
    ) -> None:
        self._prepared = table.failures(prepared)
        self._inspected = Inspection(settings=settings, left_out=tools.named(self._prepared), in_service=True)
        self._toolbox, self._examined, self._publish = toolbox, examined, publish
        self._verdicts = Verdicts(settings.state_dir / agents.FILE, writes=True)
        self._now: dict[Finding, None] = {}  # in the order in which they were found
        self._wake = asyncio.Event()

    def heard(self, event: Event) -> None:
        """A subscriber of the bus."""
        if event.name in CHANGES:
            self._wake.set()

    def check_agent(self, name: str) -> None:
        """Raises ModelUnavailable where an agent's model cannot be asked by this agent."""
        for finding in self._now:
            if finding.subject == Subject(About.AGENT, name):
                raise ModelUnavailable(finding.message)

    def document(self) -> list[JSON]:
        """All that there are now, as `status` shows them; see `Finding.document`."""
        return [finding.document() for finding in self._now]

    def brief(self) -> list[JSON]:
        """All that there are now, as everybody may know them: [{about, name, message}]."""
        return [{**_about(finding), "message": finding.message} for finding in self._now]

    def added_by(self, found: Iterable[Finding]) -> list[Finding]:
        """The failures among findings of another configuration that this daemon does not have. Where a key was written
        to is no difference."""
        mine = {(finding.subject, finding.message) for finding in self._now}
        return [each for each in table.failures(found) if (each.subject, each.message) not in mine]

    async def start(self) -> None:
        """A first look, for as long as a start may wait: without the headers of models, and with the verdicts of the
        rehearsals that were made before."""
        for caution in self._toolbox.cautions():
            log.warning("%s", caution.message, extra={"event": "tools_caution"})
        found = await tools.problems(self._inspected, self._toolbox)
        found += await asyncio.to_thread(self._at_a_glance)
        rehearsed: list[Finding] = []
        for trial in await asyncio.to_thread(self._trials):
            rehearsed += agents.known(self._inspected, trial, self._verdicts)
            found += agents.doubts(self._inspected, trial, self._verdicts)
        self._take(found, rehearsed)

    async def run(self) -> None:
        """Look closer, then again while there is something wrong, and whenever a model has another file."""
        while True:
            await self._look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_S if self._now else None):
                    await self._wake.wait()
            self._wake.clear()

    async def _look(self) -> None:
        found = await tools.problems(self._inspected, self._toolbox)
        found += await asyncio.to_thread(self._closely)
        rehearsed: list[Finding] = []
        for trial in await asyncio.to_thread(self._trials):
            if (trouble := await agents.rehearse(trial, self._verdicts)) is not None:
                log.info("%s", trouble, extra={"event": "rehearsal_skipped"})
            rehearsed += agents.known(self._inspected, trial, self._verdicts)
            found += agents.doubts(self._inspected, trial, self._verdicts)
        self._take(found, rehearsed)

    def _at_a_glance(self) -> list[Finding]:
        return [*secrets.look(self._inspected), *models.look(self._inspected, self._examined, closely=False)]

    def _closely(self) -> list[Finding]:
        return [*secrets.look(self._inspected), *models.look(self._inspected, self._examined)]

    def _trials(self) -> list[agents.Trial]:
        return agents.trials(self._inspected.settings, offered_only=True)

    def _take(self, found: Iterable[Finding], rehearsed: Iterable[Finding]) -> None:
        """These are all that there are now. rehearsed: with what was wrong before, they keep models from being told of
        a tool."""
        untold = [*self._prepared, *rehearsed]
        now = dict.fromkeys(table.failures([*untold, *found]))
        for finding in [each for each in now if each not in self._now]:
            shown = {"event": "fault_found", "subject": str(finding.subject)}
            log.warning("fault of %s: %s", finding.subject, finding, extra=shown)
            self._publish("fault_found", {**_about(finding), "message": finding.message})
        for finding in [each for each in self._now if each not in now]:
            shown = {"event": "fault_gone", "subject": str(finding.subject)}
            log.info("no fault any more of %s: %s", finding.subject, finding, extra=shown)
            self._publish("fault_gone", _about(finding))
        self._now = now
        left_out = {each.subject.name: each.message for each in untold if each.subject.about is About.TOOL}
        self._toolbox.leave_out(left_out)


def _about(finding: Finding) -> dict[str, JSON]:
    return {"about": finding.subject.about, "name": finding.subject.name}
