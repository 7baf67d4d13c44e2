"""Home Assistant's actions as tools: out of a wheel, by the wheel's own function."""

from __future__ import annotations

import importlib
import sys
import zipfile
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[3] / "scripts"

FUNCTION = """
def _selector_serializer(schema):
    if not isinstance(schema, selector.Selector):
        return UNSUPPORTED
    if isinstance(schema, selector.EntitySelector):
        return {"type": "string", "format": "entity_id"}
    if isinstance(schema, selector.ConstantSelector):
        return convert(vol.Schema(schema.config["value"]))
    return {"type": "string"}
"""
SERVICES = """
.shared: &shared
  - heat
turn_on:
  target:
    entity: {}
  fields:
    lamp:
      required: true
      selector:
        entity:
    more:
      fields:
        mode:
          selector:
            constant: { value: 3 }
    note: {}
reload:
"""


def test_fields_become_schemas_as_the_package_makes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    home_actions = importlib.import_module("benchmarks.home_actions")
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        del sys.modules[name]
    wheel = tmp_path / "homeassistant-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as files:
        files.writestr("homeassistant/helpers/llm.py", "import nothing_that_is_there\n" + FUNCTION)
        files.writestr("homeassistant/components/light/services.yaml", SERVICES)
    turn_on, reload = home_actions.tools(wheel)
    assert (turn_on["name"], reload["name"]) == ("light.turn_on", "light.reload")
    schema = turn_on["inputSchema"]
    assert schema["required"] == ["lamp"]
    assert schema["properties"]["lamp"]["format"] == "entity_id"
    assert schema["properties"]["mode"]["enum"] == [3]
    assert schema["properties"]["note"]["type"] == "string"
    assert reload["inputSchema"]["properties"] == {}
