"""What is freed goes back to the kernel."""

from __future__ import annotations

import ctypes
import gc

M_MMAP_THRESHOLD = -3  # malloc.h
MMAPPED_BYTES = 256 * 1024  # smaller than any buffer that matters, larger than what Python asks for all the time


def return_at_once() -> None:
    """From now on glibc maps every larger block by itself, and unmaps it when it is freed.

    Else it learns from the first model that is freed that blocks of its size come and go, keeps up to twice as much at
    the top of the heap of each thread, where no malloc_trim reaches it, and puts a batch's buffers there: after an
    unload 8 or 15 MiB of the MiniLM stay, and a batch of 512 tokens takes 81 MiB at its worst instead of 26.
    """
    try:
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAPPED_BYTES)
    except AttributeError:  # another C library, which does not learn
        pass


def trim() -> None:
    """Give back what was freed in small pieces."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:  # another C library, without such a cache
        pass
