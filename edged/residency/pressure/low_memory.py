"""Whether what is left of the memory is little: PSI tells of stalls only, and a slow leak stalls nobody until it is too
late. Sizes in bytes."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from edged.host import memory
from edged.host.memory import Room

# Of the reserve: a load is planned so that the reserve stays, and then others may still take a part of it. Less than
# half of it left is no such swing any more; what was given up comes back when the reserve is whole again.
LOW = 0.5
LEAST = 16 * 2**20  # where no reserve is configured: below, the kernel itself begins to look for victims
# While so much of the memory is left a stall is somebody else's: a group at its own limit stalls, too, and is counted
# for the whole board. What edged would give up then helps nobody.
PLENTY = 0.25


class MemoryState(Enum):
    """What a look says."""

    LOW = "low"
    UNEASY = "uneasy"  #: neither
    FINE = "fine"


class LowMemory:
    """Judges what is left.

    Args:
        reserve: bytes that are to be left to the others of the board.
        left: what is left now.
    """

    def __init__(self, reserve: int, left: Callable[[], Room] = memory.left) -> None:
        self.low = max(round(LOW * reserve), LEAST)
        self._fine = max(reserve, 2 * LEAST)
        self._left = left

    def look(self) -> tuple[MemoryState, Room]:
        """What is left, and what to think of it."""
        room = self._left()
        if room.least is None or room.least >= self._fine:
            return MemoryState.FINE, room
        return (MemoryState.LOW if room.least < self.low else MemoryState.UNEASY), room
