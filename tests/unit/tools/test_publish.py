"""Tools that publish: what a device gets, and what is told where it gets nothing."""

from __future__ import annotations

from typing import Any

import pytest

from edged.config import Publish, PublishTool
from edged.errors import NoLink, ToolFailed
from edged.types import ToolCall
from tests.support.lamps import DESK, Broker, lamp, one


async def test_publish_tool_fills_topic_and_payload_and_tells_where_it_went() -> None:
    """Defaults are filled in; qos and retain are the configuration's."""
    broker = Broker()
    result = await one(lamp(), broker).call(DESK, "r", 0)
    assert result == {"topic": "zigbee2mqtt/desk/set", "published": True}
    assert broker.published == [("zigbee2mqtt/desk/set", b'{"state":"ON"}', 2, True)]


@pytest.mark.parametrize(
    ("broker", "call", "error"),
    [
        (Broker(ToolFailed("refused")), DESK, "refused"),
        (Broker(silent=True), DESK, "did not confirm within 0.05 s; it may still"),
        (None, DESK, "no broker"),
    ],
    ids=["refused", "silent", "none"],
)
async def test_publish_that_does_not_arrive_fails_with_its_reason(
    broker: Broker | None, call: ToolCall, error: str
) -> None:
    """What is not confirmed is never told as done."""
    with pytest.raises(ToolFailed, match=error):
        await one(lamp(timeout_s=0.05), broker).call(call, "r", 0)


@pytest.mark.parametrize("arguments", [{"lamp": "a/b"}, {"lamp": "+"}, {}, {"lamp": "desk", "colour": "red"}])
async def test_publish_with_wrong_arguments_sends_nothing(arguments: dict[str, Any]) -> None:
    """A call by hand may have any."""
    broker = Broker()
    with pytest.raises(ToolFailed):
        await one(lamp(), broker).call(ToolCall("lamp", arguments), "r", 0)
    assert broker.published == []


async def test_publish_without_a_link_keeps_its_code() -> None:
    """no_link is retryable, tool_failed is not."""
    with pytest.raises(NoLink):
        await one(lamp(), Broker(NoLink("no broker is reachable"))).call(DESK, "r", 0)


async def test_optional_parameter_of_a_publish_tool_is_left_out_of_the_message() -> None:
    """The device sees a message that never had it."""
    publish = Publish(topic="lamp/set", payload='{"state":"{state}","transition":{seconds}}')
    parameters: dict[str, dict[str, Any]] = {"state": {}, "seconds": {"type": "number", "optional": True}}
    broker = Broker()
    toolbox = one(PublishTool(description="d", publish=publish, parameters=parameters), broker)
    await toolbox.call(ToolCall("lamp", {"state": "ON"}), "r", 0)
    await toolbox.call_by_hand("lamp", {"state": "ON", "seconds": None}, "x")
    await toolbox.call(ToolCall("lamp", {"state": "ON", "seconds": 1.5}), "r", 1)
    without, whole = b'{"state":"ON"}', b'{"state":"ON","transition":1.5}'
    assert [payload for _, payload, *_ in broker.published] == [without, without, whole]
