"""What the README and the example say is so."""

from __future__ import annotations

import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from edged import config, errors
from edged.config import schema
from edged.host import fault_points
from tests.architecture.test_metrics_contract import CONTRACT as METRICS

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
    named = re.findall(r"\]\(([\w-]+\.md)\)", (DOCS / "README.md").read_text())
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


# The design's map

DESIGN = (ROOT / "edged" / "DESIGN.md").read_text(encoding="utf-8")
SEAMS = re.findall(r"^\| (an? [^|]+) \| [^|]+ \| `([\w.]+)` \| `(\w+\.py)` \|$", DESIGN, re.MULTILINE)


def test_the_map_is_one_page() -> None:
    """What a room does inside is in the room's own page, and no longer than that either."""
    assert len(DESIGN.splitlines()) <= 150
    pages = [path for path in (ROOT / "edged").rglob("README.md") if path.parent != DOCS]
    assert {path.parent.name: lines for path in pages if (lines := len(path.read_text().splitlines())) > 60} == {}


def test_every_room_has_its_page() -> None:
    """A newcomer opens the room and reads what it owns."""
    rooms = [path for path in (ROOT / "edged").iterdir() if path.is_dir() and path.name not in ("docs", "__pycache__")]
    assert not [room.name for room in rooms if not (room / "README.md").is_file() and room.name not in PLAIN]


PLAIN = {"types", "wire"}  # nouns and bytes: their module docstrings say all there is


@pytest.mark.parametrize(("seam", "place", "test"), SEAMS, ids=[seam for seam, _, _ in SEAMS])
def test_each_seam_is_one_list_with_a_test(seam: str, place: str, test: str) -> None:
    """A new member is a line in that list, and the test runs one from outside the package in the real daemon."""
    module, _, name = place.rpartition(".")
    members = getattr(importlib.import_module(module), name)
    assert isinstance(members, list)
    assert members
    source = (ROOT / "tests" / "integration" / test).read_text(encoding="utf-8")
    assert "EDGED_TEST_MEMBERS" in source


def test_all_six_seams_are_told() -> None:
    """The table is read by the test above: a row in another form would be passed over."""
    assert len(SEAMS) == 6


# The contract

CONTRACT = (DOCS / "contract.md").read_text(encoding="utf-8")


def test_contract_names_every_error_code() -> None:
    """A client branches on them."""
    codes = {kind.code for kind in _all(errors.EdgedError) if kind.code and kind.__module__ == "edged.errors"}
    listed = re.search(r"codes: `([a-z_ \n]+)`", CONTRACT)
    assert listed is not None
    assert codes == set(listed[1].split())


def test_contract_names_every_metric() -> None:
    """A dashboard is built on them."""
    known = set(re.findall(r"`([a-z_]+)(?:\{[^}]*\})?`", CONTRACT.split("## 9. Metrics")[1]))
    assert {name.removeprefix("edged_") for name in METRICS} <= known


def test_contract_names_every_command() -> None:
    """A script calls them."""
    from typer.main import get_command

    from edged.cli import commands

    top = get_command(commands.app)
    for name, command in top.commands.items():  # type: ignore[attr-defined]
        assert f"`edged {name}" in CONTRACT, name
        for below in getattr(command, "commands", {}):
            assert re.search(rf"`edged {name} [a-z|]*\b{below}\b", CONTRACT), f"{name} {below}"


def test_contract_shows_configuration_as_the_schema_has_it() -> None:
    """Anyone may copy from it."""
    shown = re.search(r"```toml\n(.*?)```", CONTRACT, re.DOTALL)
    assert shown is not None
    data = tomllib.loads(shown[1])
    problems = list(Draft202012Validator(SCHEMA).iter_errors(data))
    assert not problems, [(list(error.absolute_path), error.message) for error in problems]


def _all(kind: type[errors.EdgedError]) -> Iterator[type[errors.EdgedError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _all(below)
