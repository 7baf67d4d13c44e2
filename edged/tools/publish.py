"""Tools that publish to another device over MQTT."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from edged.config import PublishTool, Tool
from edged.errors import ToolFailed
from edged.tools import values
from edged.tools.kind import ToolKind
from edged.types import JSON


class PublishKind(ToolKind[PublishTool]):
    """Publishes at every call: what the broker was given is not known after a crash."""

    table: ClassVar[type[Tool]] = PublishTool

    async def call(self, name: str, arguments: dict[str, JSON], rid: str, step: int, intent: str) -> JSON:
        """See ToolKind. Returns {"topic": str, "published": true} once the broker has confirmed."""
        tool = self.tools[name]
        if self._context.publisher is None:
            raise ToolFailed("no broker is configured")
        topic = values.topic(tool.publish.topic, tool.parameters, arguments)
        payload = values.payload(tool.publish.payload, tool.parameters, arguments)
        publish = self._context.publisher.publish
        try:
            async with asyncio.timeout(tool.timeout_s):
                await publish(topic, payload, qos=tool.publish.qos, retain=tool.publish.retain)
        except TimeoutError:
            late = f"the broker did not confirm within {tool.timeout_s} s; it may still get the message"
            raise ToolFailed(late) from None
        return {"topic": topic, "published": True}
