"""One MCP server of the configuration: started when it is first needed, left alone when it fails too often, ended when
nobody has needed it for a while. What it does wrong is its own tools' failure and nobody else's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from edged.config import Config, McpServer
from edged.errors import ConfigError, ToolFailed
from edged.tools.mcp import starting
from edged.tools.mcp.channel import Channel, Gone, Unasked
from edged.tools.mcp.schemas import RemoteTool
from edged.tools.mcp.session import Session
from edged.tools.python.landlock import OwnFiles
from edged.types import JSON
from edged.wire.mcp import RpcError

logger = logging.getLogger("edged.tools")

IDLE_S = 300.0  # without a call it is ended: Node takes 60 MiB, and a second to start on a board
LOOK_S = 300.0  # its tools are looked at again with the first call after so long: it may have changed them
# Between two starts of one that keeps failing. The first failure costs nothing: the next call starts it again.
BACK_OFF_S = (0.0, 1.0, 5.0, 30.0, 60.0)


class Server:
    """One server.

    Args:
        own: what its process may not touch.
        looked: gets its tools whenever they were listed.
        idle_s: seconds without a call after which it is ended.
    """

    def __init__(
        self,
        name: str,
        settings: McpServer,
        config: Config,
        own: OwnFiles,
        looked: Callable[[str, list[RemoteTool]], None] = lambda server, tools: None,
        *,
        idle_s: float = IDLE_S,
    ) -> None:
        self._name, self._settings, self._config, self._own = name, settings, config, own
        self._looked, self._idle_s = looked, idle_s
        self._session: Session | None = None
        self._opening: asyncio.Task[Session] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle: asyncio.TimerHandle | None = None
        self._is_legacy = self._is_stopped = False
        self._failures, self._not_before, self._why = 0, 0.0, ""
        self._looked_at = -LOOK_S
        self._busy = 0

    @property
    def state(self) -> str:
        """running, idle, or what it failed of."""
        if self._session is not None and self._session.channel.lost is None:
            return "running"
        return f"failed: {self._why}" if self._failures else "idle"

    @property
    def session(self) -> Session | None:
        """The one that is open, or was last."""
        return self._session

    async def tools(self) -> list[RemoteTool]:
        """Its tools, asked for now.

        Raises:
            ToolFailed: it does not tell.
        """
        found: list[RemoteTool] = await self._with_session(lambda session: session.tools(), "")
        self._looked_at = time.monotonic()
        self._looked(self._name, found)
        return found

    async def call(
        self, tool: RemoteTool, arguments: dict[str, JSON], *, timeout_s: float, is_write: bool
    ) -> dict[str, JSON]:
        """The result of a call as the server gives it.

        Raises:
            ToolFailed: there is none.
        """
        half = ": it may have happened" if is_write else ""

        async def call(session: Session) -> dict[str, JSON]:
            try:
                async with asyncio.timeout(timeout_s):
                    return await session.call(tool, arguments)
            except TimeoutError:
                self._later(self._end_if_dead(session), "ping")
                raise ToolFailed(f"it took longer than {timeout_s:g} s (timeout_s) and was cancelled{half}") from None

        result: dict[str, JSON] = await self._with_session(call, half)
        if time.monotonic() - self._looked_at > LOOK_S:
            self._looked_at = time.monotonic()
            self._later(self._look(), "look")
        return result

    async def close(self) -> None:
        """End it."""
        self._is_stopped = True
        if self._idle:
            self._idle.cancel()
        tasks: set[asyncio.Task[Any]] = {*self._tasks, *([self._opening] if self._opening else ())}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._drop()

    async def _with_session(self, do: Callable[[Session], Coroutine[Any, Any, Any]], half: str) -> Any:
        """What comes of something that is done with an open session. Raises ToolFailed."""
        self._busy += 1
        try:
            return await self._tried(do, half)
        finally:
            self._busy -= 1
            self._rest()

    async def _tried(self, do: Callable[[Session], Coroutine[Any, Any, Any]], half: str) -> Any:
        for is_last in (False, True):
            session = await self._ready()
            try:
                result = await do(session)
            except Unasked:  # over HTTP: nothing was done, and the server wants to be introduced to edged again
                await self._drop(session)
                if is_last:
                    raise self._failed("it forgets every session") from None
                continue
            except Gone as gone:
                await self._drop(session)
                raise self._failed(f"{gone}{half}") from None
            except TimeoutError:
                self._later(self._end_if_dead(session), "ping")
                raise self._failed("it does not answer") from None
            except RpcError as error:
                self._failures = 0  # it answers
                raise ToolFailed(f"MCP server {self._name!r} says: {error.message} ({error.code})") from None
            self._failures = 0
            return result
        raise AssertionError

    async def _ready(self) -> Session:
        """An open session. A caller that leaves does not break the opening off: another may wait for it."""
        if self._is_stopped:
            raise ToolFailed("the daemon stops")
        if self._idle:
            self._idle.cancel()
        if self._session is not None and self._session.channel.lost is None:
            return self._session
        if self._opening is None:
            wait_s = self._not_before - time.monotonic()
            if wait_s > 0:
                raise ToolFailed(f"MCP server {self._name!r}: {self._why}; it is tried again in {wait_s:.0f} s")
            self._opening = asyncio.create_task(self._open(), name=f"edged.mcp.{self._name}.open")
            self._opening.add_done_callback(self._opened)
        return await asyncio.shield(self._opening)

    def _opened(self, task: asyncio.Task[Session]) -> None:
        self._opening = None
        if not task.cancelled():
            task.exception()  # where everybody has left nobody else asks, and asyncio would complain

    async def _open(self) -> Session:
        await self._drop()
        try:
            self._session = await self._begun()
        except (Gone, RpcError, ConfigError, OSError) as error:  # TimeoutError is one
            said = "it does not answer" if isinstance(error, TimeoutError) else str(error)
            raise self._failed(said) from None
        except Unasked:
            raise self._failed("it forgets every session") from None
        self._is_legacy = not self._session.is_modern
        logger.info("MCP server %s: %s, %s", self._name, self._session.name or "no name", self._session.version)
        return self._session

    async def _begun(self) -> Session:
        """A session of the era that the server is of. A legacy one may end where it is asked what it does not know."""
        for legacy in (False, True) if not self._is_legacy else (True,):
            made: Channel = await starting.channel(self._name, self._settings, self._config, self._own)
            try:
                return await Session.begin(made, legacy=legacy)
            except BaseException as error:
                await made.close()
                if not isinstance(error, Gone) or legacy:
                    raise
        raise AssertionError

    def _rest(self) -> None:
        """Where nobody needs it, it is ended after a while."""
        if self._idle:
            self._idle.cancel()
        if not self._busy and not self._is_stopped and (session := self._session) is not None:
            loop = asyncio.get_running_loop()
            self._idle = loop.call_later(self._idle_s, lambda: self._later(self._drop(session), "idle"))

    def _failed(self, why: str) -> ToolFailed:
        self._why = why
        self._failures += 1
        self._not_before = time.monotonic() + BACK_OFF_S[min(self._failures, len(BACK_OFF_S)) - 1]
        logger.warning("MCP server %s: %s", self._name, why, extra={"event": "mcp_failed"})
        return ToolFailed(f"MCP server {self._name!r}: {why}")

    async def _end_if_dead(self, session: Session) -> None:
        """A server that did not answer one call may answer others; one that answers nothing is ended."""
        with contextlib.suppress(Unasked):
            if await session.is_alive():
                return
        if self._session is session:
            self._failed("it does not answer any more, and was ended")
            await self._drop(session)

    async def _look(self) -> None:
        with contextlib.suppress(ToolFailed):
            await self.tools()

    async def _drop(self, session: Session | None = None) -> None:
        """End a session, by default the one that is open."""
        session = session or self._session
        if session is self._session:
            self._session = None
        if session is not None:
            await session.channel.close()

    def _later(self, work: Coroutine[Any, Any, None], what: str) -> None:
        task = asyncio.create_task(work, name=f"edged.mcp.{self._name}.{what}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
