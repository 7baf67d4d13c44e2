"""Responses of the Responses API: kept, gone on from, looked at, ended, deleted. Each is its client's own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from msgspec import Struct, structs

from edged.api.requests import Requests
from edged.config import Config
from edged.errors import BadRequest, Cancelled, EdgedError
from edged.requests.storing import STORE_REFUSES
from edged.store import responses, retention
from edged.store.database import Database
from edged.store.lookup import Row
from edged.store.responses import Kept
from edged.types import Caller, Privacy

log = logging.getLogger("edged.api")


class UnknownResponse(BadRequest):
    """The client has no response of that id, or has it no more. id: of the response."""

    def __init__(self, id: str) -> None:
        kept = "what is old, deleted, or was asked for with store: false is not kept"
        super().__init__(f"no response {id!r}: {kept}")
        self.id = id


class Found(Struct, frozen=True):
    """A response that is known.

    row: the agent's request behind it, where its output is not part of it yet; None: there is none, or none any more.
    running: a plain model is at it.
    """

    kept: Kept
    row: Row | None = None
    running: bool = False


class Responses:
    """What clients' responses need beside the answer itself.

    Args:
        crowded: called where the store is nearly full.
    """

    def __init__(self, config: Config, database: Database, requests: Requests, crowded: Callable[[], None]) -> None:
        self._config = config
        self._database = database
        self._requests = requests
        self._crowded = crowded
        self._running: dict[str, tuple[Kept, asyncio.Task[Any]]] = {}  # of plain models that are kept, by id

    def is_private(self, agent: str) -> bool:
        """Whether nothing of what an agent is asked may leave the board."""
        return self._config.agents[agent].privacy is Privacy.DEVICE

    async def chain(self, caller: Caller, id: str) -> list[Kept]:
        """A response and all that it goes on from, oldest first.

        Raises:
            UnknownResponse: one of them is not there.
            BadRequest: there are too many.
        """
        try:
            return await self._database.read(lambda c: responses.chain(c, caller.client, id))
        except KeyError as missing:
            raise UnknownResponse(missing.args[0]) from None
        except OverflowError:
            most = responses.MAX_CHAIN
            raise BadRequest(f"response {id!r} ends a dialogue of {most} responses, which is the most") from None

    async def keep(self, kept: Kept, *, durable: bool, only_new: bool = False) -> bool:
        """Store a response, or the newer body of one that is stored. Returns whether it is: a store that is full, or
        cannot be written, keeps none, and the answer is given all the same.

        Args:
            only_new: one that is stored stays as it is.
        """
        size, loop = self._config.store_bytes, asyncio.get_running_loop()

        def store(c: Any) -> bool:
            if retention.is_crowded(c, size):
                loop.call_soon_threadsafe(self._crowded)
            if only_new and responses.find(c, kept.client, kept.id) is not None:
                return True
            return responses.keep(c, kept, size)

        try:
            is_kept = await self._database.write(store, durable=durable)
        except STORE_REFUSES as error:
            log.error("response %s is not kept: %s", kept.id, error, extra={"event": "store_refuses"})
            return False
        if not is_kept:
            log.warning("response %s is not kept: the store is full", kept.id, extra={"event": "response_not_kept"})
        return is_kept

    async def forget(self, caller: Caller, id: str) -> None:
        """As if it had never been: what it was of was refused."""
        await self._database.write(lambda c: responses.delete(c, caller.client, id), durable=False)

    async def find(self, caller: Caller, id: str, *, unfinished: Callable[[Kept], bool]) -> Found:
        """A response of the caller's.

        Args:
            unfinished: whether its body has no output yet.

        Raises:
            UnknownResponse: there is none.
        """
        if (running := self._running.get(id)) is not None and running[0].client == caller.client:
            return Found(running[0], running=True)
        kept = await self._database.read(lambda c: responses.find(c, caller.client, id))
        if kept is None:
            raise UnknownResponse(id)
        return Found(kept, await self._request(caller, id) if unfinished(kept) else None)

    async def cancel(self, caller: Caller, found: Found) -> Row | None:
        """End what makes a response; one that has its end keeps it. Returns the agent's request, if it is one's."""
        id = found.kept.id
        if found.running:
            _, task = self._running[id]
            task.cancel()
            await asyncio.wait([task])
        return None if found.row is None else await self._requests.cancel(caller, id)

    async def delete(self, caller: Caller, found: Found) -> None:
        """Forget a response; what makes it ends first."""
        await self.cancel(caller, found)
        await self._database.write(lambda c: responses.delete(c, caller.client, found.kept.id))

    async def carry(self, kept: Kept, work: Coroutine[Any, Any, bytes], gone: asyncio.Event) -> bytes:
        """The body that the work of a plain model ends with, kept. The work goes on where its client goes away.

        Args:
            kept: with a body that says that it is under way.
            gone: set before this call is cancelled because the client went away.

        Raises:
            Cancelled: somebody has ended it by `cancel`.
            EdgedError: as the work does.
        """

        async def whole() -> bytes:
            body = await work
            await self.keep(structs.replace(kept, body=body), durable=True)
            return body

        task = asyncio.create_task(whole(), name="edged.response")
        self._running[kept.id] = kept, task
        task.add_done_callback(lambda ended: self._ended(kept.id, ended))
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            if not gone.is_set():  # the daemon stops
                task.cancel()
            raise
        if task.cancelled():
            raise Cancelled(f"response {kept.id!r} was cancelled")
        return task.result()

    def _ended(self, id: str, task: asyncio.Task[Any]) -> None:
        """Also retrieves the error of one whose client has left."""
        del self._running[id]
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, EdgedError):
            log.error("response %s failed through a bug", id, exc_info=error)

    async def _request(self, caller: Caller, id: str) -> Row | None:
        try:
            row = await self._requests.find(caller, id)
        except BadRequest:
            return None
        return row if row.id == id and row.client == caller.client else None
