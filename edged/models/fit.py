"""What a model would take and make on this board when its file is not here: from its manifest. Arithmetic only; every
figure is "about".

Speed follows two numbers of a board: bytes a second that generation reads (all weights once a token) and operations a
second that prompts take (two a parameter and token).
"""

from __future__ import annotations

from msgspec import Struct

from edged.engines import registry
from edged.models.catalog import Entry


class BoardSpeed(Struct, frozen=True):
    """How fast a board computes models: see above. Both are what llama.cpp makes of it, not what the chips can do."""

    bytes_s: float
    operations_s: float


def need(entry: Entry, context: int) -> int:
    """About how many bytes a model takes with requests of so many tokens."""
    kind = registry.kind(entry.engine)
    return kind.about_bytes(entry.bytes, entry.parameters, context, entry.kv_bytes_per_token)


def board(entry: Entry, *, prefill_tokens_s: float, decode_tokens_s: float) -> BoardSpeed:
    """The board, by what one model makes on it."""
    return BoardSpeed(decode_tokens_s * entry.bytes, prefill_tokens_s * 2 * entry.parameters)


def speed(entry: Entry, board: BoardSpeed) -> tuple[float, float]:
    """About (tokens of prompts a second, tokens a second of one generation)."""
    return board.operations_s / (2 * entry.parameters), board.bytes_s / entry.bytes
