"""What a model would take and make on this board when its file is not here: from its manifest. Arithmetic only; every
figure is "about".

Speed follows two numbers of a board: bytes a second that generation reads (all weights once a token) and operations a
second that prompts take (two a parameter and token).
"""

from __future__ import annotations

from math import sqrt

from msgspec import Struct

from edged.engines.llama.sizes import ASIDE_BYTES, context_cells
from edged.models.catalog import Entry

# Graph and logits, in bytes by the root of the parameters' number: widths grow with it. 1,431 (135M), 1,957 (0.5B) and
# 1,629 (1.5B) by `sizes.compute_bytes`.
COMPUTE_BY_ROOT = 1_960
# Tables of the vocabulary, likewise: 2,500 to 4,100 with the catalog's models, by `predict.TABLE_BYTES`, LEXICON_BYTES.
VOCABULARY_BY_ROOT = 2_500
# Keys and values of a token, likewise, where the manifest does not say: 0.6 to 2 with the catalog's models.
KV_BY_ROOT = 2
# An embedding model: onnxruntime copies its weights, and computes texts of 512 tokens at most.
ONNX_TIMES, ONNX_EXTRA = 2, 32 * 2**20


class BoardSpeed(Struct, frozen=True):
    """How fast a board computes models: see above. Both are what llama.cpp makes of it, not what the chips can do."""

    bytes_s: float
    operations_s: float


def need(entry: Entry, context: int) -> int:
    """About how many bytes a model takes with requests of so many tokens."""
    if entry.engine == "onnx":
        return entry.bytes * ONNX_TIMES + ONNX_EXTRA
    root = sqrt(entry.parameters)
    per_token = entry.kv_bytes_per_token or KV_BY_ROOT * root
    return (
        round(entry.bytes + per_token * context_cells(context) + (COMPUTE_BY_ROOT + VOCABULARY_BY_ROOT) * root)
        + ASIDE_BYTES
    )


def board(entry: Entry, *, prefill_tokens_s: float, decode_tokens_s: float) -> BoardSpeed:
    """The board, by what one model makes on it."""
    return BoardSpeed(decode_tokens_s * entry.bytes, prefill_tokens_s * 2 * entry.parameters)


def speed(entry: Entry, board: BoardSpeed) -> tuple[float, float]:
    """About (tokens of prompts a second, tokens a second of one generation)."""
    return board.operations_s / (2 * entry.parameters), board.bytes_s / entry.bytes
