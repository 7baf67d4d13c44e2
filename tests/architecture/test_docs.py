"""What the README and the example say is so."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from edged import config
from edged.config import roles
from edged.host import fault_points

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
TABLES: dict[str, type[msgspec.Struct]] = {
    "node": config.Node,
    "memory": config.Memory,
    "compute": config.Compute,
    "queue": config.Queue,
    "store": config.Store,
    "snapshots": config.Snapshots,
    "ipc": config.Ipc,
    "http": config.Http,
    "mqtt": config.Mqtt,
    "databases": config.Database,
    "models": config.Model,
    "upstreams": config.Upstream,
    "agents": config.Agent,
    "tools": config.SqlTool,
    "tools, publish": config.PublishTool,
    "tools, python": config.PythonTool,
    "roles": roles.Role,
    "access": roles.Access,
}


@pytest.mark.parametrize("table", TABLES)
def test_readme_names_every_setting(table: str) -> None:
    """Whoever reads the README finds each key of each table."""
    keys = [field.encode_name for field in msgspec.structs.fields(TABLES[table])]
    assert not [key for key in keys if f"`{key}`" not in README and f"{key} =" not in README]


def test_readme_shows_tools_of_the_example_as_they_are() -> None:
    """A tool in the README loads, and says what the example's tool says."""
    example = (ROOT / "scripts" / "greenhouse" / "edged.toml").read_text()
    for name in re.findall(r"\[tools\.(\w+)\]", README):
        if f"[tools.{name}]" in example:
            described = re.search(rf'\[tools\.{name}\]\ndescription = "(.*)"', README)
            assert described is not None
            assert described[1] in example


def test_example_loads_as_it_is_shipped() -> None:
    """Its paths are those of a board; everything else is checked."""
    settings = config.load(str(ROOT / "scripts" / "greenhouse" / "edged.toml"))
    assert list(settings.agents) == ["house"]
    assert settings.node.id == "greenhouse"


def test_top_level_holds_what_the_contract_says() -> None:
    """Nothing strays into the repository's root."""
    allowed = {"pyproject.toml", "edged", "systemd", "models", "tests", "scripts", "README.md"}
    assert {path.name for path in ROOT.iterdir() if not path.name.startswith(".")} <= allowed | {"build", "dist"}


def test_every_fault_point_is_passed_somewhere() -> None:
    """A point nobody passes would make its test pass for nothing."""
    source = "\n".join(path.read_text() for path in (ROOT / "edged").rglob("*.py"))
    assert not [name for name in fault_points.POINTS if f'point("{name}")' not in source]
