"""[wyoming]: who answers, and where it listens. [homeassistant]: what it is told."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from edged import config
from edged.errors import ConfigError

BASE = """
[node]
state_dir = "/tmp/state"
runtime_dir = "/tmp/run"
[models.small]
[agents.house]
model = "small"
"""
GARAGE = '[agents.garage]\nmodel = "small"\n'
VOICE = '[roles.voice]\nagents = ["house"]\n[access]\n'


def load(folder: Path, text: str) -> config.Config:
    """The configuration with more in it."""
    path = folder / "edged.toml"
    path.write_text(BASE + text)
    return config.load(str(path))


def test_wyoming_listens_on_loopback_and_the_only_agent_answers(tmp_path: Path) -> None:
    """The table alone is enough; without it nothing listens."""
    assert load(tmp_path, "").open_ways == {}
    settings = load(tmp_path, "[wyoming]\n")
    assert (settings.wyoming_listener, settings.wyoming_agent) == (("127.0.0.1", 10600), "house")
    assert settings.open_ways == {"wyoming": (("wyoming", "listen"), "127.0.0.1:10600")}
    named = load(tmp_path, f'{GARAGE}[wyoming]\nlisten = "[::1]:1"\nagent = "garage"\n{VOICE}wyoming = "voice"\n')
    assert (named.wyoming_listener, named.wyoming_agent) == (("::1", 1), "garage")


@pytest.mark.parametrize(
    ("text", "key", "problem"),
    [
        ('[wyoming]\nlisten = "0.0.0.0:10600"\n', "wyoming.listen", "on loopback only"),
        ('[wyoming]\nlisten = "board.lan:10600"\n', "wyoming.listen", "on loopback only"),
        ('[wyoming]\nlisten = "127.0.0.1:0"\n', "wyoming.listen", "127.0.0.1:PORT"),
        ('[wyoming]\nlisten = "10600"\n', "wyoming.listen", "127.0.0.1:10600"),
        ('[http]\nollama = "127.0.0.1:9"\n[wyoming]\nlisten = "127.0.0.1:9"\n', "wyoming.listen", "that of ollama"),
        ('[wyoming]\nagent = "garage"\n', "wyoming.agent", "defined are house"),
        (f"{GARAGE}[wyoming]\n", "wyoming.agent", "is required"),
        ('[wyoming]\nwhen_gone = "wait"\n', "wyoming.when_gone", "cancel"),
        (f"[wyoming]\n{VOICE}", "wyoming.listen", "access.wyoming"),
        (f'{VOICE}wyoming = "voice"\n', "access.wyoming", "not configured"),
        (f'[wyoming]\n{VOICE}wyoming = "singer"\n', "access.wyoming", "defined are voice"),
    ],
)
def test_wrong_wyoming_is_named(tmp_path: Path, text: str, key: str, problem: str) -> None:
    """With the key, and what is allowed."""
    with pytest.raises(ConfigError) as error:
        load(tmp_path, text)
    assert error.value.key == key
    assert problem in str(error.value)


MQTT = "[mqtt]\n[homeassistant]\n"
MANAGER = '[roles.operator]\nmanage = true\n[access]\nmqtt = { "edged/n1/control/+" = "operator" }\n'


def test_home_assistant_is_told_nothing_by_default(tmp_path: Path) -> None:
    """And with the table as the contract has it, what it names."""
    assert load(tmp_path, "[mqtt]\n").homeassistant is None
    home = load(tmp_path, f'{MQTT}discovery = true\nanswers = ["house"]\n').homeassistant
    assert home is not None
    assert (home.prefix, home.answers, home.control) == ("homeassistant", ("house",), False)
    text = f"{MQTT}discovery = true\ncontrol = true\n{MANAGER}"
    home = load(tmp_path, text.replace("n1", socket.gethostname())).homeassistant
    assert home is not None
    assert home.control


@pytest.mark.parametrize(
    ("text", "key", "problem"),
    [
        ("[homeassistant]\ndiscovery = true\n", "homeassistant.discovery", "[mqtt] table"),
        (f'{MQTT}answers = ["house"]\n', "homeassistant.answers", "discovery = true"),
        (f'{MQTT}discovery = true\nanswers = ["garage"]\n', "homeassistant.answers", "defined are house"),
        (f'{MQTT}prefix = "ha/#"\n', "homeassistant.prefix", "write a topic"),
        (f"{MQTT}discovery = true\ncontrol = true\n", "homeassistant.control", "role with manage = true"),
        (f"{MQTT}discovery = true\ncontrol = true\n{MANAGER}", "homeassistant.control", "role with manage = true"),
    ],
)
def test_wrong_home_assistant_is_named(tmp_path: Path, text: str, key: str, problem: str) -> None:
    """The last one names another node than this."""
    with pytest.raises(ConfigError) as error:
        load(tmp_path, text)
    assert error.value.key == key
    assert problem in str(error.value)
