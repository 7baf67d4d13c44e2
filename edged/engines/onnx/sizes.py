"""What an embedding model takes in memory, before it is loaded. No native imports."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from edged.engines.onnx import file
from edged.engines.onnx.file import Facts
from edged.errors import ModelUnavailable
from edged.types import MemoryNeed, ModelSpec

# Tokens of one batch, padding included. Buffers grow with it (the scores of attention with its square), and a CPU gains
# little by more; a cancel waits for it.
BATCH_TOKENS = 512
FLOAT_BYTES = 4
HEAD_WIDTH = 32  # numbers of one head's key; the smallest in use, so that there are at most as many heads
# Beside the file: the tokenizer and the session. Of the int8 MiniLM (21.9 MiB) 29.4 MiB stay after the load. While a
# session is made there are 12 MiB more, which is less than a batch takes afterwards.
SESSION_BYTES = 8 * 2**20
# Rows of the widest activation, and tables of scores, that are alive at once: the smallest whole numbers that are not
# below what a text of 256 or 512 tokens took (9.5 and 26.6 MiB).
LIVE_ROWS = 3
LIVE_SCORES = 2
NOT_TOLD_WIDTH = 1024  # where the file does not tell: of the usual embedding models the largest (bge-large, e5-large)
WIDEST_FACTOR = 4  # of the feed-forward layer to the width, in nearly every transformer


# What comes in with the first load and stays: onnxruntime, tokenizers, NumPy. Private memory of the daemon, measured.
LIBRARY_BYTES = 40 * 2**20
LIBRARY = "onnxruntime"
# Their code goes with the last model (`heap.give_back_code`) and comes again with the next. Measured, of x86-64.
LIBRARIES = frozenset({LIBRARY, "tokenizers"})
CODE_BYTES = 25 * 2**20


def identity(spec: ModelSpec) -> str:
    """All that a prediction depends on, as a text. ModelUnavailable where the file is missing."""
    import importlib.metadata  # as `llama.predict` has it

    stat = _stat(spec)
    return json.dumps([spec.path, stat.st_size, stat.st_mtime_ns, spec.context, importlib.metadata.version(LIBRARY)])


def least_bytes(spec: ModelSpec) -> int:
    """What it takes in any case; ModelUnavailable as `identity`."""
    return _stat(spec).st_size


def library_bytes() -> int:
    """What the next load brings in beside its model."""
    return CODE_BYTES if LIBRARY in sys.modules else LIBRARY_BYTES


def _stat(spec: ModelSpec) -> os.stat_result:
    try:
        return Path(spec.path).stat()
    except OSError as error:
        raise ModelUnavailable(f"{spec.path} cannot be read: {error.strerror}") from None


def limit(context: int, facts: Facts) -> int:
    """Most tokens of a text: as configured, at most as many as the model has positions for."""
    return min(context, facts.positions or context)


def predicted_need(spec: ModelSpec) -> MemoryNeed:
    """What a model will take while it computes the largest batch. Reads the file's structure: call it in a thread.

    Raises:
        ModelUnavailable: there is no such file, or it is no model.
    """
    facts = file.read(Path(spec.path))
    return need(facts, limit(spec.context, facts))


def need(facts: Facts, longest: int) -> MemoryNeed:
    """The same by the file's facts. longest: most tokens of a text."""
    width = facts.width or NOT_TOLD_WIDTH
    tokens = max(longest, 1 if facts.quantized else BATCH_TOKENS)
    rows = LIVE_ROWS * tokens * (facts.widest or WIDEST_FACTOR * width)
    scores = LIVE_SCORES * (width // HEAD_WIDTH) * longest * tokens
    return MemoryNeed(
        weights=facts.bytes + SESSION_BYTES,
        compute=FLOAT_BYTES * (rows + scores),
        output=FLOAT_BYTES * tokens * width,
    )
