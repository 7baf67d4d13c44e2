"""Pages of a model's files that nobody needs any more, given back while the model loads.

llama.cpp maps the files and copies matrices into the order that the CPU's kernels like; which of them, the CPU decides.
What it copied from stays mapped, so these would be held twice until the kernel takes the pages away; and it maps all
of a file at once, before a byte of it is used. What is used in place comes from the page cache again.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from edged.engines.llama import gguf

EMBEDDINGS = "token_embd.weight"
MADV_DONTNEED = 4  # mman.h
EVERY_BYTES = (
    32 * 2**20
)  # of a load, between two times: bounds what is held twice, and a look at the mappings takes 1 ms
# Addresses, rights, offset in the file, device, inode, path (proc_pid_maps(5)).
MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+)")

Span = tuple[int, int]


class Mapped:
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
        for start, offset, length, file in _mappings(Path("/proc/self/maps").read_text()):
            if file in self._kept:
                for first, end in _without((offset, offset + length), self._kept[file]):
                    advise(ctypes.c_void_p(start + first - offset), ctypes.c_size_t(end - first), MADV_DONTNEED)


def _mappings(text: str) -> Iterator[tuple[int, int, int, tuple[int, int]]]:
    """(address, offset in the file, length, (device, inode)) of what is mapped from files."""
    for line in text.splitlines():
        if (found := MAPPING.match(line)) and (inode := int(found[6])):
            start, end, offset, major, minor = (int(found[i], 16) for i in range(1, 6))
            yield start, offset, end - start, (os.makedev(major, minor), inode)


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
