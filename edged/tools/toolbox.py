"""All tools of the configuration, ready to be called."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edged.config import Database, PublishTool, PythonTool, SqlTool, Tool
from edged.errors import BadRequest, ToolFailed
from edged.interfaces import Publisher
from edged.tools import check, values
from edged.tools.python import orphans
from edged.tools.python.landlock import OPEN, Fence
from edged.tools.sql import SqlDatabase
from edged.types import JSON, ToolCall

if TYPE_CHECKING:
    from edged.tools.python.worker import ToolWorker


class Toolbox:
    """Calls tools by name.

    Args:
        tools: Python tools among them as `signatures.resolve` filled them in.
        publisher: None where no broker is configured (config refuses MQTT tools then).
        folder: of the Python tools' modules.
        fence: what their processes may not touch.
        called: gets (tool, whether it worked) of every call.
    """

    def __init__(
        self,
        tools: Mapping[str, Tool],
        databases: Mapping[str, Database],
        publisher: Publisher | None,
        folder: Path = Path(),
        fence: Fence = OPEN,
        *,
        called: Callable[[str, bool], None] = lambda tool, ok: None,
    ) -> None:
        self._called = called
        self._tools = tools
        self._databases = {name: SqlDatabase(name, config) for name, config in databases.items()}
        self._workers = _workers({n: tool for n, tool in tools.items() if isinstance(tool, PythonTool)}, folder, fence)
        self._publisher = publisher

    def get(self, name: str) -> Tool | None:
        """A tool; None where the journal names one that the configuration has no more."""
        return self._tools.get(name)

    def is_write(self, name: str) -> bool:
        """Whether the tool changes something; its intent is durable before it runs."""
        tool = self._tools.get(name)
        return tool is not None and (isinstance(tool, PublishTool) or tool.effect == "write")

    def keeps_intents(self, name: str) -> bool:
        """Whether the tool keeps the intent of a call beside its effect, in one transaction: SQL writes do."""
        tool = self._tools.get(name)
        return isinstance(tool, SqlTool) and tool.effect == "write"

    async def recall(self, rid: str) -> list[tuple[int, str, JSON]]:
        """(step, intent, result) of the SQL writes of a request that happened, as their databases know them.

        Raises:
            ToolFailed: one of them cannot be read.
        """
        found = await asyncio.gather(*(database.recall(rid) for database in self._databases.values()))
        return [step for each in found for step in each]

    async def call(self, call: ToolCall, rid: str, step: int, intent: str | None = None) -> JSON:
        """Do it. An SQL write happens once per (rid, step); publishing and Python tools happen at every call.

        Args:
            intent: what `recall` is to find beside an SQL write.

        Raises:
            ToolFailed: the reason, as the model and the reply get it.
        """
        try:
            result = await self._do(call, rid, step, intent)
        except ToolFailed:
            self._called(call.name, False)
            raise
        self._called(call.name, True)
        return result

    async def call_by_hand(self, name: str, arguments: dict[str, JSON], rid: str) -> JSON:
        """Call a tool outside of any request; nothing has made its arguments fit.

        Args:
            rid: an SQL write happens once for it, however often it is called.

        Raises:
            BadRequest: no such tool, or arguments that its schema does not allow.
            ToolFailed: as `call`.
        """
        tool = self._tools.get(name)
        if tool is None:
            raise BadRequest(f"no tool {name!r}; configured are {', '.join(self._tools) or 'none'}")
        wrong = await check.problem({**values.schema(tool.parameters), "additionalProperties": False}, arguments)
        if wrong:
            raise BadRequest(f"arguments: {wrong}")
        return await self.call(ToolCall(name, arguments), rid, 0)

    async def resume(self, call: ToolCall, rid: str, step: int, intent: str | None = None) -> JSON:
        """Finish a step that may or may not have been done when the daemon died (CONTRACT section 3).

        Raises:
            ToolFailed: also where the tool's `on_uncertain` is "report".
        """
        tool = self._tools.get(call.name)
        if tool is None:
            raise ToolFailed(f"the tool {call.name!r} is not configured any more")
        if not isinstance(tool, SqlTool) and tool.on_uncertain == "report" and self.is_write(call.name):
            raise ToolFailed("the daemon stopped before it knew what came of this call: it may have happened")
        return await self.call(call, rid, step, intent)

    def started(self, pid: int) -> bool:
        """Whether a process of the daemon's own user comes of a Python tool, or may."""
        return bool(self._workers) and orphans.comes_of(pid, os.getpid())

    async def check(self) -> dict[str, str]:
        """What is wrong with SQL tools, by name: missing files, tables, parameters. Nothing is run. (What is wrong with
        a Python tool was found when its signature was read.)"""
        problems = {}
        for name, tool in self._tools.items():
            if isinstance(tool, SqlTool):
                try:
                    await self._databases[tool.database].check(tool)
                except ToolFailed as error:
                    problems[name] = error.message
        return problems

    async def _do(self, call: ToolCall, rid: str, step: int, intent: str | None) -> JSON:
        tool = self._tools[call.name]
        arguments = values.complete(tool.parameters, call.arguments)
        if isinstance(tool, PublishTool):
            return await self._publish(tool, arguments)
        if isinstance(tool, PythonTool):
            return await self._workers[call.name].call(arguments, rid, step)
        database = self._databases[tool.database]
        if tool.effect == "write":
            return await database.write(tool, arguments, rid, step, intent)
        return await database.read(tool, arguments)

    async def stop(self) -> None:
        """End the processes of Python tools, close the databases."""
        await asyncio.gather(*(worker.stop() for worker in self._workers.values()))
        for database in self._databases.values():
            await database.stop()

    async def _publish(self, tool: PublishTool, arguments: dict[str, JSON]) -> JSON:
        if self._publisher is None:
            raise ToolFailed("no broker is configured")
        topic = values.topic(tool.publish.topic, arguments)
        payload = values.payload(tool.publish.payload, arguments)
        try:
            async with asyncio.timeout(tool.timeout_s):
                await self._publisher.publish(topic, payload, qos=tool.publish.qos, retain=tool.publish.retain)
        except TimeoutError:
            raise ToolFailed(
                f"the broker did not confirm within {tool.timeout_s} s; it may still get the message"
            ) from None
        return {"topic": topic, "published": True}


def _workers(tools: Mapping[str, PythonTool], folder: Path, fence: Fence) -> dict[str, ToolWorker]:
    if not tools:
        return {}
    from edged.tools.python.worker import ToolWorker  # only now: a daemon without such tools does not carry it

    return {name: ToolWorker(name, tool, folder, fence) for name, tool in tools.items()}
