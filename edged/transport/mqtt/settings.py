"""The configuration of the MQTT transport: values only, checked where they are filled in."""

from __future__ import annotations

from urllib.parse import urlsplit

from msgspec import Struct

PORTS = {"mqtt": 1883, "mqtts": 8883}  # as registered with IANA for plain MQTT and MQTT over TLS


class Endpoint(Struct, frozen=True):
    """Where the broker listens."""

    host: str
    port: int
    tls: bool

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Settings(Struct, frozen=True, kw_only=True):
    """The broker, who we are there and what we listen to.

    url: mqtt://host[:port] or mqtts://host[:port]; no user or password in it.
    version: 5, or 4 for MQTT 3.1.1; 5 falls back to 3.1.1 where the broker refuses it.
    ca_file: the authorities to trust instead of the system's; cert_file, key_file: our own certificate (PEM).
    password: the secret itself, already read.
    node_id: one topic level; makes the client id and all topics.
    agents: every agent that may be asked over MQTT.
    default_expiry_s: bound of a request's time where its publisher set no Message Expiry, in seconds.
    """

    url: str
    node_id: str
    agents: tuple[str, ...]
    version: int = 5
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    username: str | None = None
    password: str | None = None
    default_expiry_s: float = 120.0


def endpoint(url: str) -> Endpoint:
    """Host, port and encryption of a broker's URL.

    Raises:
        ValueError: says what is wrong with the URL and what is allowed.
    """
    parts = urlsplit(url)
    if parts.scheme not in PORTS:
        raise ValueError(f"{url!r}: a broker's url starts with mqtt:// or mqtts://")
    if "@" in parts.netloc:
        # The url itself is not repeated here: a password in it would reach the log.
        raise ValueError("a broker's url carries no user or password: use username and password_file")
    if not parts.hostname:
        raise ValueError(f"{url!r}: the host is missing")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"{url!r}: nothing may follow host and port")
    port = parts.port if parts.port is not None else PORTS[parts.scheme]  # .port raises ValueError out of range
    return Endpoint(parts.hostname, port, parts.scheme == "mqtts")
