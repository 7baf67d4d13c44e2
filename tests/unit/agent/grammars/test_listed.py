"""Values that a call chooses from a list, wherever in the schemas the list stands."""

from __future__ import annotations

from edged.agent.grammars import listed
from edged.types import ToolSpec

TOOL = ToolSpec(
    "climate",
    "Heating.",
    {
        "type": "object",
        "properties": {
            "mode": {"enum": ["heat", "größer", 'a"b', 3, 2.5, True, None]},
            "kind": {"const": "room"},
            "rooms": {"type": "array", "items": {"$ref": "#/$defs/room"}},
            "enum": {"type": "string"},  # a name of no meaning
            "free": {"type": "string", "maxLength": 8},
        },
        "$defs": {"room": {"anyOf": [{"enum": ["hall"]}, {"type": "object", "properties": {"n": {"enum": ["barn"]}}}]}},
    },
)


def test_lists_are_found_at_every_depth() -> None:
    said = ('"heat"', '"größer"', r'"a\"b"', "3", "2.5", "true", "null", '"room"', '"hall"', '"barn"')
    assert listed.values([TOOL]) == {text.encode() for text in said}
    assert listed.names([TOOL]) == {b'"climate"'}
