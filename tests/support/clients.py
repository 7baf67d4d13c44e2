"""Clients of other ecosystems: each in an environment of its own, and what was tried with it, for the README.

A script in `tests/clients` runs with the client's Python and tells of each thing it tries (`tests/clients/steps.py`).
`record` keeps that in `tests/clients.json` and writes the README's table of it. Another client is a script, and a test
that installs its packages, runs it beside a daemon and records.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sys
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tests" / "clients.json"
README = ROOT / "README.md"
BEGIN, END = "<!-- clients -->", "<!-- /clients -->"
INSTALL_S, RUN_S = 1200.0, 300.0
OK = "ok"


def environments() -> Path:
    """Where the clients' environments lie; they outlive the tests."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "edged" / "clients"


async def install(name: str, *requirements: str) -> Path:
    """The Python of an environment that has these packages, each with its version ("litellm==1.110.2").

    Args:
        name: of the environment.
    """
    folder = environments() / name
    python, made = folder / "bin" / "python", folder / "requirements.json"
    if not made.exists() or json.loads(made.read_text()) != list(requirements):
        if not python.exists():
            await asyncio.to_thread(venv.create, folder, with_pip=True)
        quietly = ("-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-compile")
        process = await asyncio.create_subprocess_exec(str(python), *quietly, *requirements)
        async with asyncio.timeout(INSTALL_S):
            assert await process.wait() == 0, f"{name} cannot be installed"
        made.write_text(json.dumps(requirements))
    return python


async def run(python: Path, script: str, environment: Mapping[str, str]) -> dict[str, str]:
    """What a script of `tests/clients` tells: "ok" or what went wrong, by what it tried."""
    return await _told(environment, str(python), str(ROOT / "tests" / "clients" / script))


async def install_node(name: str, script: str, *packages: str) -> Path:
    """A script of `tests/clients`, put beside these packages for Node.js, each with its version ("ollama@0.6.4").

    Args:
        name: of the environment.
    """
    folder = environments() / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / script).write_text((ROOT / "tests" / "clients" / script).read_text())
    process = await asyncio.create_subprocess_exec("npm", "install", "--silent", *packages, cwd=folder)
    async with asyncio.timeout(INSTALL_S):
        assert await process.wait() == 0, f"{name} cannot be installed"
    return folder / script


async def run_node(script: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """What a script that `install_node` put there tells; as `run`."""
    return await _told(environment, "node", str(script))


async def _told(environment: Mapping[str, str], *command: str) -> dict[str, str]:
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, **environment}, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(RUN_S):
        told, _ = await process.communicate()
    lines = told.decode().splitlines()
    assert process.returncode == 0, f"{command[-1]} ended with {process.returncode}"
    return dict(json.loads(line[len(MARK) :]) for line in lines if line.startswith(MARK))


MARK = "tried: "  # of the lines that tell what was tried: clients print, too


def record(client: str, version: str, tried: Mapping[str, str]) -> None:
    """Keep what was tried with a client, in place of what was before, and write the README's table anew."""
    environments().mkdir(parents=True, exist_ok=True)
    with (environments() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        known[client] = {"version": version, "tried": dict(tried)}
        RESULTS.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")
        before, _, rest = README.read_text().partition(BEGIN)
        README.write_text(f"{before}{BEGIN}\n{table()}{END}{rest.partition(END)[2]}")


def table() -> str:
    """What is known, as the README shows it."""
    rows = ["| client | version | what was tried | result |", "|---|---|---|---|"]
    for client, about in json.loads(RESULTS.read_text()).items():
        tried = about["tried"]
        failed = [f"{what}: {result}" for what, result in tried.items() if result != OK]
        rows.append(f"| {client} | {about['version']} | {'; '.join(tried)} | {'; '.join(failed) or OK} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table())
