"""How much more may be taken. Pure: values in, bytes out.

Three bounds, and the smallest counts:

(1) the budget: less what the daemon has of its own;
(2) the cgroups on the way to the root: what each still has, less weights that are mapped;
(3) the board: MemAvailable less the reserve, less weights that are mapped.

Page cache is nobody's: the kernel gives it up when memory is asked for, so it is taken off a cgroup's usage, and
MemAvailable has it in already. Weights are mapped from that cache and would be given up with it, but a model whose
weights are read from a card at every token is as good as gone: they count as used. What is promised to resident models
and not touched yet counts, too: their buffers fill while they work.

Swap is no room: MemAvailable has none of it, and what of the daemon lies there still counts as its own, because it
comes back with the next request. Memory of a GPU is the board's own where both share it, and nothing is offloaded
elsewhere (`n_gpu_layers` is 0), so there is none to add.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from edged.host.memory import Group


class Taken(Struct, frozen=True):
    """What the daemon has, in bytes. private: its own memory, swapped out or not, without weights: models' contexts,
    prefixes, libraries. mapped: weights of resident models. promised: what these models may still touch."""

    private: int
    mapped: int
    promised: int = 0


class Bounds(Struct, frozen=True):
    """What there is. budget: as configured. available: MemAvailable, None where the kernel does not say. reserve: of
    that, for others."""

    budget: int
    groups: Sequence[Group] = ()
    available: int | None = None
    reserve: int = 0


def room(bounds: Bounds, taken: Taken) -> int:
    """Bytes that may still be taken; negative where too much is taken already."""
    left = [bounds.budget - taken.private - taken.mapped]  # (1)
    left += [group.limit - max(0, group.used - group.cache) - taken.mapped for group in bounds.groups]  # (2)
    if bounds.available is not None:
        left.append(bounds.available - bounds.reserve - taken.mapped)  # (3)
    return min(left) - taken.promised


def promised(needed: int, took: int) -> int:
    """What a resident model may still touch: it was predicted to need so much, and took so much when it was loaded."""
    return max(0, needed - took)
