"""The topics of one node (CONTRACT section 4), and which topics may be published to. Pure."""

from __future__ import annotations

import re

ROOT = "edged/"  # everything below is edged's own: a reply there could be taken for a request
DELTA = "/delta"  # follows the reply topic
MAX_TOPIC_BYTES = 65_535 - len(DELTA)  # MQTT's length field has 16 bits
MAX_LEVELS = 100  # mosquitto ends the connection of who publishes to more than 200; half of it leaves room for bridges

# What MQTT lets a receiver end the connection for (1.5.4: NUL, control characters, surrogates, noncharacters). Brokers
# do: one such text in a reply would end every connection on which it is sent again, for ever.
_FORBIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane * 0x10000 + 0xFFFE) + chr(plane * 0x10000 + 0xFFFF) for plane in range(17))
    + "]"
)


class Topics:
    """Names of one node's topics."""

    def __init__(self, node_id: str) -> None:
        self.base = f"{ROOT}{node_id}"
        self.status = f"{self.base}/status"
        self.state = f"{self.base}/state"
        self.event = f"{self.base}/event"
        self.requests = f"{self.base}/agents/+/request"
        self.cancels = f"{self.base}/requests/+/cancel"

    def agent_of(self, topic: str) -> str | None:
        """The agent a request topic names; None for other topics."""
        return self._between(topic, "/agents/", "/request")

    def target_of(self, topic: str) -> str | None:
        """The rid or id a cancel topic names; None for other topics."""
        return self._between(topic, "/requests/", "/cancel")

    def reply(self, agent: str) -> str:
        """Where replies go that nobody named a topic for."""
        return f"{self.base}/agents/{agent}/reply"

    def _between(self, topic: str, before: str, after: str) -> str | None:
        name = topic.removeprefix(self.base + before)
        if name == topic or not name.endswith(after):
            return None
        name = name.removesuffix(after)
        return None if "/" in name else name


def is_text(value: str) -> bool:
    """Whether MQTT lets this be a string of a packet."""
    return _FORBIDDEN.search(value) is None


def publish_problem(topic: str) -> str | None:
    """Why nothing can be published to a topic; None when it can."""
    if not topic:
        return "the topic is empty"
    if not is_text(topic):
        return f"the topic {topic!r} holds characters that MQTT forbids"
    if "+" in topic or "#" in topic:
        return f"the topic {topic!r} holds a wildcard"
    if len(topic.encode()) > MAX_TOPIC_BYTES:
        return f"the topic is longer than {MAX_TOPIC_BYTES} bytes"
    if topic.count("/") >= MAX_LEVELS:
        return f"the topic has more than {MAX_LEVELS} levels"
    return None


def reply_problem(topic: str) -> str | None:
    """Why a client may not have its reply on a topic; None when it may."""
    if topic.startswith(ROOT):  # all request topics are below it
        return f"the topic {topic!r} is below {ROOT}, where no reply but our own default may go"
    if topic.startswith("$"):
        return f"the topic {topic!r} starts with $, which MQTT keeps for brokers"
    return publish_problem(topic)
