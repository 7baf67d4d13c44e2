"""What the README and the example say is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edged import config
from edged.config import schema
from edged.host import fault_points

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "edged" / "docs"
README = (ROOT / "README.md").read_text()
SCHEMA = schema.schema()


@pytest.mark.parametrize("path", schema.made(), ids=lambda path: path.name)
def test_what_is_made_from_the_tables_of_the_configuration_is_current(path: Path) -> None:
    """Else run: python -m edged.config.schema."""
    assert path.read_text(encoding="utf-8") == schema.made()[path]


@pytest.mark.parametrize("name", SCHEMA["$defs"])
def test_every_setting_has_a_meaning(name: str) -> None:
    """A sentence in the docstring of its table, and one about the table itself."""
    table = SCHEMA["$defs"][name]
    assert table["description"]
    assert not [key for key, node in table["properties"].items() if not node["description"].endswith(".")]


def test_page_names_every_setting() -> None:
    """Anyone who reads it finds each key of each table."""
    page = schema.PAGE.read_text(encoding="utf-8")
    rows = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    assert rows == {key for table in SCHEMA["$defs"].values() for key in table["properties"]}
    for name in SCHEMA["properties"]:
        assert f"## `[{name}]`" in page or f"## `[{name}.NAME]`" in page


def test_every_page_is_in_the_list_of_pages() -> None:
    """docs/README.md names all of them, and no others."""
    named = re.findall(r"\]\((\w+\.md)\)", (DOCS / "README.md").read_text())
    assert sorted(named) == sorted(path.name for path in DOCS.glob("*.md") if path.name != "README.md")


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
