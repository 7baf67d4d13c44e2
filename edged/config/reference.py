"""The page of the documentation about the configuration, made from its schema (see `schema`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

Node = dict[str, Any]

NAMES = {"string": "text", "integer": "integer", "number": "number", "boolean": "`true` or `false`", "object": "table"}
INTRODUCTION = """\
# Configuration

<!-- Made from the tables in edged/config: change these, then run `python -m edged.config.schema`. -->

The configuration is the TOML file that `--config` names, or else `$EDGED_CONFIG`, or else `/etc/edged/edged.toml`.
Drop-ins in `conf.d/*.toml` beside the file override it, in the order of their names: tables are merged, lists are
replaced. `edged check` says what is wrong with it, with file, line and key; `systemctl reload edged` puts a change into
force.

* A **size** is a number of bytes, or has a unit: `"96MiB"`, `"1GiB"` (powers of 1024), `"500MB"` (powers of 1000).
* A **secret** is never in the file. Its key names a file, or as `"credential:NAME"` a credential that systemd passes
  (`LoadCredential=NAME:FILE` in the unit). A byte order mark and line ends at the end do not belong to it.
* A **name** (of a model, an agent, a tool, ...) has 1 to 64 letters, digits, `_`, `-` or `.`, and no dash in front.
* A path is absolute.

Editors that know JSON Schema (taplo, Even Better TOML) complete keys and mark mistakes if the first line of the file is
`#:schema PATH`, with the path of `schema.json` in the folder of the package `edged.config`. `scripts/install` puts it
beside the configuration as `edged.schema.json`. It is for a whole configuration: of a drop-in an editor may say that a
required key is missing which another file has. What tables may not be beside one another only `edged check` knows.
"""


def page(schema: Node) -> str:
    """The page, in Markdown."""
    return "\n".join([INTRODUCTION, *_tables(schema)])


def _tables(schema: Node) -> Iterator[str]:
    for name, node in schema["properties"].items():
        named = node.get("additionalProperties", {})
        if "oneOf" in named:
            yield from _kinds(schema, f"{name}.NAME", named)
        else:
            path, table = (f"{name}.NAME", named) if named else (name, node)
            yield from _table(schema, f"## `[{path}]`", path, _resolved(schema, table))


def _kinds(schema: Node, path: str, node: Node) -> Iterator[str]:
    """A table that is of one of several kinds: the keys that all of them have, then those that each of them has."""
    kinds = [_resolved(schema, one) for one in node["oneOf"]]
    shared = [key for key in kinds[0]["properties"] if all(_key(kind, key) == _key(kinds[0], key) for kind in kinds)]
    yield f"## `[{path}]`\n\n{node['description']}\n"
    yield from _keys(schema, path, kinds[0], shared)
    for one, kind in zip(node["oneOf"], kinds, strict=True):
        own = [key for key in kind["properties"] if key not in shared]
        yield f"### `[{path}]` with `{one['title']}`\n\n{kind['description']}\n"
        yield from _keys(schema, path, kind, own)


def _table(schema: Node, title: str, path: str, table: Node) -> Iterator[str]:
    yield f"{title}\n\n{table['description']}\n"
    yield from _keys(schema, path, table, list(table["properties"]))


def _key(table: Node, key: str) -> tuple[Node | None, bool]:
    """What a table says of a key."""
    return table["properties"].get(key), key in table["required"]


def _keys(schema: Node, path: str, table: Node, keys: list[str]) -> Iterator[str]:
    """Some keys of a table, and the tables in them."""
    yield "| key | value | default | meaning |\n|---|---|---|---|"
    for key in keys:
        node = table["properties"][key]
        default = "required" if key in table["required"] else _value(node["default"]) if "default" in node else ""
        cells = (f"`{key}`", _kind(node), default, node["description"])
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""
    for key in keys:
        node = table["properties"][key]
        if "$ref" in (below := node.get("items", node)):
            yield from _table(schema, f"### `{key}` of `[{path}]`", f"{path}.{key}", _resolved(schema, below))


def _kind(node: Node) -> str:
    """What a value may be, in words."""
    if "title" in node:
        return str(node["title"])
    if "anyOf" in node:
        return " or ".join(map(_kind, node["anyOf"]))
    if "const" in node:
        return _value(node["const"])
    if "enum" in node:
        return ", ".join(map(_value, node["enum"]))
    if "$ref" in node:
        return "table"
    if node["type"] == "array":
        return f"list of {_kind(node['items'])}s"
    name, low, high = NAMES[node["type"]], node.get("minimum"), node.get("maximum")
    if low is None:
        return name
    return f"{name}, at least {low}" if high is None else f"{name}, {low} to {high}"


def _value(value: Any) -> str:
    return f"`{json.dumps(value)}`"


def _resolved(schema: Node, node: Node) -> Node:
    found: Node = schema["$defs"][node["$ref"].removeprefix("#/$defs/")]
    return found
