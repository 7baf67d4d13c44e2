"""A lamp and a broker, for tests of tools."""

from __future__ import annotations

import asyncio
from typing import Any

from edged.config import Config, Node, Publish, PublishTool
from edged.tools.toolbox import Toolbox
from edged.types import ToolCall

LAMP: dict[str, Any] = {"lamp": {"enum": ["desk", "door"]}, "state": {"enum": ["ON", "OFF"], "default": "ON"}}


def lamp(**more: Any) -> PublishTool:
    """The contract's lamp."""
    publish = Publish(topic="zigbee2mqtt/{lamp}/set", payload='{"state":"{state}"}', qos=2, retain=True)
    return PublishTool(description="Switch a lamp.", publish=publish, parameters=LAMP, **more)


class Broker:
    """Keeps what is published."""

    def __init__(self, fault: Exception | None = None, *, silent: bool = False) -> None:
        self.published: list[tuple[str, bytes, int, bool]] = []
        self._fault, self._silent = fault, silent

    async def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False) -> None:
        self.published.append((topic, payload, qos, retain))
        if self._silent:
            await asyncio.Event().wait()
        if self._fault:
            raise self._fault


def one(tool: PublishTool, broker: Broker | None) -> Toolbox:
    return Toolbox(Config(node=Node(), tools={"lamp": tool}), broker)


DESK = ToolCall("lamp", {"lamp": "desk"})
