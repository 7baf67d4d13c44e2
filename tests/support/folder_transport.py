"""A transport that edged does not know: a request is a file in `in`, its reply one of the same name in `out`. A daemon
gets it by EDGED_TEST_MEMBERS; EDGED_TEST_FOLDER is where the two lie. EDGED_TEST_FOLDER_STOP is what its stop does:
"raises", "hangs", or "blocks" a thread."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from edged.config import Config
from edged.daemon.assembly import TRANSPORTS
from edged.transport.base import Backend, ReplyTransport
from edged.types import Address, Ask, Caller, Delivery

LOOK_S = 0.02


class FolderTransport(ReplyTransport):
    """Whoever may write into the folder may use every agent."""

    name = "folder"

    def __init__(self, folder: Path, agents: frozenset[str]) -> None:
        self._in, self._out = folder / "in", folder / "out"
        self._agents = agents
        self._taking = True
        self._task: asyncio.Task[None] | None = None

    async def start(self, backend: Backend) -> asyncio.Task[None]:
        """See Transport."""
        for folder in (self._in, self._out):
            folder.mkdir(parents=True, exist_ok=True)
        self._task = asyncio.create_task(self._look(backend), name="edged.folder")
        return self._task

    def stop_taking(self) -> None:
        """See Transport."""
        self._taking = False

    async def stop(self) -> None:
        """See Transport."""
        how = os.environ.get("EDGED_TEST_FOLDER_STOP")
        if how == "raises":
            raise RuntimeError("the folder does not close")
        if how == "hangs":
            await _for_ever()
        if how == "blocks":
            await asyncio.to_thread(time.sleep, 3600)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def deliver(self, delivery: Delivery) -> None:
        """See interfaces.Deliverer."""
        (self._out / delivery.address.topic).write_bytes(delivery.body)

    def status(self) -> dict[str, Any]:
        """See Transport."""
        return {"waiting": len(list(self._in.iterdir()))}

    async def _look(self, backend: Backend) -> None:
        while True:
            for path in sorted(self._in.iterdir()) if self._taking else ():
                request = backend.api.requests.request({"input": path.read_text(), "id": path.name})
                caller = Caller("folder:somebody", self.name, self._agents)
                await backend.api.requests.submit(Ask(request=request, caller=caller, address=Address(path.name)))
                path.unlink()
            await asyncio.sleep(LOOK_S)


async def _for_ever() -> None:
    """Not even a cancellation ends it."""
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            continue


def make(settings: Config) -> FolderTransport:
    """See assembly.TRANSPORTS."""
    return FolderTransport(Path(os.environ["EDGED_TEST_FOLDER"]), frozenset(settings.agents))


TRANSPORTS.append(make)
