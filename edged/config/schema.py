"""The JSON Schema of the configuration, for editors, and the page of the documentation: both are made from the tables.

    python -m edged.config.schema

writes `schema.json` beside this file, and `docs/configuration.md` from it. The schema knows what each key may be; what
tables may not be beside one another, and what the board has, only `edged check` knows.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from edged.config import loader, reference, tools
from edged.config.settings import NAMED, SINGLE, Config
from edged.config.values import NAME, Strict, whole

FILE = Path(__file__).with_name("schema.json")
PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
MEANING = re.compile(
    r"^([a-z_0-9]+): ((?:.+\n?)(?:    .+\n?)*)", re.MULTILINE
)  # of a key, in the docstring of its table

Node = dict[str, Any]  # a schema, or a part of one


def schema() -> Node:
    """The schema of a whole file."""
    kinds = [*SINGLE.values(), *NAMED.values(), *tools.TABLES]
    _, parts = msgspec.json.schema_components(kinds, ref_template="#/$defs/{name}")
    tables = {kind.__name__: kind for kind in _derived(Strict) if kind.__name__ in parts}
    choices = {f"#/$defs/{name}": {"enum": part["enum"]} for name, part in parts.items() if name not in tables}
    named = {name: _by_name(_reference(kind)) for name, kind in NAMED.items()}
    named["tools"] = _by_name(
        {
            "description": "What an agent can do. A tool is of the kind whose key it has; it has exactly one of them.",
            "oneOf": [{"title": kind.key, **_reference(kind)} for kind in tools.TABLES],
        }
    )
    properties = {name: _reference(kind) for name, kind in SINGLE.items()} | named
    definitions = {name: _table(tables[name], _plain(parts[name], choices)) for name in parts if name in tables}
    for (table, key), part in loader.NOT_YET.items():
        definitions[SINGLE[table].__name__]["properties"][key] = {
            "description": f"Not available yet: {part}.",
            "const": loader.ASKS_NOTHING[table, key],
        }
    return {
        "$schema": DIALECT,
        "title": "The configuration of edged",
        "type": "object",
        "properties": {name: properties[name] for name in Config.__struct_fields__ if name in properties},
        "additionalProperties": False,
        "$defs": definitions,
    }


def _derived(kind: type[Struct]) -> Iterator[type[Struct]]:
    for one in kind.__subclasses__():
        yield one
        yield from _derived(one)


def _reference(kind: type[Struct]) -> Node:
    return {"$ref": f"#/$defs/{kind.__name__}"}


def _by_name(table: Node) -> Node:
    """Tables that have names, as [models.NAME]."""
    return {"type": "object", "propertyNames": {"pattern": whole(NAME.pattern)}, "additionalProperties": table}


def _plain(node: Any, choices: dict[str, Node]) -> Any:
    """A schema for TOML, which has no null; choices stand where they are used."""
    if isinstance(node, list):
        return [_plain(one, choices) for one in node]
    if not isinstance(node, dict):
        return int(node) if isinstance(node, float) and node.is_integer() else node
    node = {key: _plain(value, choices) for key, value in node.items() if (key, value) != ("default", None)}
    node |= choices.get(node.pop("$ref", ""), {}) if node.get("$ref") in choices else {}
    if "anyOf" in node:
        kept = [one for one in node["anyOf"] if one != {"type": "null"}]
        node = (
            node | {"anyOf": kept} if len(kept) > 1 else {**kept[0], **{k: v for k, v in node.items() if k != "anyOf"}}
        )
    return node


def _table(kind: type[Struct], node: Node) -> Node:
    """The schema of a table with what its docstring says, which speaks of no default where it says what it is."""
    purpose, meanings = described(kind)
    for key, value in node["properties"].items():
        meaning = meanings.get(key, "")
        if "Default:" in meaning or (value.get("minItems") and not value.get("default")):
            value.pop("default", None)
        node["properties"][key] = {"description": meaning, **value}
    return {
        "description": purpose,
        **{key: value for key, value in node.items() if key not in ("title", "description")},
    }


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text[:1].upper() + text[1:]


def described(kind: type[Struct]) -> tuple[str, dict[str, str]]:
    """What a table is for, and what its keys mean, by the docstrings of the table and of those it derives from."""
    texts = [inspect.cleandoc(one.__doc__ or "") + "\n" for one in kind.__mro__ if issubclass(one, Strict)]
    meanings = {key: _sentence(text) for doc in reversed(texts) for key, text in MEANING.findall(doc)}
    return _sentence(texts[0].partition("\n\n")[0]), meanings


def made() -> dict[Path, str]:
    """The files that are made from the tables, and what is to be in them."""
    found = schema()
    return {
        FILE: msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n",
        PAGE: reference.page(found),
    }


if __name__ == "__main__":
    for path, text in made().items():
        path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{path}\n")
