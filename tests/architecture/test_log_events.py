"""Names of log lines are promised: each room's README lists its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

EDGED = Path(__file__).parents[2] / "edged"
NAMED = re.compile(r'"event": "([a-z_]+)"')
ROOMS = {
    "daemon": ["daemon/*.py", "host/systemd.py", "host/log.py"],
    "transport": ["transport/*.py", "transport/mqtt/*.py", "transport/unix/*.py", "transport/wyoming/*.py"],
}
AN_EXAMPLE = {"model_loaded"}  # in log.py, for readers


@pytest.mark.parametrize("room", ROOMS)
def test_every_named_line_is_listed_and_every_listed_one_is_there(room: str) -> None:
    """Both ways: what somebody looks for by its name must not go away with a change of the text."""
    files = [path for pattern in ROOMS[room] for path in sorted(EDGED.glob(pattern))]
    used = {name for path in files for name in NAMED.findall(path.read_text())} - AN_EXAMPLE
    listed = (EDGED / room / "README.md").read_text().rpartition("## Log events")[2]
    assert used == set(re.findall(r"`([a-z_]+)`", listed))
