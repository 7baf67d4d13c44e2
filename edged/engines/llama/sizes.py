"""How many cells a model's context gets and how many bytes that takes. Arithmetic only, no native imports: the
governor predicts with it before anything is loaded."""

from __future__ import annotations

from msgspec import Struct

from edged.types import KvType

# Sequences at once. Beyond 8 a CPU has little left to gain, but whoever has got a place hears something soon.
MAX_RUNNING = 16
# Sequence ids of one context; those that do not run keep states for others: prefixes of agents, conversations. Each
# costs a row of logits (n_vocab floats: 0.6 MB at 152k tokens), so few.
MAX_SEQUENCES = 24
# Host memory for the states of sequences that had to make room, in bytes: a thousand tokens of the 0.5B. It is promised
# with every load, so it must be worth its place; what finds no room there is computed again.
SWAPPED_BYTES = 12 * 2**20
# Tokens of one decode. Compute buffers grow with it, and on CPUs prompts hardly get faster (from 32 to 512 tokens a
# decode by a third at most, with models of 135M and 0.5B); longer chunks would only delay a cancel.
BATCH_TOKENS = 256
# Cells beside the largest request: prefixes and ordinary turns, which do not grow with the context allowed.
SHARED_CELLS = 4096
# llama.cpp rounds contexts up to this.
CELL_ALIGNMENT = 256
# Bytes that so many elements take: ggml's blocks of each type. Those of q8_0 have a 16-bit scale.
KV_BLOCKS = {KvType.F16: (1, 2), KvType.Q8_0: (32, 34)}
HALF_BYTES = 2
FLOAT_BYTES = 4
# Activations alive at once in the graph, logits among them, in rows of the widest layer; the smallest whole number that
# is not below what llama.cpp reports for the models in the tests.
LIVE_ROWS = 5


class Shape(Struct, frozen=True, kw_only=True):
    """The numbers of a model's GGUF metadata that decide its sizes; counts of elements, not bytes.

    heads_kv: of keys and values, by layer; 0: the layer has none, because it is recurrent.
    head_k, head_v: elements of one head's key and value (`attention.key_length`; n_embd / n_head where not given).
    window: tokens that layers with a sliding window see; windowed: which layers have it.
    state: elements of a recurrent layer's state, for one sequence.
    """

    n_embd: int
    n_ff: int
    heads_kv: tuple[int, ...]
    head_k: int
    head_v: int
    n_vocab: int
    window: int = 0
    windowed: tuple[bool, ...] = ()
    state: int = 0


def context_cells(spec_context: int) -> int:
    """Cells of the context of a model whose requests may use `spec_context` tokens (prompt and answer).

    One request of the largest size always fits; beside it there is room for prefixes and smaller requests: twice the
    request's size while that is small, at most SHARED_CELLS more.
    """
    if spec_context < 1:
        raise ValueError("a context has at least one token")
    return _aligned(spec_context + min(spec_context, SHARED_CELLS))


def window_cells(window: int, cells: int) -> int:
    """Cells that llama.cpp gives layers with a sliding window: one window a sequence, and a batch."""
    return _aligned(min(cells, window * MAX_SEQUENCES + BATCH_TOKENS))


def kv_bytes(shape: Shape, cells: int, kv_type: KvType = KvType.F16) -> int:
    """Bytes of keys and values for so many cells, in all layers, and of the states of layers that have none."""
    elements, size = KV_BLOCKS[kv_type]
    total = 0
    for i, heads in enumerate(shape.heads_kv):
        windowed = shape.window and i < len(shape.windowed) and shape.windowed[i]
        row = (heads * shape.head_k + heads * shape.head_v) * size // elements
        total += row * (window_cells(shape.window, cells) if windowed else cells)
        total += 0 if heads else shape.state * FLOAT_BYTES * MAX_SEQUENCES
    return total


def compute_bytes(shape: Shape, cells: int) -> int:
    """Estimate of the graph's buffer; errs on the high side.

    The attention mask has a row per token of the batch and a column per cell. Flash attention is assumed: without it
    (few models) there are the scores, too, n_head times as large as the mask.
    """
    widest = max(shape.n_ff, shape.n_embd)
    return BATCH_TOKENS * widest * LIVE_ROWS * FLOAT_BYTES + BATCH_TOKENS * cells * HALF_BYTES


def output_bytes(n_vocab: int) -> int:
    """Bytes of the logits that are kept: a row for each sequence, whether it is used or not."""
    return MAX_SEQUENCES * n_vocab * FLOAT_BYTES


def _aligned(cells: int) -> int:
    return -(-cells // CELL_ALIGNMENT) * CELL_ALIGNMENT
