"""The schema says what the loader does. (That it is current: tests/architecture/test_docs.)"""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.config import schema
from edged.config.convert import convert
from edged.config.values import Strict, Wrong
from tests.support.daemon import Daemon
from tests.support.fuzz import texts
from tests.support.schema import BEYOND, VALIDATOR, faults

ROOT = Path(__file__).parents[3]
FOUND = schema.schema()
TABLES = {name: kind for name in FOUND["$defs"] for kind in schema._derived(Strict) if kind.__name__ == name}


def test_schema_is_one() -> None:
    """By the schema of schemas."""
    jsonschema.Draft202012Validator.check_schema(FOUND)


@pytest.mark.parametrize("path", ["scripts/greenhouse/edged.toml", "systemd/edged.toml"])
def test_files_that_are_shipped_fit_and_name_their_schema(path: str) -> None:
    """In the first line, as editors want it."""
    text = (ROOT / path).read_text()
    assert text.startswith("#:schema ")
    assert faults(tomllib.loads(text)) == []


def test_configuration_of_the_tests_daemon_fits(tmp_path: Path) -> None:
    """With a broker and its tool."""
    daemon = Daemon(tmp_path, broker=1883)
    assert faults(tomllib.loads(daemon.config.read_text())) == []


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("[queue]\nmax_waiting = 0", "$.queue.max_waiting: 0 is less than the minimum of 1"),
        ("[queue]\nmax_wating = 1", "$.queue: Additional properties"),
        ("[queues]", "$: Additional properties"),
        ('[databases.plant]\nmode = "rwx"\npath = "/x"', "$.databases.plant.mode: 'rwx' is not one of"),
        ('[databases."a b"]\npath = "/x"', "$.databases: 'a b' does not match"),
        ('[memory]\nreserve = "10 TB"', "$.memory.reserve: '10 TB' does not match"),
        ('[models.small]\nkv_type = "q4_0"', "$.models.small.kv_type: 'q4_0' is not one of"),
        ("[agents.house]", "$.agents.house: 'model' is a required property"),
        ('[tools.x]\ndescription = "x"', "$.tools.x: "),
        ('[tools.x]\npython = "m:f"\nsql = "SELECT 1"', "$.tools.x: "),
    ],
)
def test_schema_refuses_with_the_place(text: str, where: str) -> None:
    """Ranges, choices, unknown and missing keys, names. (The tests of the loader compare all of theirs.)"""
    [fault] = faults(tomllib.loads(text))
    assert fault.startswith(where)


leaves = st.one_of(
    *(st.booleans(), st.integers(-3, 300), st.sampled_from([2**63, 10**12, 0.5, 1.5, -1.0, 4000.0]), texts),
    st.sampled_from(["60%", "0.5%", "96MiB", "ro", "auto", "read", "retry", "/x", "catalog:x", "https://h", "local"]),
)
values = st.recursive(
    leaves, lambda below: st.lists(below, max_size=3) | st.dictionaries(texts, below, max_size=3), max_leaves=4
)


@pytest.mark.parametrize("name", TABLES)
@given(data=st.data())
def test_schema_of_a_table_refuses_what_the_loader_refuses(name: str, data: st.DataObject) -> None:
    """And accepts what it accepts."""
    kind = TABLES[name]
    fields = msgspec.structs.fields(kind)
    required = {field.encode_name: leaves for field in fields if field.required}
    optional = {field.encode_name: values for field in fields if not field.required}
    drawn = st.fixed_dictionaries(required, optional=optional) | st.dictionaries(texts | st.just("say"), values)
    table: dict[str, Any] = data.draw(drawn)
    found = list(VALIDATOR.evolve(schema={"$ref": f"#/$defs/{name}", "$defs": FOUND["$defs"]}).iter_errors(table))
    try:
        convert(table, kind, ("top",))
    except Wrong as wrong:
        assert found or BEYOND.search(wrong.problem)
    else:
        assert not found


def test_wheel_has_the_schema_and_the_pages(tmp_path: Path) -> None:
    """They are what the installed `edged` knows of itself."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"edged/config/schema.json", "edged/docs/configuration.md", "edged/docs/README.md"} <= names
