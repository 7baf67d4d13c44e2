"""What `edged doctor` says of roles."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged import config
from edged.cli.checks import permissions
from edged.daemon.checks.finding import Level

BASE = """
[node]
id = "n1"
state_dir = "/tmp/state"
runtime_dir = "/tmp/run"
[mqtt]
[http]
api_keys_file = "KEYS"
[models.small]
[agents.house]
model = "small"
"""
ROLES = """
[roles.viewer]
agents = ["house"]
[access]
"""


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        ("", []),
        (ROLES + 'default = "viewer"', []),
        (ROLES + 'api_key = { panel = "viewer", lamp = "viewer" }', []),
        (ROLES, ["nobody has role viewer", "2 API keys have no role"]),
        (ROLES + 'api_key = { panel = "viewer", gone = "viewer" }', ["names gone", "1 API keys have no role"]),
        (
            ROLES + 'default = "viewer"\nmqtt = { "edged/n1/agents/hose/request" = "" }',
            ["matches edged/n1/agents/hose"],
        ),
        (ROLES + 'default = "viewer"\nmqtt = { "edged/+/agents/#" = "", "edged/+/requests/+/cancel" = "" }', []),
    ],
)
def test_entries_that_do_nothing_are_warned_of(tmp_path: Path, text: str, warned: list[str]) -> None:
    """And no key is shown."""
    (tmp_path / "keys").write_text("# two\npanel:sk-0123456789abcdef\nlamp:sk-fedcba9876543210\n")
    path = tmp_path / "edged.toml"
    path.write_text(BASE.replace("KEYS", str(tmp_path / "keys")) + text)
    findings = list(permissions.look(config.load(str(path))))
    assert findings[0].level is Level.OK
    said = [finding.message for finding in findings[1:]]
    assert len(said) == len(warned)
    assert all(word in message for word, message in zip(warned, said, strict=True))
    assert not [message for message in said if "sk-" in message]
