"""The parsers that strangers reach first, under inputs that atheris finds by coverage."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUNS = {"requests": 200_000, "events": 300_000, "models": 30_000, "placeholders": 150_000}  # half a minute each
HOW = "atheris is not installed: .venv/bin/python -m pip install 'edged[fuzz]', or -e '.[fuzz]' in a checkout (x86-64)"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason=HOW)
@pytest.mark.parametrize("parser", RUNS)
def test_nothing_but_refusals_comes_out(parser: str, tmp_path: Path) -> None:
    """What was found instead is in the message, with the bytes."""
    runs = os.environ.get("EDGED_TEST_FUZZ_RUNS", str(RUNS[parser]))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "guided.py"), parser, runs, str(tmp_path)],
        capture_output=True,
        env=environment,
        check=False,
    )
    told = (done.stdout + done.stderr).decode(errors="replace")
    found = {path.name: path.read_bytes() for path in tmp_path.glob("*-*") if path.is_file()}
    assert done.returncode == 0, f"{found}\n{told[-4000:]}"
    assert f"stat::number_of_executed_units: {runs}" in told
