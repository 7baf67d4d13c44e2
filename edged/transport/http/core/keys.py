"""API keys of the TCP listeners: a file of lines "NAME:KEY", of which NAME is who the client is."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping

from edged import config
from edged.errors import ConfigError

MIN_CHARS = 16  # 64 bits where a key is random hex digits: beyond guessing over a network


class Keys:
    """The keys, as digests by name: the text of a key is not kept."""

    def __init__(self, digests: Mapping[str, bytes]) -> None:
        self._digests = dict(digests)

    def name_of(self, headers: Mapping[str, str], in_path: str | None = None) -> str | None:
        """The client whose key a request shows: as `Authorization: Bearer KEY`, as the password of `Basic`, as
        `X-Api-Key`, or in its path; None: no valid one."""
        shown = (self._known(key) for key in (*_shown(headers), *([in_path] if in_path else ())))
        return next((name for name in shown if name is not None), None)

    def _known(self, key: str) -> str | None:
        """The name of a key. It takes as long for a wrong key as for any right one."""
        digest, found = _digest(key), None
        for name, known in self._digests.items():
            if hmac.compare_digest(known, digest):
                found = name
        return found


def load(reference: str) -> Keys:
    """The keys of a file, or of a credential.

    Raises:
        ConfigError: it cannot be read, or names the line that is wrong; never what is in it.
    """
    digests: dict[str, bytes] = {}
    lines: dict[str | bytes, int] = {}
    for number, line in enumerate(config.secret(reference).splitlines(), 1):
        line = line.strip()
        if line and not line.startswith("#"):
            name, key = _pair(reference, number, line)
            digests[name] = _digest(key)
            for value, part in ((name, "name"), (digests[name], "key")):
                if (before := lines.setdefault(value, number)) != number:
                    raise ConfigError(reference, "", f"the {part} is that of line {before} too", line=number)
    if not digests:
        raise ConfigError(reference, "", 'holds no key, so nobody could connect; write lines "NAME:KEY"')
    return Keys(digests)


def _pair(reference: str, number: int, line: str) -> tuple[str, str]:
    """Name and key of a line. An error does not quote it: a name may be a key in the wrong place."""
    name, colon, key = line.partition(":")
    name, key = name.strip(), key.strip()
    if not colon or not config.NAME.fullmatch(name):
        problem = 'write "NAME:KEY"; a name has 1 to 64 letters, digits, `_`, `-` or `.`, no dash in front'
    elif len(key) < MIN_CHARS:
        problem = f"the key has {len(key)} characters; it needs {MIN_CHARS} or more, chosen by chance"
    elif not key.isascii() or not key.isprintable() or " " in key:
        problem = "the key has characters that a header cannot carry; use ASCII without spaces"
    else:
        return name, key
    raise ConfigError(reference, "", problem, line=number)


def _shown(headers: Mapping[str, str]) -> list[str]:
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    match scheme.lower():
        case "bearer":
            shown = [token.strip()]
        case "basic":
            shown = _passwords(token)
        case _:
            shown = []
    return [*shown, *([headers["X-Api-Key"].strip()] if "X-Api-Key" in headers else [])]


def _passwords(token: str) -> list[str]:
    """The password of `user:password` in base64 (RFC 7617): clients put them together from `http://user:key@host`."""
    try:
        text = base64.b64decode(token.strip(), validate=True).decode()
    except ValueError:  # also what is no UTF-8
        return []
    _, colon, password = text.partition(":")
    return [password] if colon else []


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()
