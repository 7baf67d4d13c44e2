"""A child of `concurrency`: how late a daemon answers the least of questions, seen from outside.

    python pinger.py SOCKET SECONDS

Prints the milliseconds of each round trip as JSON. A process of its own: threads of the bench would wait for one
another. `tools.list` of a configuration without tools is what its loop answers with the least work.
"""

from __future__ import annotations

import json
import sys
import time

from edged.client import Client

PERIOD_S = 0.02  # between two questions: hundreds in a few seconds, and no load worth the name
TIMEOUT_S = 60.0


def main() -> None:
    """Ask until the time is over."""
    path, seconds = sys.argv[1], float(sys.argv[2])
    taken: list[float] = []
    until = time.monotonic() + seconds
    with Client(path, timeout_s=TIMEOUT_S) as client:
        while time.monotonic() < until:
            began = time.perf_counter()
            client.call("tools.list")
            taken.append((time.perf_counter() - began) * 1000)
            time.sleep(PERIOD_S)
    print(json.dumps(taken))


if __name__ == "__main__":
    main()
