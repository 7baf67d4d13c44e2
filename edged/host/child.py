"""A child process that does one thing: given something, it ends and has said something."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from edged.host import systemd


class Ended(NamedTuple):
    """status: of the process, negative where a signal ended it. out, errors: what it wrote."""

    status: int
    out: bytes
    errors: bytes


async def run(*command: str, given: bytes | None = None, within_s: float | None = None) -> Ended:
    """Run a command to its end. Cancelled, or out of time, it is killed, and gone when this returns.

    Args:
        given: what it reads; None: nothing.
        within_s: seconds that it may take; None: any number.

    Raises:
        OSError: there is no memory for another process, or there are no descriptors.
        TimeoutError: it took longer.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL if given is None else asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=systemd.child_environment(),
    )
    try:
        async with asyncio.timeout(within_s):
            out, errors = await process.communicate(given)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Ended(process.returncode, out, errors)
