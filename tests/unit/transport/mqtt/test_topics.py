"""Topic names, and what may be published to."""

from __future__ import annotations

import pytest

from edged.transport.mqtt.settings import Endpoint, endpoint
from edged.transport.mqtt.topics import Topics, is_text, publish_problem, reply_problem


@pytest.mark.parametrize(
    ("topic", "agent", "target"),
    [
        ("edged/n1/agents/house/request", "house", None),
        ("edged/n1/agents//request", "", None),
        ("edged/n1/agents/house/reply", None, None),
        ("edged/n1/agents/a/b/request", None, None),
        ("edged/n2/agents/house/request", None, None),
        ("edged/n1/requests/r-1/cancel", None, "r-1"),
        ("edged/n1/requests/cancel", None, None),
        ("", None, None),
    ],
)
def test_names_are_read_from_topics(topic: str, agent: str | None, target: str | None) -> None:
    """Of this node only."""
    assert Topics("n1").agent_of(topic) == agent
    assert Topics("n1").target_of(topic) == target


@pytest.mark.parametrize(
    "topic",
    [
        *("", "a/#", "+/a", "a\x00", "a\x1f", "a\x7f", "a\x9f", "a\ufffe", "a\ufdd0", "a\U0001ffff", "a\ud800"),
        *("a/" * 100, "\u00e4" * 32_765),
    ],
    ids=lambda topic: ascii(topic[:9]),
)
def test_topic_that_brokers_end_connections_for_is_a_problem(topic: str) -> None:
    """Wildcards, characters, levels, length."""
    assert publish_problem(topic) is not None
    assert reply_problem(topic) is not None


@pytest.mark.parametrize(
    "topic", ["a", "/", "app/r\u00e9ponse/\U0001f600", "a b", "\ufeffa", "a/" * 99], ids=lambda topic: ascii(topic[:9])
)
def test_odd_topic_that_mqtt_allows_is_none(topic: str) -> None:
    """Nothing is refused for its looks."""
    assert publish_problem(topic) is None
    assert reply_problem(topic) is None


@pytest.mark.parametrize("topic", ["edged/n1/agents/house/request", "edged/", "edged/fleet/x", "$SYS/x", "$share/g/x"])
def test_reply_topic_that_belongs_to_others_is_a_problem(topic: str) -> None:
    """Ours and the broker's."""
    assert reply_problem(topic) is not None


def test_text_of_a_property_may_hold_wildcards() -> None:
    """They mean something in topics only."""
    assert is_text("50 % + #1")
    assert not is_text("bell\x07")


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("mqtt://broker", Endpoint("broker", 1883, tls=False)),
        ("mqtts://broker", Endpoint("broker", 8883, tls=True)),
        ("mqtts://[::1]:99/", Endpoint("::1", 99, tls=True)),
    ],
)
def test_endpoint_of_a_url(url: str, found: Endpoint) -> None:
    """Ports as registered."""
    assert endpoint(url) == found


@pytest.mark.parametrize(
    "url", ["broker:1883", "http://broker", "mqtt://", "mqtt://b/x", "mqtt://b?x", "mqtt://u:p@b", "mqtt://b:99999"]
)
def test_url_that_is_no_brokers_is_refused(url: str) -> None:
    """With a reason, and no password in it."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the words differ
        endpoint(url)
    assert ":p@" not in str(caught.value)
