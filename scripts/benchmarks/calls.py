"""JSON over HTTP, on TCP or a Unix socket, the connection kept: the same client for edged and its peers."""

from __future__ import annotations

import http.client
import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

HEADERS = {"Content-Type": "application/json"}

T = TypeVar("T")


class CallError(Exception):
    """A server answered with something else than 200."""


class Connection:
    """One connection; not for several threads at once. Opened again where the server closed it meanwhile: llama.cpp's
    does after five quiet seconds and after a stream.

    Args:
        connect: makes one.
    """

    def __init__(self, connect: Callable[[], http.client.HTTPConnection]) -> None:
        self._connect = connect
        self._connection = connect()

    @classmethod
    def tcp(cls, port: int, *, timeout_s: float) -> Connection:
        """To a port on this machine. http.client sets TCP_NODELAY."""
        return cls(lambda: http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s))

    @classmethod
    def unix(cls, path: Path, *, timeout_s: float) -> Connection:
        """To a Unix socket."""

        def connect() -> http.client.HTTPConnection:
            connection = http.client.HTTPConnection("localhost", timeout=timeout_s)
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(timeout_s)
            connection.sock.connect(str(path))
            return connection

        return cls(connect)

    def get(self, path: str) -> tuple[int, bytes]:
        """(status, body)."""
        response = self._sent("GET", path, None)
        return response.status, response.read()

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer's JSON; CallError."""
        response = self._sent("POST", path, json.dumps(body).encode())
        said = response.read()
        if response.status != 200:
            raise CallError(f"{path}: {response.status} {said.decode(errors='replace')[:500]}")
        answer: dict[str, Any] = json.loads(said)
        return answer

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[tuple[float, dict[str, Any]]]:
        """(when it came, its JSON) of each server-sent event, to the end; CallError. Seconds of time.perf_counter."""
        response = self._sent("POST", path, json.dumps(body).encode())
        if response.status != 200:
            raise CallError(f"{path}: {response.status} {response.read().decode(errors='replace')[:500]}")
        while line := response.readline():
            came = time.perf_counter()
            data = line.removeprefix(b"data:").strip()
            if line.startswith(b"data:") and data != b"[DONE]":
                yield came, json.loads(data)

    def _sent(self, method: str, path: str, body: bytes | None) -> http.client.HTTPResponse:
        used = self._connection.sock is not None
        try:
            if used and select.select([self._connection.sock], [], [], 0)[0]:
                raise ConnectionResetError  # nothing was asked, so what there is to read is its end
            return self._once(method, path, body)
        except (ConnectionError, http.client.RemoteDisconnected):
            if not used:
                raise
            self.drop()
            return self._once(method, path, body)

    def _once(self, method: str, path: str, body: bytes | None) -> http.client.HTTPResponse:
        self._connection.request(method, path, body, HEADERS)
        return self._connection.getresponse()

    def drop(self) -> None:
        """Go away in the middle of an answer; the next request opens a connection of its own."""
        self._connection.close()
        self._connection = self._connect()

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


def at_once(works: Sequence[Callable[[], T]]) -> list[T]:
    """All of them in threads, together; what each gave, as they ended. Raises what the first one that failed did."""
    done: list[T] = []
    errors: list[BaseException] = []

    def run(work: Callable[[], T]) -> None:
        try:
            done.append(work())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return done
