"""The example's device: obeys valve commands in the plant's database and lamp commands on the broker, as the firmware
of a greenhouse would. Another program than edged, on purpose: it uses the file at the same time.

    device.py DATABASE BROKER_PORT      runs until it is ended; prints what it does
"""

from __future__ import annotations

import signal
import sqlite3
import sys
import threading
from pathlib import Path

import paho.mqtt.client as mqtt

POLL_S = 0.1  # how soon a valve follows; a real one takes seconds


def lamp(client: mqtt.Client, _: object, message: mqtt.MQTTMessage) -> None:
    """Switch a lamp and say so, as zigbee2mqtt does."""
    base = message.topic.removesuffix("/set")
    print(f"device: {base} {message.payload.decode(errors='replace')}", flush=True)
    client.publish(base, message.payload, retain=True)


def obey_valves(database: sqlite3.Connection) -> None:
    """Do what was commanded since the last look, once each."""
    waiting = database.execute("SELECT id, valve, position FROM valve_commands WHERE done_at IS NULL ORDER BY id")
    for number, valve, position in waiting.fetchall():
        print(f"device: valve {valve} {position}", flush=True)
        with database:
            database.execute("UPDATE valve_commands SET done_at = datetime('now') WHERE id = ?", (number,))


def main() -> None:
    """Make the database where there is none, then obey."""
    path, port = Path(sys.argv[1]), int(sys.argv[2])
    new = not path.exists()
    database = sqlite3.connect(path, timeout=10)
    if new:
        database.executescript((Path(__file__).parent / "plant.sql").read_text())
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "greenhouse-device", protocol=mqtt.MQTTv5)
    client.on_connect = lambda c, *_: c.subscribe("zigbee2mqtt/+/set", qos=1)
    client.on_message = lamp
    client.connect("127.0.0.1", port)
    client.loop_start()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    print("device: ready", flush=True)
    while not stop.wait(POLL_S):
        obey_valves(database)
    client.disconnect()


if __name__ == "__main__":
    main()
