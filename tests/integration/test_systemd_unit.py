"""The unit file, as far as it can be judged without running systemd."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "systemd" / "edged.service"
EXPOSURE_TIMES_TEN = "20"  # systemd-analyze's score from 0 (safe) to 10; 2.0 is "OK"

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed (Debian's package systemd)"
)


def test_unit_is_accepted_by_systemd() -> None:
    """No unknown key, no value systemd would ignore."""
    command = ["systemd-analyze", "verify", "--recursive-errors=yes", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_unit_is_hardened() -> None:
    """Its exposure is low."""
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE_TIMES_TEN}", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-500:]
