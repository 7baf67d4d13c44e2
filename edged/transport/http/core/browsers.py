"""Browsers, and what their pages may do. Pure.

A page of any site can make its reader's browser send requests to loopback and to the local network, and a name that
its owner lets point there makes the page one of ours (DNS rebinding). So a TCP listener answers under addresses and
known names only, and no page may ask unless its origin is configured. Programs send neither header.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping

from edged.errors import Forbidden

LOCALHOST = "localhost"  # and what lies below it: browsers resolve both to loopback themselves (RFC 6761)
FOREIGN = ("cross-site", "same-site")  # Sec-Fetch-Site of what another page, or another port of ours, began
METHODS = "GET, POST, DELETE"
# What clients send; the first of them carries the key, and nothing else of a browser's does.
HEADERS = (
    "Authorization, X-Api-Key, Content-Type, Accept, Idempotency-Key, Prefer, OpenAI-Beta, OpenAI-Organization,"
    " OpenAI-Project, User-Agent, X-Requested-With, Last-Event-ID, MCP-Protocol-Version, Mcp-Session-Id, Mcp-Method,"
    " Mcp-Name"
)
# What OpenAI's SDKs tell of themselves begins so, and each release may tell more.
SDK_HEADER = re.compile(r"x-stainless-[a-z-]{1,40}")
EXPOSED = "Edged-Ignored, Location, Preference-Applied, Retry-After"
# What Ollama takes without configuration (its envconfig.AllowedOrigins and server.allowedHost): pages that this board
# itself serves, apps that are made of web pages, and names that no public name server has.
OLLAMA_ORIGIN = re.compile(
    r"https?://(?:localhost|127\.0\.0\.1|0\.0\.0\.0)(?::[0-9]{1,5})?"
    r"|(?:app|file|tauri|vscode-webview|vscode-file|chrome-extension|safari-extension|moz-extension|ms-browser-extension)"
    r"://.*"
)
OLLAMA_HOSTS = (".local", ".internal")
REMEMBER_S = 600  # how long a browser may believe a preflight: a reload that takes an origin out counts soon


class Browsers:
    """What is allowed.

    Args:
        hosts: names that a TCP listener answers to, beside addresses and localhost.
        origins: of the pages that may ask.
        as_ollama: those that Ollama takes without configuration count as well.
    """

    def __init__(self, hosts: Collection[str] = (), origins: Collection[str] = (), *, as_ollama: bool = False) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._origins = frozenset(origins)
        self._as_ollama = as_ollama

    def check(self, headers: Mapping[str, str], *, is_tcp: bool) -> None:
        """Raises Forbidden for a page that may not ask, and for a name that is not ours.

        Args:
            is_tcp: no name leads a browser to a Unix socket; a proxy in front of one hands on what it likes.
        """
        origin = headers.get("Origin")
        if origin is not None and not self._may_ask(origin):
            raise Forbidden(f"pages of {origin} may not ask; name it in [http] origins if they are to")
        if origin is None and headers.get("Sec-Fetch-Site") in FOREIGN:
            raise Forbidden("a page of another site may not load anything from here")
        if is_tcp and "Host" in headers and not self._is_ours(headers["Host"]):
            raise Forbidden(f"this is not {headers['Host']!r}; name it in [http] hosts if it is this board's")

    def preflight(self, method: str, headers: Mapping[str, str]) -> dict[str, str] | None:
        """The headers of the answer to a preflight (Fetch, 4.8) of a page that may ask; None: it is none."""
        if method != "OPTIONS" or "Origin" not in headers or "Access-Control-Request-Method" not in headers:
            return None
        wanted = (name.strip().lower() for name in headers.get("Access-Control-Request-Headers", "").split(","))
        sdk = [name for name in wanted if SDK_HEADER.fullmatch(name)]
        return {
            "Access-Control-Allow-Methods": METHODS,
            "Access-Control-Allow-Headers": ", ".join([HEADERS, *sdk]),
            "Access-Control-Max-Age": str(REMEMBER_S),
        }

    def cors_headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """What every response says to the browser of a page that may ask."""
        origin = headers.get("Origin")
        if origin is None or not self._may_ask(origin):
            return {}
        return {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": EXPOSED, "Vary": "Origin"}

    def _may_ask(self, origin: str) -> bool:
        return origin in self._origins or (self._as_ollama and OLLAMA_ORIGIN.fullmatch(origin) is not None)

    def _is_ours(self, host: str) -> bool:
        name = _without_port(host).lower().removesuffix(".")
        if name == LOCALHOST or name.endswith(f".{LOCALHOST}") or name in self._hosts:
            return True
        if self._as_ollama and name.endswith(OLLAMA_HOSTS):
            return True
        try:
            ipaddress.ip_address(name)  # a page cannot come from an address that it does not own
        except ValueError:
            return False
        return True


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
