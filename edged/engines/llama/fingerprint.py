"""Which model a file holds, found out in milliseconds."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from edged.engines.llama import gguf

# The header (metadata, vocabulary, tensor infos) decides how tokens are cut and what the tensors mean. With 152k tokens
# and their merges it has 6 MB; what of a longer one lies beyond is sampled like the tensors.
HEAD_BYTES = 8 * 2**20
# Blocks of the tensors, all over the file: another quantization or fine-tuning differs in all of them. 2 MB in all,
# which a card that seeks reads in a quarter of a second, and pages the model needs anyway.
SAMPLES, SAMPLE_BYTES = 32, 64 * 2**10


def model_fingerprint(path: Path) -> str:
    """Hexadecimal digest of what a model's file is: its size, its modification time, its header, blocks all over it.

    Not of the whole file: 500 MB take 10 s from a card and a second or two of hashing on a Pi, at every load, which is
    what stored states are to save. A file that is written anew has another modification time, whatever its bytes are;
    one that decays on its medium would have to decay between the blocks, and then computes rubbish in any case. Of a
    model in several files the others count by size and time.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    for part in gguf.parts(path)[1:]:
        found = part.stat()
        digest.update(f"{found.st_size} {found.st_mtime_ns}\n".encode())
    with path.open("rb", buffering=0) as file:
        found = os.fstat(file.fileno())
        digest.update(f"{found.st_size} {found.st_mtime_ns}\n".encode())
        digest.update(os.pread(file.fileno(), HEAD_BYTES, 0))
        beyond = found.st_size - HEAD_BYTES - SAMPLE_BYTES
        for i in range(SAMPLES if beyond > 0 else 0):
            digest.update(os.pread(file.fileno(), SAMPLE_BYTES, HEAD_BYTES + beyond * i // (SAMPLES - 1)))
    return digest.hexdigest()
