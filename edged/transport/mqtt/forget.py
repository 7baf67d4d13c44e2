"""Empties retained topics, for the command line: without a daemon, on a connection of its own. Blocks."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from edged.transport.mqtt import tls
from edged.transport.mqtt.settings import Settings, endpoint

WITHIN_S = 15.0  # DNS, TLS and the broker's answers; a broker in the same house needs a fraction of a second


def forget(settings: Settings, topics: Iterable[str]) -> None:
    """Have the broker keep nothing on these topics any more. Returns once it has confirmed that.

    Raises:
        OSError: the broker cannot be reached, lets us not in, or did not confirm; says what it was.
    """
    where, connected = endpoint(settings.url), threading.Event()
    refused: list[str] = []

    def on_connect(_client: Any, _data: Any, _flags: Any, code: Any, _properties: Any) -> None:
        refused.extend([str(code)] if code.is_failure else [])
        connected.set()

    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion(settings.version))
    client.on_connect = on_connect
    if settings.username is not None:
        client.username_pw_set(settings.username, settings.password)
    if where.tls:
        context = tls.make_context(settings)
        tls.load_certificate(context, settings)
        client.tls_set_context(context)
    client.connect(where.host, where.port)
    client.loop_start()
    try:
        if not connected.wait(WITHIN_S) or refused:
            raise OSError(f"{where} does not let us in: {', '.join(refused) or f'no answer within {WITHIN_S:g} s'}")
        sent = [client.publish(topic, b"", qos=1, retain=True) for topic in topics]
        for each in sent:
            each.wait_for_publish(WITHIN_S)
            if not each.is_published():
                raise OSError(f"{where} did not confirm within {WITHIN_S:g} s")
    finally:
        with contextlib.suppress(OSError):
            client.disconnect()
        client.loop_stop()
