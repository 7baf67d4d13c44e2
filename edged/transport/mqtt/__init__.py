"""MQTT: requests in, replies out, publishes of tools.

The path of a message: `client` (paho on the event loop) -> `transport` (owner task) -> `intake` (hands on, refuses,
acknowledges in receive order). The way out: `sender` -> `inflight` (bounded by the broker) -> `client`.
`packets`, `messages`, `topics`, `pacing` and `settings` hold values and decisions, no I/O.
"""

from edged.config import Config, secret
from edged.transport.mqtt.pacing import Backoff
from edged.transport.mqtt.settings import Endpoint, Settings, endpoint
from edged.transport.mqtt.transport import MqttTransport

__all__ = ["Backoff", "Endpoint", "MqttTransport", "Settings", "endpoint", "make"]


def make(settings: Config) -> MqttTransport | None:
    """Of a configuration; None where it names no broker. ConfigError where the password cannot be read."""
    mqtt = settings.mqtt
    if mqtt is None:
        return None
    return MqttTransport(
        Settings(
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
    )
