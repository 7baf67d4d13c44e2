"""The books of a context's cells: who holds how many, and which of them are shared. Pure.

llama.cpp chooses where a token's keys and values lie, and counts for each cell the sequences that use it. Here a cell
is a number that stands for one of them: what matters is how many are free, and how many come back when a sequence goes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable


class Cells:
    """Cells by sequence id, in the order of positions.

    Sequences share their beginnings only, so along a sequence the number of users never grows: what it holds alone is
    its end.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._users = [0] * total
        self._free = list(range(total))
        self._held: dict[int, list[int]] = {}

    @property
    def free(self) -> int:
        """Cells that nobody uses."""
        return len(self._free)

    def length(self, seq_id: int) -> int:
        """Cells that a sequence uses, shared ones included."""
        return len(self._held.get(seq_id, ()))

    def alone(self, seq_id: int) -> int:
        """Cells that only this sequence uses: so many come back when it is forgotten."""
        held = self._held.get(seq_id, [])
        return len(held) - bisect_left(held, True, key=lambda cell: self._users[cell] == 1)

    def used_by(self, seq_ids: Iterable[int], *, beside: tuple[int, int] = (-1, 0)) -> int:
        """Cells that these sequences use together, with the first `beside[1]` ones of sequence `beside[0]`."""
        seq_id, length = beside
        used = set(self._held.get(seq_id, [])[:length])
        return len(used.union(*(self._held.get(i, ()) for i in seq_ids)))

    def grow(self, seq_id: int, count: int) -> None:
        """A sequence gets so many more; there must be enough."""
        if count > len(self._free):
            raise ValueError(f"{count} cells are wanted and {len(self._free)} are free")
        held = self._held.setdefault(seq_id, [])
        for _ in range(count):
            cell = self._free.pop()
            self._users[cell] = 1
            held.append(cell)

    def share(self, source: int, target: int, length: int) -> None:
        """`target`, which has none, also uses the first `length` cells of `source`."""
        if self.length(target) or self.length(source) < length:
            raise ValueError(f"{target} cannot share {length} cells of {source}")
        held = self._held[source][:length]
        for cell in held:
            self._users[cell] += 1
        self._held[target] = held

    def cut(self, seq_id: int, length: int) -> None:
        """A sequence gives up all but its first `length` cells."""
        held = self._held.get(seq_id, [])
        for cell in held[length:]:
            self._users[cell] -= 1
            if not self._users[cell]:
                self._free.append(cell)
        del held[length:]

    def release(self, seq_id: int) -> None:
        """A sequence gives up all."""
        self.cut(seq_id, 0)
        self._held.pop(seq_id, None)
