"""Pages of a model's files that nobody needs any more, given back while the model loads.

llama.cpp maps the files and copies matrices into the order that the CPU's kernels like; which of them, the CPU decides.
What it copied from stays mapped, so these would be held twice until the kernel takes the pages away; and it maps all
of a file at once, before a byte of it is used. What is used in place comes from the page cache again.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

from edged.engines.llama import gguf
from edged.host import process

EMBEDDINGS = "token_embd.weight"
MADV_DONTNEED = 4  # mman.h
EVERY_BYTES = (
    32 * 2**20
)  # of a load, between two times: bounds what is held twice, and a look at the mappings takes 1 ms

Span = tuple[int, int]


class MappedPages:
    """The mappings of one model's files.

    The rows of its embeddings stay: they are used in place, a few with each prompt, and would come back one by one for
    as long as the model is used. So what a model takes is known when it has loaded.

    Raises:
        ModelUnavailable: a file is missing, or it is no model.
    """

    def __init__(self, path: Path) -> None:
        self._kept = {_identity(part): _embeddings(part) for part in gguf.parts(path)}
        self._bytes = sum(part.stat().st_size for part in gguf.parts(path))
        self._seen = 0

    def loaded(self, fraction: float) -> None:
        """So much of the load is done; now and then this gives back what it has read."""
        now = int(fraction * self._bytes) // EVERY_BYTES
        if now > self._seen:
            self._seen = now
            self.release()

    def release(self) -> None:
        """Give all pages back but the embeddings'. Those that are still used come again by themselves."""
        advise = ctypes.CDLL(None).madvise
        for each in process.mappings():
            kept = self._kept.get((each.device, each.inode)) if each.inode else None
            if kept is None:
                continue
            for first, end in _without((each.offset, each.offset + each.end - each.start), kept):
                at = each.start + first - each.offset
                advise(ctypes.c_void_p(at), ctypes.c_size_t(end - first), MADV_DONTNEED)


def _identity(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def _embeddings(path: Path) -> Span:
    """Where they lie in a file, in bytes; empty where it has none."""
    _, tensors = gguf.header(path)
    if not tensors:
        return 0, 0
    begin = path.stat().st_size - (tensors[-1].offset + tensors[-1].size)  # the tensors are the end of the file
    found = (each for each in tensors if each.name == EMBEDDINGS)
    return next(((begin + each.offset, begin + each.offset + each.size) for each in found), (0, 0))


def _without(whole: Span, kept: Span) -> Iterable[Span]:
    """Whole pages of a span, without those that hold a byte of another."""
    page = os.sysconf("SC_PAGE_SIZE")
    before = whole[0], min(whole[1], kept[0] // page * page)
    behind = max(whole[0], -(-kept[1] // page) * page), whole[1]
    return [(first, end) for first, end in (before, behind) if first < end] if kept[0] < kept[1] else [whole]
