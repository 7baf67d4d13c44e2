"""Files that a model computes faster from, made on the board while it works: an adapter merged into its weights.

Nobody waits for it: a child process of the lowest priority makes the file, as a whole or not at all, and the model is
loaded from it between two requests. Without the file the model works as before.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from edged.engines import registry
from edged.engines.kind import Preparation
from edged.errors import EdgedError
from edged.host import child
from edged.interfaces import Residents
from edged.types import Event, ModelSpec

log = logging.getLogger("edged.models.preparing")

CHANGES = {"model_loaded", "model_switched"}  # events after which there may be something to make
# After a model came in, before a core is busy for ten seconds or a card for minutes: a board that has just started
# answers what has waited for it first.
AFTER_S = 60.0
LEFT_BYTES = 512 * 2**20  # of the disk that stay free: the store, its log and the snapshots of prompts go first


class Preparer:
    """Makes what can be made of the models' files, one at a time.

    Args:
        specs: the models that have one file, as they are in force.
        room: bytes of memory that may be taken.
        is_resident: whether a model is in memory.
        is_updating: whether another file is coming for one: it is not to be undone.
    """

    def __init__(
        self,
        specs: Callable[[], Mapping[str, ModelSpec]],
        residents: Residents,
        room: Callable[[], int],
        is_resident: Callable[[str], bool],
        is_updating: Callable[[], bool] = lambda: False,
    ) -> None:
        self._specs, self._residents, self._room = specs, residents, room
        self._is_resident, self._is_updating = is_resident, is_updating
        self._changed = asyncio.Event()
        self._failed: set[ModelSpec] = set()  # tried in this run of the daemon; the log has why

    def heard(self, event: Event) -> None:
        """A subscriber of the bus."""
        if event.name in CHANGES:
            self._changed.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(AFTER_S)
            self._changed.clear()
            for name, spec in self._specs().items():
                if spec not in self._failed:
                    await self._prepare(name, spec)

    async def _prepare(self, name: str, spec: ModelSpec) -> None:
        try:
            wanted = await asyncio.to_thread(registry.kind(spec.engine).preparation, spec)
        except (EdgedError, OSError):  # the load says so
            return
        if wanted is None or not self._fits(name, wanted):
            return
        if problem := await _run(wanted):
            self._failed.add(spec)
            log.warning("model %s: its adapter could not be merged, and is applied at each load: %s", name, problem)
            return
        log.info("model %s: its adapter is merged into its weights", name)
        if self._is_resident(name) and not self._is_updating() and self._specs().get(name) == spec:
            try:
                await self._residents.switch(name, spec)
                await self._residents.load(name)
            except EdgedError as error:  # the next request loads it, or says why not
                log.info("model %s is not in memory yet: %s", name, error.message)

    def _fits(self, name: str, wanted: Preparation) -> bool:
        try:
            free = shutil.disk_usage(_existing(wanted.folder)).free
        except OSError:
            return False
        if free < wanted.disk_bytes + LEFT_BYTES:
            log.info("model %s: no room on the disk to merge its adapter", name)
            return False
        return self._room() >= wanted.memory_bytes


async def _run(wanted: Preparation) -> str:
    """What went wrong; empty: nothing. Cancelled, it ends the child."""
    try:
        ended = await child.run(*wanted.command)
    except OSError as error:
        return f"no process could be started: {error.strerror}"
    if ended.status == 0:
        return ""
    return ended.errors.decode(errors="replace").strip().rpartition("\n")[2] or f"it ended with {ended.status}"


def _existing(folder: Path) -> Path:
    return folder if folder.is_dir() else folder.parent
