"""The whole configuration and the lists of its tables are the same."""

from __future__ import annotations

import msgspec
from msgspec import inspect

from edged.config.settings import NAMED, SINGLE, Config


def test_lists_of_tables_have_the_fields_and_types_of_the_whole() -> None:
    """The loader fills a Config by these lists, which no type checker can compare."""
    fields = {field.name: field.type for field in msgspec.structs.fields(Config)}
    for name, kind in SINGLE.items():
        assert fields.pop(name) in (kind, kind | None)
    for name, kind in NAMED.items():
        assert fields.pop(name) == dict[str, kind]  # type: ignore[valid-type]
    assert set(fields) == {"tools", "files", "origins"}


def test_every_table_has_a_default_except_the_required_ones() -> None:
    """So an empty file is a configuration; the node alone is made of what the board says."""
    info = inspect.type_info(Config)
    assert isinstance(info, inspect.StructType)
    assert [field.name for field in info.fields if field.required] == ["node"]
