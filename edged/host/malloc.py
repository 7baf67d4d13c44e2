"""What is freed goes back to the kernel: the C library's heap, and code that nobody runs.

Takes milliseconds; any thread may call it.
"""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

from edged.host import process

MADV_DONTNEED = 4  # mman.h
CODE = "r-xp"  # rights of code that is as the file has it: readable and executable, private, never written
M_MMAP_THRESHOLD = -3  # malloc.h
MMAPPED_BYTES = 256 * 1024  # smaller than any buffer that matters, larger than what Python asks for all the time


def trim() -> bool:
    """Give freed memory back. glibc keeps it otherwise: half of a model, for the process's life. False: there was none,
    or the C library has no such call (only glibc does)."""
    gc.collect()
    call = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return call is not None and bool(call(0))


def give_back_code(packages: frozenset[str]) -> None:
    """Give the pages with the code of Python packages back, by the names of their folders. Whoever runs it again gets
    them from the page cache, or from the file."""
    advise = ctypes.CDLL(None).madvise
    for each in process.mappings():
        if each.rights == CODE and packages.intersection(Path(each.path).parts):
            advise(ctypes.c_void_p(each.start), ctypes.c_size_t(each.end - each.start), MADV_DONTNEED)


def return_at_once() -> None:
    """From now on glibc maps every larger block by itself, and unmaps it when it is freed.

    Else it learns from the first model that is freed that blocks of its size come and go, keeps up to twice as much at
    the top of the heap of each thread, where no malloc_trim reaches it, and puts a batch's buffers there: after an
    unload 8 or 15 MiB of the MiniLM stay, and a batch of 512 tokens takes 81 MiB at its worst instead of 26.
    """
    call = getattr(ctypes.CDLL(None), "mallopt", None)
    if call is not None:  # other C libraries do not learn
        call(M_MMAP_THRESHOLD, MMAPPED_BYTES)
