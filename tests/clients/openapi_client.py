"""Judges of OpenAPI documents: openapi-spec-validator, and schemathesis, which sends whatever the document allows."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from openapi_spec_validator import validate
from steps import KEY, URL, tried

PATH = f"{URL}/openapi.json"
AUTHORIZATION = f"Bearer {KEY}"


def valid() -> bool:
    request = urllib.request.Request(PATH, headers={"Authorization": AUTHORIZATION})  # noqa: S310
    with urllib.request.urlopen(request) as response:  # noqa: S310  # of the test's own daemon
        validate(json.load(response))
    return True


def no_500() -> bool:
    program = Path(sys.executable).parent / "schemathesis"
    options = ["--header", f"Authorization: {AUTHORIZATION}", "--checks", "not_a_server_error", "--max-examples", "50"]
    quiet = ["--no-color", "--generation-database", "none", "--seed", "1"]
    with tempfile.TemporaryDirectory() as folder:  # it keeps a cache where it runs
        command = [str(program), "run", PATH, *options, *quiet]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        raise AssertionError(done.stdout[-2000:] + done.stderr[-500:])
    return True


async def main() -> None:
    """Both."""
    await tried("openapi.json is valid", valid)
    await tried("whatever the document allows: no 500", no_500)


asyncio.run(main())
