"""A pull in a process of its own: minutes of downloading and hashing beside the daemon, whose memory goes with it.

    python -m edged.models.updates.fetch

reads the model from stdin, one JSON document a line, and tells what happens on stdout likewise.

The child ends when its stdin does: with the daemon, however that ends. What has arrived is kept.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

import msgspec
from msgspec import Struct

from edged.errors import EdgedError, Internal
from edged.host import systemd
from edged.models import pull
from edged.models.catalog import ModelFile
from edged.models.pull import Progress, PullFailed, Unreachable

MAX_LINE = 1 << 20  # bytes of one report; the longest names every source that failed


class Fetched(Struct, frozen=True):
    """How it ended. sha256: of the model's file, as it lies there. new: it was not here before."""

    sha256: str = ""
    new: bool = False
    error: str | None = None
    retryable: bool = False


class Line(Struct, frozen=True, omit_defaults=True):
    """One line of the child's."""

    progress: Progress | None = None
    end: Fetched | None = None


async def fetch(model: ModelFile, report: Callable[[Progress], None]) -> Fetched:
    """Bring a model here in a child process. Cancelled, it ends the child.

    Raises:
        Unreachable, PullFailed: as `pull.pull`.
        Internal: the child died.
    """
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "edged.models.updates.fetch"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=systemd.child_environment(),
        limit=MAX_LINE,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    end: Fetched | None = None
    try:
        child.stdin.write(msgspec.json.encode(model, enc_hook=str) + b"\n")
        while text := await child.stdout.readline():
            line = msgspec.json.decode(text, type=Line)
            if line.progress is not None:
                report(line.progress)
            end = line.end or end
    finally:
        child.stdin.close()
        if end is None and child.returncode is None:
            child.kill()
        status = await asyncio.shield(child.wait())
    if end is None:
        raise Internal(f"the process that pulls models ended with status {status}")
    if end.error is not None:
        raise (Unreachable if end.retryable else PullFailed)(end.error)
    return end


async def _work(model: ModelFile) -> Fetched:
    def report(progress: Progress) -> None:
        _say(Line(progress=progress))

    try:
        new = await pull.pull(model, progress=report)
        if not new and await pull.verify(model, progress=report):  # what is wrong is gone now
            new = await pull.pull(model, progress=report)
        sha256 = model.sha256 or await pull.sha256(model.path, progress=report)
    except EdgedError as error:
        return Fetched(error=error.message, retryable=error.retryable)
    return Fetched(sha256, new)


async def _child() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=MAX_LINE)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    model = msgspec.json.decode(await reader.readline(), type=ModelFile, dec_hook=lambda kind, value: kind(value))
    working = asyncio.create_task(_work(model))
    parent = asyncio.create_task(reader.read())
    await asyncio.wait([working, parent], return_when=asyncio.FIRST_COMPLETED)
    if not working.done():
        working.cancel()
        await asyncio.wait([working])
        return
    parent.cancel()
    _say(Line(end=working.result()))


def _say(line: Line) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    asyncio.run(_child())
