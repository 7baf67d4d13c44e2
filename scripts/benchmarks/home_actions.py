"""Home Assistant's actions as the tools that it shows to language models, out of its own package.

The package needs a newer Python than edged does, so it is not installed: its wheel has the actions of all integrations
(`services.yaml`) and the function that makes a schema of a field (`_selector_serializer` of `helpers/llm.py`), which is
run alone. Around it, what `helpers/llm.py` and voluptuous-openapi do for an action is done here.
"""

from __future__ import annotations

import ast
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

SERIALIZER = "_selector_serializer"
# What Home Assistant's validators of these become, as voluptuous-openapi writes them.
TEXT = {"type": "string"}
DURATION = {name: {"type": "number"} for name in ("days", "hours", "minutes", "seconds", "milliseconds")}
LOCATION = {"latitude": {"type": "number"}, "longitude": {"type": "number"}, "radius": {"type": "number"}}
MEDIA = {"entity_id": TEXT, "media_content_id": TEXT, "media_content_type": TEXT, "metadata": {"type": "object"}}
TARGET = {
    f"{kind}_id": {"anyOf": [TEXT, {"type": "array", "items": TEXT}], "nullable": True}
    for kind in ("entity", "device", "area", "floor", "label")
}


class _Loader(yaml.SafeLoader):
    """YAML in which tags of Home Assistant's own stand for nothing."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)


class _Selectors:
    """The module `selector`, as far as the function asks it: a class for each name."""

    def __init__(self) -> None:
        self.Selector = type("Selector", (), {})
        self._made: dict[str, type] = {}

    def __getattr__(self, name: str) -> type:
        return self._made.setdefault(name, type(name, (self.Selector,), {"DATA_SCHEMA": _object(_data(name))}))

    def of(self, kind: str, config: dict[str, Any]) -> Any:
        """The selector that a field of an action names."""
        special = {"color_rgb": "ColorRGBSelector", "datetime": "DateTimeSelector"}
        made = getattr(self, special.get(kind, "".join(map(str.capitalize, kind.split("_"))) + "Selector"))()
        made.config = config
        return made


def tools(wheel: Path) -> list[dict[str, Any]]:
    """Of all integrations: `[{"name": "light.turn_on", "description": ..., "inputSchema": ...}]`."""
    with zipfile.ZipFile(wheel) as files:
        selectors = _Selectors()
        serialized = _function(files.read("homeassistant/helpers/llm.py").decode(), selectors)
        found = []
        for path in sorted(files.namelist()):
            if path.endswith("/services.yaml"):
                actions = yaml.load(files.read(path), _Loader) or {}  # noqa: S506 - a safe loader
                found += [
                    _tool(f"{path.split('/')[2]}.{name}", action or {}, selectors, serialized)
                    for name, action in actions.items()
                    if not name.startswith(".")
                ]
        return found


def _function(source: str, selectors: _Selectors) -> Any:
    """The package's own function, by itself."""
    body = [part for part in ast.parse(source).body if getattr(part, "name", None) == SERIALIZER]
    names: dict[str, Any] = {
        "Any": Any,
        "UNSUPPORTED": None,
        "selector": selectors,
        "convert": lambda schema: schema,
        "vol": SimpleNamespace(Schema=lambda value: {"type": _kind(value), "enum": [value]}),
        "cv": SimpleNamespace(
            CONDITIONS_SCHEMA={"type": "array", "items": {"type": "object", "additionalProperties": True}},
            time_period_dict=_object(DURATION),
            TARGET_SERVICE_FIELDS=_object(TARGET),
        ),
    }
    exec(compile(ast.Module(body, []), SERIALIZER, "exec"), names)  # noqa: S102 - of the package that is measured
    return names[SERIALIZER]


def _tool(name: str, action: dict[str, Any], selectors: _Selectors, serialized: Any) -> dict[str, Any]:
    properties, required = {}, []
    for field, config in _fields(action.get("fields") or {}):
        schema = dict(TEXT)
        for kind, settings in (config.get("selector") or {}).items():
            schema = dict(serialized(selectors.of(kind, settings or {})))
        properties[field] = {**schema, "description": f"{name}: {field}"}
        if config.get("required"):
            required.append(field)
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"name": name, "description": name, "inputSchema": parameters}


def _fields(fields: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Those of an action, sections opened."""
    for name, config in fields.items():
        if isinstance(config, dict) and isinstance(config.get("fields"), dict):
            yield from _fields(config["fields"])
        else:
            yield name, config if isinstance(config, dict) else {}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": []}


def _data(selector: str) -> dict[str, Any]:
    return {"LocationSelector": LOCATION, "MediaSelector": MEDIA}.get(selector, {})


def _kind(value: Any) -> str:
    return {bool: "boolean", str: "string", int: "integer", float: "number"}[type(value)]
