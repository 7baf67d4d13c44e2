"""The units and what is installed with them, as far as it can be judged without running systemd."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edged import config
from edged.daemon import checks

FOLDER = Path(__file__).parents[2] / "systemd"
SERVICE, SOCKET, CONFIGURATION = FOLDER / "edged.service", FOLDER / "edged.socket", FOLDER / "edged.toml"
EXPOSURE_TIMES_TEN = "20"  # systemd-analyze's score from 0 (safe) to 10; 2.0 is "OK"

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed (Debian's package systemd)"
)


@needs_systemd
def test_units_are_accepted_by_systemd() -> None:
    """No unknown key, no value systemd would ignore."""
    command = ["systemd-analyze", "verify", "--recursive-errors=yes", str(SERVICE), str(SOCKET)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@needs_systemd
def test_service_is_hardened() -> None:
    """Its exposure is low."""
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE_TIMES_TEN}", str(SERVICE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-500:]


def test_nothing_in_the_unit_hides_what_tells_of_memory_pressure() -> None:
    """systemd's own signal is on unless it is set; /proc/pressure and /proc/meminfo are hidden by ProcSubset= only."""
    settings = dict(re.findall(r"^(\w+)=(.*)$", SERVICE.read_text(), re.MULTILINE))
    assert "MemoryPressureWatch" not in settings
    assert "ProcSubset" not in settings
    assert not any("pressure" in value for name, value in settings.items() if name.endswith("Paths"))


def test_sockets_of_the_unit_are_those_of_a_configuration_that_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """So each finds its listener; mode and group are the configuration's defaults too."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/edged")
    settings = config.load(str(CONFIGURATION))
    unit = SOCKET.read_text()
    assert [Path(path) for path in re.findall(r"^ListenStream=(.*)$", unit, re.MULTILINE)] == [
        settings.socket_path,
        *settings.http_listeners,
    ]
    assert f"SocketMode={settings.ipc.mode}\n" in unit
    assert f"SocketGroup={settings.ipc.group}\n" in unit


def test_installed_configuration_lacks_its_model_only(tmp_path: Path) -> None:
    """What `edged check` says of it before the model is pulled."""
    path = tmp_path / "edged.toml"
    shutil.copy(CONFIGURATION, path)
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "here.toml").write_text(f'[node]\nid = "n1"\nstate_dir = "{tmp_path}"\n')
    [problem] = asyncio.run(checks.check_all(config.load(str(path))))
    assert "models.small: model 'small' is not installed: edged models pull" in problem


def test_examples_in_the_installed_configuration_are_right_when_they_are_taken_in(tmp_path: Path) -> None:
    """Every commented line is TOML, and together they load."""
    lines = []
    for line in CONFIGURATION.read_text().splitlines():
        setting = re.match(r"# (\[[a-z._]+\]$|[a-z_.]+ = .*)", line)
        lines.append(setting[1] if setting else line)
    text = "\n".join(lines).replace("tools = []", 'tools = ["lamp", "tank_level", "watering_minutes"]')
    path = tmp_path / "edged.toml"
    path.write_text(text)
    settings = config.load(str(path))
    assert settings.node.id == "greenhouse-pi"
    assert list(settings.tools) == ["lamp", "tank_level", "watering_minutes"]
    assert settings.databases["plant"].mode == "ro"
