"""scripts/install and what it asks other scripts, as far as that needs no root (the rest: test_service_slow)."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
INSTALL = ROOT / "scripts" / "install"


@pytest.mark.parametrize("arguments", [["--bogus"], ["--wheelhouse"], ["--make-wheelhouse"], ["extra"]])
def test_install_with_arguments_that_mean_nothing_shows_how_to_use_it(arguments: list[str]) -> None:
    """And does nothing."""
    done = subprocess.run([str(INSTALL), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 64
    assert "--units-only" in done.stderr
    assert "set -euo" not in done.stderr


def test_runtime_requirements_are_what_edged_needs_and_nothing_of_its_tests() -> None:
    """Each with its version and hashes; llama-cpp-python is built apart."""
    command = [sys.executable, str(ROOT / "scripts" / "runtime_requirements.py")]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = set(re.findall(r"^([a-z0-9-]+)==\S+", text, re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[<>=]", dependency)[0] for dependency in project["dependencies"]}
    tests = {re.split(r"[<>=]", dependency)[0] for dependency in project["optional-dependencies"]["dev"]}
    assert wanted - names == {"llama-cpp-python"}
    assert {"multidict", "yarl", "markupsafe"} <= names, "needed by what is needed"
    assert names & tests <= {"pyyaml"}, "which tokenizers' huggingface-hub wants, too"
    assert len(re.findall(r"^[a-z]", text, re.MULTILINE)) <= len(re.findall(r"--hash=sha256:", text))
    assert "llama" not in "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
