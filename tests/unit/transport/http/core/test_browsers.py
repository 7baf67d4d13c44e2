"""Pages in browsers, and names that lead to loopback."""

from __future__ import annotations

import pytest

from edged.errors import Forbidden
from edged.transport.http.core.browsers import Browsers

BROWSERS = Browsers(["Board.example", "pi", "pi.local"], ["https://panel.example", "http://10.0.0.7:3000"])


@pytest.mark.parametrize(
    ("headers", "tcp", "unix"),
    [
        ({}, True, True),
        ({"Host": "127.0.0.1:8377"}, True, True),
        ({"Host": "[::1]:8377"}, True, True),
        ({"Host": "192.168.1.5"}, True, True),
        ({"Host": "localhost:8377"}, True, True),
        ({"Host": "edged.localhost"}, True, True),
        ({"Host": "LOCALHOST."}, True, True),
        ({"Host": "board.example:80"}, True, True),
        ({"Host": "pi.local"}, True, True),
        ({"Host": "evil.example:8377"}, False, True),
        ({"Host": "localhost.evil.example"}, False, True),
        ({"Host": "127.0.0.1.evil.example"}, False, True),
        ({"Host": "127.0.0.1@evil.example"}, False, True),
        ({"Host": "evillocalhost"}, False, True),
        ({"Host": "2130706433"}, False, True),
        ({"Host": ""}, False, True),
        ({"Host": "127.0.0.1", "Origin": "http://evil.example"}, False, False),
        ({"Host": "127.0.0.1", "Origin": "http://127.0.0.1:8377"}, False, False),
        ({"Host": "127.0.0.1", "Origin": "null"}, False, False),
        ({"Host": "127.0.0.1", "Origin": "https://panel.example"}, True, True),
        ({"Host": "127.0.0.1", "Origin": "http://panel.example"}, False, False),
        ({"Host": "127.0.0.1", "Origin": "https://panel.example.evil.example"}, False, False),
        ({"Host": "127.0.0.1", "Origin": "http://10.0.0.7:3000", "Sec-Fetch-Site": "cross-site"}, True, True),
        ({"Host": "evil.example", "Origin": "https://panel.example"}, False, True),
        ({"Host": "127.0.0.1", "Sec-Fetch-Site": "cross-site"}, False, False),
        ({"Host": "127.0.0.1", "Sec-Fetch-Site": "same-site"}, False, False),
        ({"Host": "127.0.0.1", "Sec-Fetch-Site": "none"}, True, True),
    ],
)
def test_only_known_pages_and_names_may_ask(headers: dict[str, str], tcp: bool, unix: bool) -> None:
    """A Unix socket has no name that could be somebody else's."""
    for is_tcp, allowed in ((True, tcp), (False, unix)):
        if allowed:
            BROWSERS.check(headers, is_tcp=is_tcp)
        else:
            with pytest.raises(Forbidden):
                BROWSERS.check(headers, is_tcp=is_tcp)


def test_preflight_is_answered_for_a_known_page_only() -> None:
    """And every response to it says so; others are told nothing."""
    headers = {"Origin": "https://panel.example", "Access-Control-Request-Method": "POST"}
    allowed = BROWSERS.preflight("OPTIONS", headers)
    assert allowed is not None
    assert "Authorization" in allowed["Access-Control-Allow-Headers"]
    assert BROWSERS.preflight("OPTIONS", {"Origin": "https://panel.example"}) is None
    assert BROWSERS.preflight("POST", headers) is None
    assert BROWSERS.cors_headers(headers)["Access-Control-Allow-Origin"] == "https://panel.example"
    assert BROWSERS.cors_headers({"Origin": "http://evil.example"}) == BROWSERS.cors_headers({}) == {}


AS_OLLAMA = Browsers(["pi"], ["https://panel.example"], as_ollama=True)


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost", True),
        ("https://localhost:3000", True),
        ("http://127.0.0.1:8080", True),
        ("http://0.0.0.0", True),
        ("app://obsidian.md", True),
        ("file://", True),
        ("tauri://localhost", True),
        ("vscode-webview://1a2b", True),
        ("vscode-file://vscode-app", True),
        ("chrome-extension://abcdef", True),
        ("https://panel.example", True),
        ("http://localhost.evil.example", False),
        ("http://localhost:80.evil.example", False),
        ("http://evil.example", False),
        ("http://127.0.0.2", False),
        ("ftp://localhost", False),
        ("null", False),
    ],
)
def test_pages_that_ollama_takes_may_ask_where_one_setting_says_so(origin: str, allowed: bool) -> None:
    """And get the headers by which a browser lets them; without the setting none of them does."""
    headers = {"Host": "localhost", "Origin": origin}
    assert bool(AS_OLLAMA.cors_headers(headers)) == allowed
    if allowed:
        AS_OLLAMA.check(headers, is_tcp=True)
    else:
        with pytest.raises(Forbidden):
            AS_OLLAMA.check(headers, is_tcp=True)
    if origin != "https://panel.example":
        with pytest.raises(Forbidden):
            BROWSERS.check(headers, is_tcp=True)


@pytest.mark.parametrize(
    ("host", "allowed"), [("x.local", True), ("host.docker.internal:11434", True), ("x.com", False)]
)
def test_names_that_ollama_takes_are_ours_where_one_setting_says_so(host: str, allowed: bool) -> None:
    """No public name server has them."""
    if allowed:
        AS_OLLAMA.check({"Host": host}, is_tcp=True)
    for browsers in (BROWSERS, *(() if allowed else (AS_OLLAMA,))):
        with pytest.raises(Forbidden):
            browsers.check({"Host": host}, is_tcp=True)
