"""A MessagePack-RPC server with answers a test wrote down: shares no line with the daemon."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Self

import msgpack


class Refuse(Exception):
    """The answer to a call is this error."""

    def __init__(self, code: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.error: dict[str, Any] = {"code": code, "message": message, "retryable": retryable, "retry_after_s": None}


class StandIn:
    """Listens in `folder`; an answer is a value, or an exception Refuse.

    Args:
        silent: methods that are never answered.
        hang_up: methods at which the connection is closed.
    """

    def __init__(
        self,
        folder: Path,
        answers: dict[str, Any],
        *,
        silent: tuple[str, ...] = (),
        hang_up: tuple[str, ...] = (),
    ) -> None:
        self.path = folder / "standin.sock"
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self._answers = answers
        self._silent, self._hang_up = silent, hang_up
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, str(self.path))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        unpacker = msgpack.Unpacker()
        self._writers.add(writer)
        while data := await reader.read(65_536):
            unpacker.feed(data)
            for kind, msgid, method, params in unpacker:
                assert kind == 0
                self.calls.append((method, params[0]))
                if method in self._hang_up:
                    writer.close()
                if method in (*self._silent, *self._hang_up):
                    continue
                answer = self._answers[method]
                error, result = (answer.error, None) if isinstance(answer, Refuse) else (None, answer)
                writer.write(msgpack.packb([1, msgid, error, result]))
        self._writers.discard(writer)
        writer.close()
