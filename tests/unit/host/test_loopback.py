"""Addresses that are this board, and nothing else."""

from __future__ import annotations

import pytest

from edged.host import loopback
from edged.host.loopback import Server


@pytest.mark.parametrize(
    ("base_url", "server"),
    [
        ("http://127.0.0.1:8080/v1", Server("http://127.0.0.1:8080/v1")),
        ("http://127.9.9.9/v1/", Server("http://127.9.9.9/v1")),
        ("http://localhost:11434/v1", Server("http://localhost:11434/v1")),
        ("http://[::1]:8080/v1", Server("http://[::1]:8080/v1")),
        ("http+unix://%2Frun%2FLlama.sock/v1", Server("http://localhost/v1", "/run/Llama.sock")),
    ],
)
def test_parse_takes_servers_on_this_board(base_url: str, server: Server) -> None:
    """By TCP and by a Unix socket."""
    assert loopback.parse(base_url) == server


@pytest.mark.parametrize(
    "host", ["", "10.0.0.1", "::", "0.0.0.0", "fe80::1", "::1%eth0", "example.com", "localhost.", "2130706433"]
)
def test_is_here_knows_no_other_host(host: str) -> None:
    """Nothing that a name server or a route could lead elsewhere."""
    assert not loopback.is_here(host)
