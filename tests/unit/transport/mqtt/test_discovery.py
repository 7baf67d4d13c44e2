"""The payload of MQTT discovery: the words of Home Assistant's schema, and templates that find what they look for."""

from __future__ import annotations

import re
from typing import Any

import jinja2
import pytest

from edged.transport.mqtt import discovery
from edged.transport.mqtt.discovery import Subject

SUBJECT = Subject("n1", ("house", "garage"), ("small", "big.q4"), ("house",), control=True)
# As Home Assistant 2026.10 has them (components/mqtt: schemas, const and the platforms), as far as they are used here.
ANY = {"platform", "name", "unique_id", "default_entity_id", "qos", "availability", "entity_category", "device_class"}
ALLOWED = {
    "binary_sensor": ANY | {"state_topic", "value_template", "payload_on", "payload_off"},
    "sensor": ANY
    | {"state_topic", "value_template", "unit_of_measurement", "state_class", "expire_after", "options"}
    | {"json_attributes_topic"},
    "button": ANY | {"command_topic", "payload_press"},
    "notify": ANY | {"command_topic", "command_template"},
    "event": ANY | {"state_topic", "event_types"},
}
NEEDED = {
    "binary_sensor": {"state_topic"},
    "sensor": {"state_topic"},
    "button": {"command_topic"},
    "notify": {"command_topic"},
    "event": {"state_topic", "event_types"},
}
STATE = {
    "memory": {"private_bytes": 30_000_000, "mapped_bytes": 400_000_000},
    "queue": {"requests": {"received": 2, "waiting_link": 1, "done": 7}},
    "link": {},
    "models": {"small": {"decode_tokens_s": 41.5}, "big.q4": {}},
}


def shown(template: str, document: Any) -> str:
    """A template as Home Assistant renders it."""
    return jinja2.Environment(autoescape=False).from_string(template).render(value_json=document)  # noqa: S701  # no page


def sensor(name: str, document: Any = STATE) -> str:
    """The state of an entity."""
    return shown(discovery.components(SUBJECT)[name]["value_template"], document)


def test_every_component_has_what_its_platform_needs_and_nothing_it_does_not_know() -> None:
    """One key too many drops the whole device."""
    for key, component in discovery.components(SUBJECT).items():
        platform = component["platform"]
        assert set(component) <= ALLOWED[platform], key
        assert set(component) >= NEEDED[platform] | {"name", "unique_id"}, key
        assert component["default_entity_id"].startswith(f"{platform}.")


def test_device_has_an_origin_and_identifiers() -> None:
    """Without a name of the origin the payload is invalid."""
    payload = discovery.device(SUBJECT, {"ask_old": "notify"})
    assert set(payload) == {"device", "origin", "components"}
    assert payload["origin"]["name"] == "edged"
    assert payload["device"]["identifiers"] == ["edged_n1"]
    assert payload["components"]["ask_old"] == {"platform": "notify"}  # which takes the entity back
    unique = [each.get("unique_id") for each in payload["components"].values()]
    assert len(set(unique)) == len(unique)


def test_entities_are_those_of_the_configuration() -> None:
    """Answers only of agents that are named, buttons only where they may be pressed."""
    every = set(discovery.components(SUBJECT))
    assert every == {
        *("online", "memory", "queue", "link", "speed_small", "ask_house", "ask_garage", "answer_house", "event_house"),
        *("reload", "unload_small"),
        *(key for key in every if key.startswith(("speed_big_q4_", "unload_big_q4_"))),
    }
    few = discovery.components(Subject("n1", ("house",), (), (), control=False))
    assert set(few) == {"online", "memory", "queue", "link", "ask_house"}


@pytest.mark.parametrize("node", ["n1", "kitchen.lan", "a_b", "a.b"])
def test_topics_hold_the_characters_that_discovery_allows(node: str) -> None:
    """And two nodes never share one."""
    topic = discovery.config_topic("homeassistant", node)
    assert re.fullmatch("homeassistant/device/[a-zA-Z0-9_-]+/config", topic)
    assert topic != discovery.config_topic("homeassistant", node.replace(".", "-") if "." in node else f"{node}.")


def test_states_are_found_in_the_document_of_the_node() -> None:
    """Also in one of a daemon that has just started."""
    assert sensor("memory") == "430.0"
    assert sensor("queue") == "3"
    assert sensor("queue", {**STATE, "queue": {}}) == "0"
    assert sensor("speed_small") == "41.5"
    assert sensor("speed_small", {**STATE, "models": {"small": {}}}) == "None"  # unknown
    assert sensor("online", {"state": "offline"}) == "offline"


@pytest.mark.parametrize(
    ("states", "link"),
    [((), "none"), (("unknown",), "unknown"), (("down", "up"), "up"), (("down", "unknown"), "down")],
)
def test_link_is_one_of_its_options(states: tuple[str, ...], link: str) -> None:
    """Another state would be refused."""
    document = {**STATE, "link": {f"u{i}": {"state": state} for i, state in enumerate(states)}}
    assert sensor("link", document) == link
    assert link in discovery.components(SUBJECT)["link"]["options"]


REPLY = {"rid": "r", "id": None, "status": "done", "output": "x" * 2000, "outcome": "answered", "error": None}


def test_long_answer_is_a_short_state_and_a_whole_attribute() -> None:
    """Home Assistant shows nothing of a state of 256 characters."""
    kept = discovery.answer(REPLY, "house", 1.0)
    assert kept["state"] == "x" * 252 + "..."
    assert kept["output"] == "x" * 2000
    assert discovery.answer({**REPLY, "output": "x" * 255}, "house", 1.0)["state"] == "x" * 255


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, "answer"),
        ({"outcome": "unable"}, "answer"),
        ({"outcome": "asked"}, "confirm"),
        ({"status": "failed", "output": None, "error": {"code": "tool_failed", "message": "stuck"}}, "failed"),
        ({"status": "cancelled", "output": None}, "failed"),
    ],
)
def test_event_is_of_a_type_that_was_announced(changes: dict[str, Any], kind: str) -> None:
    """Others are refused."""
    event = discovery.event({**REPLY, **changes}, "house")
    assert event["event_type"] == kind
    assert kind in discovery.components(SUBJECT)["event_house"]["event_types"]


def test_failed_answer_shows_why() -> None:
    """Or that it was cancelled."""
    failed = {**REPLY, "status": "failed", "output": None, "error": {"code": "tool_failed", "message": "stuck"}}
    assert discovery.answer(failed, "house", 1.0)["state"] == "stuck"
    assert discovery.answer({**failed, "status": "cancelled", "error": None}, "house", 1.0)["state"] == "cancelled"
