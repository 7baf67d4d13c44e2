"""Pages of a model's files that nobody needs any more, given back while the model loads.

llama.cpp maps the files and copies matrices into the order that the CPU's kernels like; which of them, the CPU decides.
What it copied from stays mapped, so these would be held twice until the kernel takes the pages away; and it maps all
of a file at once, before a byte of it is used. What is used in place comes from the page cache again, and around it
some that is not (`predict.neighbours`).
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from pathlib import Path

from edged import gguf

EMBEDDINGS = "token_embd.weight"
MADV_DONTNEED, MADV_POPULATE_READ = 4, 22  # mman.h
EVERY_BYTES = (
    32 * 2**20
)  # of a load, between two times: bounds what is held twice, and a look at the mappings takes 1 ms
# Addresses, rights, offset in the file, device, inode, path (proc_pid_maps(5)).
MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+)")

Span = tuple[int, int]


class Mapped:
    """The mappings of one model's files.

    The rows of its embeddings come back at the end where they are used in place: a few are read with each prompt, and
    would come back one by one for as long as the model is used. So what a model takes is known when it has loaded.

    Raises:
        ModelUnavailable: a file is missing, or it is no model.
    """

    def __init__(self, path: Path) -> None:
        self._embeddings = {_identity(part): _embeddings(part) for part in gguf.parts(path)}
        self._bytes = sum(part.stat().st_size for part in gguf.parts(path))
        self._seen = 0

    def loaded(self, fraction: float) -> None:
        """So much of the load is done; now and then this gives back what it has read."""
        now = int(fraction * self._bytes) // EVERY_BYTES
        if now > self._seen:
            self._seen = now
            self.release()

    def release(self) -> None:
        """Give all pages back. Those that are still used come again by themselves."""
        for start, _, length, file in _mappings(Path("/proc/self/maps").read_text()):
            if file in self._embeddings:
                _advise(start, length, MADV_DONTNEED)

    def used(self, token: int, n_vocab: int) -> None:
        """A token was computed after `release`: where that read its row in the file, all rows are brought in."""
        for start, offset, length, file in _mappings(Path("/proc/self/maps").read_text()):
            first, end = self._embeddings.get(file, (0, 0))
            row = first + (end - first) * token // n_vocab
            if first < end and offset <= row < offset + length and _is_present(start + row - offset):
                _bring_in(start + max(first, offset) - offset, min(end, offset + length) - max(first, offset))


def _advise(start: int, length: int, advice: int) -> bool:
    call = ctypes.CDLL(None).madvise
    return bool(call(ctypes.c_void_p(start), ctypes.c_size_t(length), advice) == 0)


def _is_present(address: int) -> bool:
    """Whether a page is in memory for this process (pagemap(5): bit 63)."""
    page = os.sysconf("SC_PAGE_SIZE")
    with Path("/proc/self/pagemap").open("rb", buffering=0) as file:
        file.seek(address // page * 8)
        return bool(int.from_bytes(file.read(8), "little") >> 63)


def _bring_in(address: int, length: int) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    start = address // page * page
    if not _advise(start, address + length - start, MADV_POPULATE_READ):  # before Linux 5.14: read a byte of each
        for at in range(start, address + length, page):
            bytes(ctypes.c_char.from_address(at))


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
