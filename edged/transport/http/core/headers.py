"""What headers say on every surface. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from edged.wire import MAX_NAME_BYTES
from edged.wire.dialogue import BadParameter

IDEMPOTENCY_KEY = "Idempotency-Key"
IGNORED = "Edged-Ignored"  # names of parameters that had no effect

MAX_NAMES = 32  # in that header: all its lines together have to fit into what proxies take
MAX_NAME = 64  # characters of one
UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")  # a name is what the client made up, and goes into a header and the log


def idempotency_key(headers: Mapping[str, str]) -> str | None:
    """The request's Idempotency-Key; None: it has none. Its draft (draft-ietf-httpapi-idempotency-key-header) has it in
    quotes, and most clients leave them out: both mean the same key. Raises BadParameter."""
    value = headers.get(IDEMPOTENCY_KEY)
    if value is None:
        return None
    key = value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value
    if not 1 <= len(key) <= MAX_NAME_BYTES or not key.isascii() or not key.isprintable():
        raise BadParameter(IDEMPOTENCY_KEY, f"1 to {MAX_NAME_BYTES} printable ASCII characters")
    return key


def safe(name: str) -> str:
    """A name that a client made up, as it may stand in a header."""
    return UNSAFE.sub("_", name[:MAX_NAME]) or "_"


def names(ignored: Collection[str]) -> str:
    """The value of the header that names them; at most MAX_NAMES, then how many more there are."""
    listed = list(ignored)
    more = [f"+{len(listed) - MAX_NAMES}"] if len(listed) > MAX_NAMES else []
    return ", ".join([*listed[:MAX_NAMES], *more])
