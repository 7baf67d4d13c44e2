"""A listener on the wire; root only."""

from __future__ import annotations

import asyncio
import socket
from typing import Self

ETH_P_ALL = 3  # linux/if_ether.h
BUFFER_BYTES = 32 * 2**20  # of the listening socket: nothing is missed while the test is busy


class Tap:
    """Everything that crosses the loopback interface, to or from one port; root only."""

    def __init__(self, port: int) -> None:
        self._port = port.to_bytes(2, "big")
        self.heard = bytearray()

    def __enter__(self) -> Self:
        self._tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self._tap.bind(("lo", 0))
        self._tap.setblocking(False)
        asyncio.get_running_loop().add_reader(self._tap, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._tap)
        self._tap.close()

    def _hear(self) -> None:
        while True:
            try:
                frame = self._tap.recv(2**18)
            except BlockingIOError:
                return
            if self._port in frame[34:38]:  # source and destination port of TCP over IPv4 over Ethernet
                self.heard += frame
