"""How a refusal is worded: what is needed, what there is, who holds it, what would fit. Pure; sizes in bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from edged.residency.policy import Resident

MIB = 2**20


class BoardMemory(Struct, frozen=True):
    """Memory as it is. available: None where the kernel does not say. own: what the daemon takes without a model."""

    budget: int
    reserve: int
    own: int
    available: int | None


class Fits(Struct, frozen=True):
    """What would fit: a context of so many tokens; names of other models."""

    context: int | None = None
    models: tuple[str, ...] = ()


def refusal(name: str, ways: Mapping[str, int], board: BoardMemory, resident: Sequence[Resident], fits: Fits) -> str:
    """The message. ways: what each way of loading it takes, by its name; the least counts."""
    label, least = min(ways.items(), key=lambda way: way[1])
    smallest = f" (as {label}, the smallest of its variants)" if len(ways) > 1 else ""
    said = f"model {name!r} needs about {_mib(least)}{smallest}; the budget is {_mib(board.budget)}"
    said += f", of which the daemon takes {_mib(board.own)}"
    if board.available is not None:
        said += f", and {_mib(board.available)} are available on the board, of which {_mib(board.reserve)} are reserved"
        said += " for others ([memory])"
    held = [f"{m.name} {_mib(m.size_bytes)}{_why(m)}" for m in resident if m.pinned or m.busy]
    if held:
        said += f"; it is held by {', '.join(held)}"
    options = [f"a context of {fits.context} tokens"] if fits.context else []
    options += [f"model {model!r}" for model in fits.models]
    return f"{said}; what would fit: {', or '.join(options) or 'nothing that is configured'}"


def fitting_context(most: int, at: tuple[int, int], least: tuple[int, int]) -> int | None:
    """Tokens of context that fit into so many bytes, from (tokens, bytes) at two contexts: what is between them grows
    evenly. None: not even the smaller one does. Rounded down to 256, the unit in which contexts are made."""
    (tokens, size), (few, small) = at, least
    if small > most or tokens <= few or size <= small:
        return None
    fits = few + (most - small) * (tokens - few) // (size - small)
    return max(few, min(tokens, fits) // 256 * 256)


def _why(model: Resident) -> str:
    return " (pinned)" if model.pinned else " (in use)"


def _mib(size: int) -> str:
    return f"{size // MIB} MiB" if size >= MIB or size == 0 else f"{size} bytes"
