"""`edged mcp` with nothing after it: the daemon's MCP surface on standard input and output, for programs that start
their servers. Each message goes to /mcp of the HTTP socket as it is; what is said here goes to stderr."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from edged.cli.connection import load_config_if_any
from edged.errors import ConfigError
from edged.types import JSON
from edged.wire import MAX_REQUEST_BYTES, mcp
from edged.wire.mcp import Message, RpcError

DEFAULT_SOCKET = Path("/run/edged/http.sock")
KEY = "EDGED_KEY"  # the variable with the API key, for --url
LAST_S = 5.0  # after the end of the input, for answers that are still to come


def http_socket(given: Path | None, config_file: Path | None) -> Path:
    """The HTTP socket: as given, else that of the configuration, else the service's. ConfigError: there is none."""
    if given is not None:
        return given
    try:
        settings = load_config_if_any(config_file)
    except (ConfigError, OSError):
        if config_file is not None:
            raise
        return DEFAULT_SOCKET  # a configuration that this user may not read
    if settings is None:
        return DEFAULT_SOCKET
    found = next((each for each in settings.http_listeners if isinstance(each, Path)), None)
    if found is None:
        problem = f"has no Unix socket: use --url, and the key in ${KEY}"
        raise ConfigError(settings.files[0], "http.listen", problem)
    return found


async def serve(socket: Path | None, url: str) -> None:
    """Answer what comes on standard input until it ends.

    Args:
        socket: path of the HTTP socket; None: `url` is asked.
        url: as "http://HOST:PORT".
    """
    import aiohttp

    connector = aiohttp.UnixConnector(str(socket)) if socket is not None else aiohttp.TCPConnector()
    headers = {"Accept": "application/json, text/event-stream"}
    if key := os.environ.get(KEY, ""):
        headers["Authorization"] = f"Bearer {key}"
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout) as client:
        bridge = _Bridge(client, f"{url.rstrip('/')}/mcp")
        reader = asyncio.StreamReader(limit=MAX_REQUEST_BYTES)
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        try:
            while line := await _line(reader):
                bridge.take(line)
        finally:
            await bridge.end()


async def _line(reader: asyncio.StreamReader) -> bytes:
    """The next line that is not too long; empty at the end."""
    while True:
        try:
            line = await reader.readline()
        except ValueError:
            print(f"a message of more than {MAX_REQUEST_BYTES} bytes was left out", file=sys.stderr)
            continue
        if line.strip() or not line:
            return line


class _Bridge:
    """Hands messages on, many at once, and writes the answers. A request that is cancelled is left: the daemon is told
    by the connection that ends."""

    def __init__(self, client: Any, url: str) -> None:
        self._client, self._url = client, url
        self._tasks: dict[JSON, asyncio.Task[None]] = {}

    def take(self, line: bytes) -> None:
        """One message."""
        try:
            message = msgspec.json.decode(line, type=Message)
        except (ValueError, RecursionError):
            _write(msgspec.json.encode(mcp.failure(None, RpcError(mcp.PARSE_ERROR, "the line is no JSON-RPC"))))
            return
        if message.method == mcp.CANCELLED:
            if (task := self._tasks.get((message.params or {}).get("requestId"))) is not None:
                task.cancel()
            return
        key = message.id if message.id is not None else object()
        task = asyncio.create_task(self._hand_on(line, message), name="edged.mcp.message")
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._tasks.pop(key, None) if self._tasks.get(key) is done else None)

    async def end(self) -> None:
        """There comes no more: what is asked may still be answered."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks.values(), timeout=LAST_S)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)

    async def _hand_on(self, line: bytes, message: Message) -> None:
        import aiohttp

        headers = {"Content-Type": "application/json", **_headers(message)}
        try:
            async with self._client.post(self._url, data=line, headers=headers) as response:
                body = await response.read()
        except (aiohttp.ClientError, OSError) as error:
            told = RpcError(mcp.SERVER_ERROR, f"no daemon answers: {error}")
            body = msgspec.json.encode(mcp.failure(message.id, told))
        if message.id is not None:
            _write(_with_id(body, message.id))


def _headers(message: Message) -> dict[str, str]:
    """What HTTP repeats of a modern message."""
    params = message.params or {}
    about = params.get(mcp.META)
    version = about.get(mcp.VERSION_OF) if isinstance(about, dict) else None
    if not isinstance(version, str) or message.method is None:
        return {}
    found = {mcp.VERSION: mcp.in_header(version), mcp.METHOD: mcp.in_header(message.method)}
    name = params.get(mcp.NAMED_BY.get(message.method, ""))
    return {**found, mcp.NAME: mcp.in_header(name)} if isinstance(name, str) else found


def _with_id(body: bytes, id: JSON) -> bytes:
    """An answer as one line, also where it could not know the id of what it answers."""
    try:
        answer = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        answer = mcp.failure(id, RpcError(mcp.INTERNAL, "the answer is no JSON"))
    return msgspec.json.encode({**answer, "id": id})


def _write(line: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.buffer.write(line + b"\n")
        sys.stdout.buffer.flush()
