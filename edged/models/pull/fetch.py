"""One URL into one file, over HTTP, going on where an earlier attempt ended."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

from msgspec import Struct

from edged.models.pull.disk import CHUNK, Sink, ensure_room, in_thread
from edged.models.pull.errors import SourceFailed

if TYPE_CHECKING:
    import threading

    import aiohttp

HUB = "https://huggingface.co"  # the hub's documented default of HF_ENDPOINT
RETRYABLE_STATUS = {408, 425, 429, 500, 502, 503, 504}
CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
PARTIAL, RANGE_NOT_SATISFIABLE = 206, 416


class Patience(Struct, frozen=True):
    """How long a source may keep us waiting, in seconds, before the next one is tried.

    connect_s: a board without a way to the hub gets to the next source quickly; stall_s: without a single byte.
    """

    connect_s: float = 10.0
    stall_s: float = 30.0


class Target(Struct, frozen=True):
    """Where the bytes come from. `headers` go to that host only, never along a redirect to another one."""

    url: str
    headers: dict[str, str] = {}


def hub_target(path: str, revision: str) -> Target:
    """The hub's resolve URL of `owner/repo/path`, with the user's token where HF_TOKEN holds one."""
    owner, repo, file = path.split("/", 2)
    endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    token = os.environ.get("HF_TOKEN", "").strip()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return Target(f"{endpoint}/{owner}/{repo}/resolve/{quote(revision, safe='')}/{quote(file)}", headers)


@asynccontextmanager
async def session(patience: Patience) -> AsyncIterator[aiohttp.ClientSession]:
    """A client that honours the proxy variables and sends nothing but what it is told."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(
        total=None,  # a large model over a slow link takes hours
        connect=patience.connect_s,
        sock_connect=patience.connect_s,
        sock_read=patience.stall_s,
    )
    async with aiohttp.ClientSession(
        timeout=timeout,
        trust_env=True,
        auto_decompress=False,  # the hash is that of the bytes as they are stored
        read_bufsize=CHUNK,
        headers={"Accept-Encoding": "identity", "User-Agent": "edged"},
    ) as client:
        yield client


async def download(
    client: aiohttp.ClientSession,
    target: Target,
    sink: Sink,
    *,
    size: int | None,
    on_bytes: Callable[[int], None],
) -> None:
    """Appends to `sink` what it lacks of the target; `size` is the expected total, None where it is not known.

    A server that does not do ranges makes it start over. `on_bytes` gets the size of the file so far.

    Raises:
        SourceFailed: what arrived stays in the sink.
        PullFailed: the disk has no room for it.
    """
    import aiohttp

    try:
        if size is not None and sink.size > size:
            sink.restart()
        if size is not None and sink.size == size:
            return  # complete before: a range of nothing would be an error
        if not await _attempt(client, target, sink, size, on_bytes):
            sink.restart()
            if not await _attempt(client, target, sink, size, on_bytes):
                raise SourceFailed("the server refuses the range it was asked for, and the whole")
    except TimeoutError as error:
        raise SourceFailed(_why(error) or "timed out", retryable=True) from error
    except (aiohttp.ClientError, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, (aiohttp.ClientError, ConnectionError)):
            raise  # the disk, not the link
        raise SourceFailed(_why(error), retryable=True) from error
    except ValueError as error:  # an URL that is none, from a registry or a redirect
        raise SourceFailed(_why(error)) from error


async def _attempt(
    client: aiohttp.ClientSession, target: Target, sink: Sink, size: int | None, on_bytes: Callable[[int], None]
) -> bool:
    """One request; False when what is in the sink does not fit the server's file and must go first."""
    headers = dict(target.headers)
    if sink.size:
        headers["Range"] = f"bytes={sink.size}-"
    async with client.get(target.url, headers=headers) as response:
        if target.url.startswith("https:") and response.url.scheme != "https":
            raise SourceFailed(f"redirected from https to {response.url.scheme}")
        if response.status == RANGE_NOT_SATISFIABLE and sink.size:
            return False
        if response.status >= 400:
            raise SourceFailed(
                f"HTTP {response.status} {response.reason}", retryable=response.status in RETRYABLE_STATUS
            )
        if response.status == PARTIAL and not _continues(response, sink.size):
            return False
        _check_size(response, sink.size if response.status == PARTIAL else 0, size)
        if response.status != PARTIAL:
            sink.restart()
        await _receive(response, sink, size, on_bytes)
        return True


def _continues(response: aiohttp.ClientResponse, offset: int) -> bool:
    match = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    return match is not None and int(match[1]) == offset


def _check_size(response: aiohttp.ClientResponse, offset: int, size: int | None) -> None:
    """Refuses another file, and a portal's page, before anything that was kept is given up for it."""
    coming = response.content_length
    if coming is not None and size is not None and offset + coming != size:
        raise SourceFailed(f"has {offset + coming} bytes, expected {size}")


async def _receive(
    response: aiohttp.ClientResponse, sink: Sink, size: int | None, on_bytes: Callable[[int], None]
) -> None:
    ensure_room(sink.path.parent, response.content_length or 0, sink.path.name)
    async for chunk in response.content.iter_chunked(CHUNK):
        if size is not None and sink.size + len(chunk) > size:
            raise SourceFailed(f"has more than the expected {size} bytes")
        await in_thread(partial(_write, sink, chunk))
        on_bytes(sink.size)
    if size is not None and sink.size != size:
        raise SourceFailed(f"ended after {sink.size} of {size} bytes", retryable=True)


def _write(sink: Sink, chunk: bytes, stop: threading.Event) -> None:
    """One chunk, for a thread; too short to look at `stop`."""
    sink.write(chunk)


def _why(error: BaseException) -> str:
    """The error's own words; some of the client's have none."""
    return str(error).strip() or type(error).__name__
