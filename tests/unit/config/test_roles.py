"""[roles] and [access] as they are written."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

import pytest

from edged import config
from edged.config import roles
from edged.errors import ConfigError
from edged.types import Priority

PLAIN = """
[node]
state_dir = "/tmp/state"
runtime_dir = "/tmp/run"
[http]
api_keys_file = "/tmp/keys"
[databases.plant]
path = "/tmp/plant.db"
[models.small]
[agents.house]
model = "small"
[tools.level]
description = "A level."
database = "plant"
sql = "SELECT 1"
"""
ROLES = """
[roles.viewer]
agents = ["house"]
tools = ["level"]
"""
BASE = PLAIN + ROLES


def load(folder: Path, text: str, http: str = "[http]\n", roles: str = ROLES) -> config.Config:
    """The configuration with more in it. http: the beginning of that table."""
    path = folder / "edged.toml"
    path.write_text(PLAIN.replace("[http]\n", http) + roles + text)
    return config.load(str(path))


def test_roles_and_access_are_read_as_the_contract_writes_them(tmp_path: Path) -> None:
    """And what it leaves to edged."""
    text = """
        [roles.operator]
        agents = ["*"]
        tools = ["*"]
        models = ["small"]
        priority = "batch"
        requests_per_minute = 30
        burst = 5
        manage = true
        [access]
        unix_uid = { "1000" = "operator", NAME = "viewer" }
        unix_group = { "50" = "operator" }
        mqtt = { "edged/+/agents/house/request" = "operator" }
        api_key = { "panel" = "viewer" }
        default = "viewer"
    """
    settings = load(tmp_path, text.replace("NAME", f'"{getpass.getuser()}"'))
    operator = settings.roles["operator"]
    assert (operator.priority, operator.burst, operator.manage) == (Priority.BATCH, 5, True)
    assert settings.roles["viewer"].priority is Priority.INTERACTIVE
    assert settings.access is not None
    assert roles.users(settings.access) == {1000: "operator", os.getuid(): "viewer"}
    assert roles.groups(settings.access) == {50: "operator"}


def test_one_of_the_tables_is_enough_to_deny_by_default(tmp_path: Path) -> None:
    """Without both nothing is decided by roles."""
    assert load(tmp_path, "").access == roles.Access()
    path = tmp_path / "open.toml"
    path.write_text(BASE[: BASE.index("[roles")])
    assert config.load(str(path)).access is None
    path.write_text(BASE[: BASE.index("[roles")] + "[access]\n")
    assert config.load(str(path)).access == roles.Access()


MISTAKES = [
    ("roles.viewer.agents", '[roles]\nviewer.agents = ["barn"]', "no agent 'barn'; defined are house"),
    ("roles.r.tools", '[roles.r]\ntools = ["valve"]', "no tool 'valve'; defined are level"),
    ("roles.r.models", '[roles.r]\nmodels = ["large"]', "no model 'large'; defined are small"),
    ("roles.r.priority", '[roles.r]\npriority = "high"', "allowed are interactive, batch"),
    ("roles.r.tool", "[roles.r]\ntool = []", "unknown key"),
    ("roles.r.requests_per_minute", "[roles.r]\nrequests_per_minute = 0", "outside"),
    ("roles.r.burst", "[roles.r]\nrequests_per_minute = 1\nburst = 0", "outside"),
    ("roles.r.burst", "[roles.r]\nburst = 3", "requests_per_minute"),
    ("roles.r.manage", '[roles.r]\nmanage = "yes"', "bool"),
    ("access.default", '[access]\ndefault = "boss"', "no role 'boss'; defined are viewer"),
    ("access.unix_uid.7", '[access]\nunix_uid = { "7" = "boss" }', "no role 'boss'"),
    ("access.unix_uid.nobody-here", '[access]\nunix_uid = { nobody-here = "viewer" }', "there is no user"),
    ("access.unix_uid.-1", '[access]\nunix_uid = { "-1" = "viewer" }', "there is no user"),
    ("access.unix_uid.4294967295", '[access]\nunix_uid = { "4294967295" = "viewer" }', "at most"),
    ("access.unix_uid.root", '[access]\nunix_uid = { "0" = "", root = "viewer" }', "named already"),
    ("access.unix_group.no-such", '[access]\nunix_group = { no-such = "viewer" }', "there is no group"),
    ("access.mqtt.a/#/b", '[access]\nmqtt = { "a/#/b" = "viewer" }', "`#` stands alone"),
    ("access.mqtt.a/b#", '[access]\nmqtt = { "a/b#" = "viewer" }', "`#` stands alone"),
    ("access.mqtt.a/b+", '[access]\nmqtt = { "a/b+" = "viewer" }', "a whole level"),
    ("access.mqtt.", '[access]\nmqtt = { "" = "viewer" }', "1 to"),
    ("access.users", "[access]\nusers = {}", "unknown key"),
]


@pytest.mark.parametrize(("key", "text", "problem"), MISTAKES, ids=[key for key, _, _ in MISTAKES])
def test_mistake_is_named_with_its_key_and_what_is_allowed(tmp_path: Path, key: str, text: str, problem: str) -> None:
    """Whoever wrote it finds it."""
    path = tmp_path / "edged.toml"
    path.write_text(BASE)
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "50.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load(str(path))
    assert caught.value.key == key
    assert problem in caught.value.problem


def test_key_entry_without_a_file_of_keys_is_a_mistake(tmp_path: Path) -> None:
    """Nobody could have that key."""
    path = tmp_path / "edged.toml"
    path.write_text(BASE.replace('api_keys_file = "/tmp/keys"', "") + '[access]\napi_key = { panel = "viewer" }')
    with pytest.raises(ConfigError, match=r"access\.api_key: .*http\.api_keys_file"):
        config.load(str(path))


@pytest.mark.parametrize(
    ("pattern", "topic", "matched"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("a/+", "a/", True),
        ("a/+/c", "a/b/c", True),
        ("a/+/c", "a/b/x/c", False),
        ("a/#", "a/b/c", True),
        ("a/#", "a", True),
        ("a/#", "ab", False),
        ("#", "a/b", True),
        ("+/b", "a/b", True),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("$SYS/#", "$SYS/x", True),
        ("A/b", "a/b", False),
    ],
)
def test_filter_matches_as_mqtt_says(pattern: str, topic: str, matched: bool) -> None:
    """MQTT 5, 4.7."""
    assert roles.matches(pattern, topic) == matched


@pytest.mark.parametrize(
    ("patterns", "topic", "found"),
    [
        (["#", "a/#", "a/+/c", "a/b/c"], "a/b/c", "a/b/c"),
        (["#", "a/#", "a/+/c"], "a/b/c", "a/+/c"),
        (["a/+/c", "a/b/#"], "a/b/c", "a/b/#"),
        (["+/b/c", "a/+/+"], "a/b/c", "a/+/+"),
        (["a/#", "a"], "a", "a"),
        (["b/#"], "a", None),
        ([], "a", None),
    ],
)
def test_most_specific_filter_counts_whatever_the_order(patterns: list[str], topic: str, found: str | None) -> None:
    """Level by level, a name before `+` before `#`."""
    assert roles.most_specific(patterns, topic) == roles.most_specific(patterns[::-1], topic) == found


@pytest.mark.parametrize("listener", ["127.0.0.1:11434", "localhost:11434", "[::1]:11434"])
def test_way_in_without_keys_needs_a_role_that_is_named_for_it(tmp_path: Path, listener: str) -> None:
    """Where there are roles; a default is for those who are known."""
    way = f'[http]\nollama = "{listener}"\n'
    for access in ("", '[access]\ndefault = "viewer"\n'):
        with pytest.raises(ConfigError, match=r"name the role that they get in access\.ollama") as wrong:
            load(tmp_path, access, way)
        assert wrong.value.key == "http.ollama"
    with pytest.raises(ConfigError, match="no role 'guest'"):
        load(tmp_path, '[access]\nollama = "guest"\n', way)
    with pytest.raises(ConfigError, match="it is not configured") as wrong:
        load(tmp_path, '[access]\nollama = "viewer"\n')
    assert wrong.value.key == "access.ollama"
    loaded = load(tmp_path, '[access]\nollama = "viewer"\n', way)
    assert loaded.access is not None
    assert {way: role for way, role in loaded.access.open_ways.items() if role} == {"ollama": "viewer"}
    assert loaded.open_ways == {"ollama": (("http", "ollama"), listener)}
    without_roles = load(tmp_path, "", way, roles="")
    assert (without_roles.access, list(without_roles.open_ways)) == (None, ["ollama"])


def test_way_in_without_keys_is_no_listener_that_wants_them(tmp_path: Path) -> None:
    """The two would be one socket."""
    way = '[http]\nlisten = ["127.0.0.1:11434"]\nollama = "127.0.0.1:11434"\n'
    with pytest.raises(ConfigError, match="twice"):
        load(tmp_path, '[access]\nollama = "viewer"\n', way)
