"""What headers say on every surface. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from edged.wire import MAX_NAME_BYTES
from edged.wire.dialogue import BadParameter

IDEMPOTENCY_KEY = "Idempotency-Key"
IGNORED = "Edged-Ignored"  # names of parameters that had no effect


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
