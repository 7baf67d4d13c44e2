"""Values that a call may only choose from a list. Pure.

Where a grammar ends one of them, the whole value was chosen; where it ends another (an integer before its point, a text
at its greatest length), something may be missing (see `engines/llama/confidence`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from edged.types import JSON, ToolSpec


def names(tools: Iterable[ToolSpec]) -> frozenset[bytes]:
    """The tools' names, as compact JSON."""
    return frozenset(msgspec.json.encode(tool.name) for tool in tools)


def values(tools: Iterable[ToolSpec]) -> frozenset[bytes]:
    """What the tools' parameters list, as compact JSON."""
    return frozenset(msgspec.json.encode(value) for tool in tools for value in _listed(tool.parameters))


def _listed(schema: JSON) -> Iterator[JSON]:
    rest = [schema]
    while rest:
        match rest.pop():
            case dict() as part:
                if isinstance(choice := part.get("enum"), list):
                    yield from choice
                if "const" in part:
                    yield part["const"]
                rest += part.values()
            case list() as items:
                rest += items
