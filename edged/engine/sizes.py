"""How many cells a model's context gets and how many bytes that takes. Arithmetic only, no native imports: the
governor predicts with it before anything is loaded."""

from __future__ import annotations

from msgspec import Struct

# Sequences at once. Beyond 8 a CPU has little left to gain, but whoever has got a place hears something soon.
MAX_RUNNING = 16
# Sequence ids of one context; those that do not run keep states for others: prefixes of agents, conversations. Each
# costs a row of logits (n_vocab floats: 0.6 MB at 152k tokens), so few.
MAX_SEQUENCES = 24
# Host memory for the states of sequences that had to make room, in bytes: a thousand tokens or more of a small model.
# What finds no room there is computed again.
ASIDE_BYTES = 32 * 2**20
# Tokens of one decode. Compute buffers grow with it, and on CPUs prompts hardly get faster (from 32 to 512 tokens a
# decode by a third at most, with models of 135M and 0.5B); longer chunks would only delay a cancel.
BATCH_TOKENS = 256
# Cells beside the largest request: prefixes and ordinary turns, which do not grow with the context allowed.
SHARED_CELLS = 4096
# llama.cpp rounds contexts up to this.
CELL_ALIGNMENT = 256
# Attention works on 16-bit keys and values.
KV_ELEMENT_BYTES = 2
FLOAT_BYTES = 4
# Activations alive at once in the graph, logits among them, in rows of the widest layer; the smallest whole number that
# is not below what llama.cpp reports for the models in the tests.
LIVE_ROWS = 5


class Shape(Struct, frozen=True, kw_only=True):
    """The numbers of a model's GGUF metadata that decide its sizes; counts of elements, not bytes.

    head_k, head_v: elements of one head's key and value (`attention.key_length`; n_embd / n_head where not given).
    """

    n_layer: int
    n_embd: int
    n_ff: int
    n_head_kv: int
    head_k: int
    head_v: int
    n_vocab: int


def context_cells(spec_context: int) -> int:
    """Cells of the context of a model whose requests may use `spec_context` tokens (prompt and answer).

    One request of the largest size always fits; beside it there is room for prefixes and smaller requests: twice the
    request's size while that is small, at most SHARED_CELLS more.
    """
    if spec_context < 1:
        raise ValueError("a context has at least one token")
    cells = spec_context + min(spec_context, SHARED_CELLS)
    return -(-cells // CELL_ALIGNMENT) * CELL_ALIGNMENT


def kv_bytes(shape: Shape, cells: int) -> int:
    """Bytes of keys and values for so many cells, in all layers."""
    return shape.n_layer * shape.n_head_kv * (shape.head_k + shape.head_v) * KV_ELEMENT_BYTES * cells


def compute_bytes(shape: Shape, cells: int) -> int:
    """Estimate of the graph's buffer and the logits kept for sampling; errs on the high side.

    The attention mask has a row per token of the batch and a column per cell; logits are kept for one row a sequence.
    Flash attention is assumed: without it (few models) there are the scores,
    too, n_head times as large as the mask.
    """
    widest = max(shape.n_ff, shape.n_embd)
    activations = BATCH_TOKENS * widest * LIVE_ROWS * FLOAT_BYTES
    mask = BATCH_TOKENS * cells * KV_ELEMENT_BYTES
    logits = MAX_SEQUENCES * shape.n_vocab * FLOAT_BYTES
    return activations + mask + logits


def context_bytes(shape: Shape, spec_context: int) -> int:
    """All that a model's context takes beside its weights, in bytes."""
    cells = context_cells(spec_context)
    return kv_bytes(shape, cells) + compute_bytes(shape, cells)
