"""What Home Assistant is told of a node by MQTT discovery: one device with its entities. Pure.

Home Assistant drops the whole device where one key is not in its schema, with nothing but a warning in its log. Its
words are those of https://www.home-assistant.io/integrations/mqtt: `origin` is required, `default_entity_id` is what
entities are called, and a component that is gone is sent once more as `{"platform": X}` alone.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping

from msgspec import Struct

from edged import __version__
from edged.transport.mqtt.topics import Topics
from edged.types import JSON

EXPIRE_S = 120  # four times the period of base/state: one that is lost makes nothing unavailable
MAX_STATE = 255  # characters; Home Assistant shows "unknown" instead of a longer state
SHORT = 252  # ... with three points after it
EVENTS = ("answer", "failed", "confirm")
BYTES_A_MEGABYTE = 1_000_000  # as Home Assistant counts "MB"

_STRANGE = re.compile(r"[^a-zA-Z0-9_-]")  # what no topic of discovery may hold

_MEMORY = (
    f"{{{{ ((value_json.memory.private_bytes + value_json.memory.mapped_bytes) / {BYTES_A_MEGABYTE}) | round(1) }}}}"
)
# The counts are empty until the daemon has counted for the first time.
_QUEUE = (
    "{% set counts = value_json.queue.requests | default({}) %}"
    "{{ counts.received | default(0) + counts.waiting_link | default(0) }}"
)
_LINK = (
    "{% set states = value_json.link.values() | map(attribute='state') | list %}"
    "{{ 'none' if not states else 'up' if 'up' in states else 'down' if 'down' in states else 'unknown' }}"
)
_LINKS = ("up", "down", "unknown", "none")
_SPEED = "{{{{ value_json.models[{name}].decode_tokens_s | default(None) }}}}"  # "None" is no state in Home Assistant
_ASK = '{"input": {{ value | tojson }}}'  # bare text that begins with { would be read as JSON


class Subject(Struct, frozen=True):
    """What the entities are made of.

    answers: agents whose answers are published. control: whether there are buttons.
    """

    node: str
    agents: tuple[str, ...]
    models: tuple[str, ...]
    answers: tuple[str, ...]
    control: bool


def object_id(node: str) -> str:
    """The name of the device in the topics of discovery."""
    return f"edged_{_plain(node)}"


def config_topic(prefix: str, node: str) -> str:
    """Where the device is described."""
    return f"{prefix}/device/{object_id(node)}/config"


def answer_topic(base: str, agent: str) -> str:
    """Where the last answer of an agent is kept."""
    return f"{base}/homeassistant/{agent}/answer"


def event_topic(base: str, agent: str) -> str:
    """Where each answer of an agent is told once."""
    return f"{base}/homeassistant/{agent}/event"


def control_topic(base: str, command: str) -> str:
    """Where a command is given."""
    return f"{base}/control/{command}"


def components(subject: Subject) -> dict[str, dict[str, JSON]]:
    """The entities by their keys."""
    topics = Topics(subject.node)
    there = {"availability": [{"topic": topics.status, "value_template": "{{ value_json.state }}"}]}
    made: dict[str, dict[str, JSON]] = {
        "online": {
            "platform": "binary_sensor",
            "name": "Online",
            "device_class": "connectivity",
            "entity_category": "diagnostic",
            "state_topic": topics.status,
            "value_template": "{{ value_json.state }}",
            "payload_on": "online",
            "payload_off": "offline",
        }
    }
    state: dict[str, JSON] = {"platform": "sensor", "state_topic": topics.state, "expire_after": EXPIRE_S, **there}
    measured = {**state, "state_class": "measurement", "entity_category": "diagnostic"}
    size = {"device_class": "data_size", "unit_of_measurement": "MB"}
    made["memory"] = {**measured, "name": "Memory", "value_template": _MEMORY, **size}
    made["queue"] = {**measured, "name": "Queue", "value_template": _QUEUE, "unit_of_measurement": "requests"}
    enum: dict[str, JSON] = {"device_class": "enum", "options": list(_LINKS), "entity_category": "diagnostic"}
    made["link"] = {**state, "name": "Link", "value_template": _LINK, **enum}
    for name in subject.models:
        template = _SPEED.format(name=f"'{name}'")  # a name has letters, digits, `_`, `-` and `.`
        speed = {"value_template": template, "unit_of_measurement": "tokens/s"}
        made[f"speed_{_plain(name)}"] = {**measured, "name": f"{name} speed", **speed}
    for agent in subject.agents:
        made[f"ask_{_plain(agent)}"] = {
            "platform": "notify",
            "name": f"Ask {agent}",
            "command_topic": f"{topics.base}/agents/{agent}/request",
            "command_template": _ASK,
            **there,
        }
    for agent in subject.answers:
        made[f"answer_{_plain(agent)}"] = {
            "platform": "sensor",
            "name": f"{agent} answer",
            "state_topic": answer_topic(topics.base, agent),
            "value_template": "{{ value_json.state }}",
            "json_attributes_topic": answer_topic(topics.base, agent),
            **there,
        }
        made[f"event_{_plain(agent)}"] = {
            "platform": "event",
            "name": f"{agent} answers",
            "state_topic": event_topic(topics.base, agent),
            "event_types": list(EVENTS),
            **there,
        }
    if subject.control:
        config: dict[str, JSON] = {"platform": "button", "entity_category": "config", **there}
        reload = {"command_topic": control_topic(topics.base, "reload")}
        made["reload"] = {**config, "name": "Reload configuration", **reload}
        for name in subject.models:
            unload = {"command_topic": control_topic(topics.base, "unload"), "payload_press": name}
            made[f"unload_{_plain(name)}"] = {**config, "name": f"Unload {name}", **unload}
    for key, component in made.items():
        entity = f"{object_id(subject.node)}_{key}"
        component |= {"unique_id": entity, "default_entity_id": f"{component['platform']}.{entity.lower()}", "qos": 1}
    return made


def device(subject: Subject, gone: Mapping[str, str]) -> dict[str, JSON]:
    """The payload at `config_topic`. gone: platforms of entities that there were, by key."""
    return {
        "device": {
            "identifiers": [object_id(subject.node)],
            "name": f"edged {subject.node}",
            "manufacturer": "edged",
            "model": "edged",
            "sw_version": __version__,
        },
        "origin": {"name": "edged", "sw_version": __version__},
        "components": {**components(subject), **{key: {"platform": platform} for key, platform in gone.items()}},
    }


def still_gone(before: Mapping[str, str], now: Iterable[str]) -> dict[str, str]:
    """Of what was told before, the platforms of what is not told any more, by key."""
    kept = set(now)
    return {key: platform for key, platform in before.items() if key not in kept}


def answer(body: Mapping[str, JSON], agent: str, at: float) -> dict[str, JSON]:
    """What is kept of a reply: a state that is short enough, and the whole of it as attributes."""
    error = body.get("error") or {}
    text = str(body.get("output") or error.get("message") or body["status"])
    short = text if len(text) <= MAX_STATE else f"{text[:SHORT]}..."
    whole = {"output": body.get("output"), "status": body["status"], "outcome": body.get("outcome")}
    return {"state": short, "agent": agent, **whole, "error": error.get("code"), "rid": body["rid"], "at": at}


def event(body: Mapping[str, JSON], agent: str) -> dict[str, JSON]:
    """What is told of a reply, once."""
    kind = "failed" if body["status"] != "done" else "confirm" if body.get("outcome") == "asked" else "answer"
    told = {"output": body.get("output"), "outcome": body.get("outcome"), "rid": body["rid"], "id": body.get("id")}
    return {"event_type": kind, "agent": agent, **told, "error": (body.get("error") or {}).get("code")}


def _plain(name: str) -> str:
    """A name of a node, an agent or a model in the characters that discovery allows; two names stay two."""
    plain = _STRANGE.sub("_", name)
    return plain if plain == name else f"{plain}_{zlib.crc32(name.encode()):08x}"
