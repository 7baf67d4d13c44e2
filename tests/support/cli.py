"""The command line as a child process: what it printed, and how it ended."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.daemon import ROOT

LIMIT_S = 30.0  # for one command: it loads typer and rich


class Ended(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """The one document it printed."""
        return json.loads(self.out)


def environment(config: Path | None = None) -> dict[str, str]:
    """No configuration of this machine is seen, and nothing is coloured."""
    made = {**os.environ, "EDGED_CONFIG": str(config or "/nowhere/edged.toml"), "TERM": "dumb", "NO_COLOR": "1"}
    for name in ("EDGED_SOCKET", "EDGED_MODELS_DIR"):
        made.pop(name, None)
    return made


async def edged(
    *arguments: str,
    config: Path | None = None,
    program: str | None = None,
    stdin: bytes | None = None,
    variables: dict[str, str] | None = None,
    traceback: bool = False,
) -> Ended:
    """Run a command.

    Args:
        config: what $EDGED_CONFIG names.
        variables: more of the environment.
        program: Python that runs instead of `edged`.
        stdin: what it reads; None: nothing.
        traceback: whether it may show one, of a user's module.
    """
    start = ["-c", program] if program else ["-m", "edged"]
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, *start, *arguments),
        env={**environment(config), **(variables or {})},
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(child.communicate(stdin), LIMIT_S)
    assert child.returncode is not None
    assert traceback or b"Traceback" not in err, err.decode()
    return Ended(child.returncode, out.decode(), err.decode())
