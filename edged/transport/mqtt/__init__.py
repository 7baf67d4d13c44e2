"""MQTT: requests in, replies out, publishes of tools.

The path of a message: `client` (paho on the event loop) -> `transport` (owner task) -> `intake` (hands on, refuses,
acknowledges in receive order). The way out: `sender` -> `inflight` (bounded by the broker) -> `client`.
`packets`, `messages`, `topics`, `pacing` and `settings` hold values and decisions, no I/O.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from edged.config import Config, secret
from edged.transport.mqtt.pacing import Backoff
from edged.transport.mqtt.settings import Endpoint, Settings, endpoint
from edged.transport.mqtt.transport import MqttTransport

if TYPE_CHECKING:
    from edged.transport.mqtt.homeassistant import HomeAssistant, Send

__all__ = ["Backoff", "Endpoint", "MqttTransport", "Settings", "broker", "endpoint", "make"]


def make(settings: Config) -> MqttTransport | None:
    """Of a configuration; None where it names no broker. ConfigError where the password cannot be read."""
    if settings.mqtt is None:
        return None
    return MqttTransport(broker(settings), home=_home(settings))


def broker(settings: Config) -> Settings:
    """The broker of a configuration that names one. ConfigError where the password cannot be read."""
    mqtt = settings.mqtt
    assert mqtt is not None
    return Settings(
        url=mqtt.url,
        node_id=settings.node.id,
        agents=tuple(settings.agents),
        version=mqtt.version,
        ca_file=mqtt.ca_file,
        cert_file=mqtt.cert_file,
        key_file=mqtt.key_file,
        username=mqtt.username,
        password=secret(mqtt.password_file) if mqtt.password_file else None,
        default_expiry_s=mqtt.default_expiry_s,
    )


def _home(settings: Config) -> Callable[[Send], HomeAssistant] | None:
    """Makes what tells Home Assistant of this node; None, and nothing is imported, where nobody wants that."""
    home = settings.homeassistant
    if home is None or not home.discovery:
        return None
    from edged.transport.mqtt.discovery import Subject
    from edged.transport.mqtt.homeassistant import HomeAssistant

    subject = Subject(settings.node.id, tuple(settings.agents), _models(settings), home.answers, home.control)
    return functools.partial(HomeAssistant, subject, home.prefix, settings.state_dir)


def _models(settings: Config) -> tuple[str, ...]:
    """Those that edged runs, of which it knows the speed and which it can unload."""
    return tuple(name for name, model in settings.models.items() if not model.is_served)
