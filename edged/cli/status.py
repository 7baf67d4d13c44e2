"""`edged status`: the daemon at a glance."""

from __future__ import annotations

from edged.cli.common import AsJson, Socket, daemon
from edged.cli.outcome import print_json
from edged.cli.view import status_lines


def status(as_json: AsJson = False, socket: Socket = None) -> None:
    """What the daemon is doing."""
    with daemon(socket, as_json) as client:
        state = client.call("status")
    if as_json:
        print_json(state)
    else:
        print("\n".join(status_lines(state)))
