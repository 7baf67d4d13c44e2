"""MQTT: requests in, replies out, publishes of tools.

The path of a message: `client` (paho on the event loop) -> `transport` (owner task) -> `intake` (hands on, refuses,
acknowledges through `acks`). The way out: `transport` -> `flights` (bounded by the broker) -> `client`.
`packets`, `messages`, `topics`, `pacing` and `settings` hold values and decisions, no I/O.
"""

from edged.transport.mqtt.pacing import Backoff
from edged.transport.mqtt.settings import Endpoint, Settings, endpoint
from edged.transport.mqtt.transport import MqttTransport

__all__ = ["Backoff", "Endpoint", "MqttTransport", "Settings", "endpoint"]
