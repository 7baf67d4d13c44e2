"""What the service may reach, made from a configuration."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from edged import config
from edged.config import sandbox

SERVED = '[models.a]\nengine = "openai"\nmodel = "m"\n'


def lines(tmp_path: Path, text: str) -> list[str]:
    """Of the drop-in for a configuration that lies where the service's does, comments left out."""
    file = tmp_path / "edged.toml"
    file.write_text(text)
    settings = config.load(str(file))
    made = sandbox.drop_in(replace(settings, files=("/etc/edged/edged.toml",)))
    return [line for line in made.splitlines() if not line.startswith("#")]


def database(path: str, mode: str = "rw", name: str = "plant") -> str:
    """A table of the configuration."""
    return f'[databases.{name}]\npath = "{path}"\nmode = "{mode}"\n'


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", []),
        (database("/var/lib/edged/plant.db"), []),
        (database("/var/lib/plant/plant.db"), ["ReadWritePaths=-/var/lib/plant"]),
        (database("/var/lib/plant/plant.db", "ro"), []),
        (
            database("/srv/a/a.db") + database("/srv/a/b.db", name="b") + database("/srv/a/c/c.db", name="c"),
            ["ReadWritePaths=-/srv/a"],
        ),
        (  # neighbours by name are no parents
            database("/srv/edgedness/a.db") + database("/srv/edged/b.db", name="b"),
            ["ReadWritePaths=-/srv/edged", "ReadWritePaths=-/srv/edgedness"],
        ),
        (database("/home/pi/plant/plant.db"), ["ProtectHome=tmpfs", "BindPaths=-/home/pi/plant"]),
        (database("/home/pi/plant/plant.db", "ro"), ["ProtectHome=tmpfs", "BindReadOnlyPaths=-/home/pi/plant"]),
        (
            database("/home/pi/plant.db") + database("/home/pi/plant.db", "ro", "reader"),
            ["ProtectHome=tmpfs", "BindPaths=-/home/pi"],
        ),
        (database("/tmp/plant/plant.db"), ["BindPaths=-/tmp/plant"]),
        (database("/srv/my plants:100%/p.db"), ['ReadWritePaths=-"/srv/my plants\\:100%%"']),
        ('[node]\nstate_dir = "/data/edged"\n', ["ReadWritePaths=-/data/edged"]),
        ('[node]\nruntime_dir = "/run/other"\n', ["ReadWritePaths=-/run/other"]),
        ('[node]\nmodels_dir = "/srv/models"\n', []),
        ('[node]\nmodels_dir = "/home/pi/models"\n', ["ProtectHome=tmpfs", "BindReadOnlyPaths=-/home/pi/models"]),
        ('[models.a]\nsource = "file:/root/a.gguf"\n', ["ProtectHome=tmpfs", "BindReadOnlyPaths=-/root/a.gguf"]),
        (
            '[mqtt]\nusername = "u"\npassword_file = "/root/secret"\n',
            ["ProtectHome=tmpfs", "BindReadOnlyPaths=-/root/secret"],
        ),
        ('[mqtt]\nusername = "u"\npassword_file = "credential:mqtt-password"\n', []),
        (
            f'{SERVED}api_key_file = "/root/key"\nbase_url = "http+unix://%2Frun%2Fuser%2F7%2Fl.sock/v1"\n',
            ["ProtectHome=tmpfs", "BindReadOnlyPaths=-/root/key", "BindReadOnlyPaths=-/run/user/7"],
        ),
    ],
)
def test_drop_in_opens_what_the_configuration_names_and_no_more(tmp_path: Path, text: str, wanted: list[str]) -> None:
    """Folders of databases that are written, whatever lies in homes; nothing for what the unit has anyway."""
    assert lines(tmp_path, text) == ["[Service]", *wanted]


def test_program_prints_the_drop_in_or_what_is_wrong(tmp_path: Path) -> None:
    """As scripts/install runs it."""
    file = tmp_path / "edged.toml"
    command = [sys.executable, "-m", "edged.config.sandbox", "--config", str(file)]
    file.write_text(database("/var/lib/plant/plant.db"))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ReadWritePaths=-/var/lib/plant\n" in done.stdout
    file.write_text("[node]\ncolour = 1\n")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (78, "")
    assert "node.colour" in done.stderr
