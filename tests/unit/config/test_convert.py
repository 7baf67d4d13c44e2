"""What a table cannot be is said with the key, the value and what is allowed."""

from __future__ import annotations

from datetime import date, datetime, time
from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Meta, Struct

from edged.config import tools
from edged.config.convert import convert
from edged.config.settings import NAMED, SINGLE
from edged.config.values import Strict, Wrong, whole
from edged.types import JSON
from tests.support.fuzz import texts

TABLES: list[type[Struct]] = [*SINGLE.values(), *NAMED.values(), *tools.TABLES]
leaves = st.one_of(
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from([2**63, -(2**63), 10**400, -(10**4000)]),
    st.floats(),
    texts,
    st.sampled_from([date(2024, 1, 1), datetime(2024, 1, 1), time(1, 2)]),  # noqa: DTZ001  # as TOML has them
)
values = st.recursive(
    leaves, lambda below: st.lists(below, max_size=3) | st.dictionaries(texts, below, max_size=3), max_leaves=6
)


class Colour(StrEnum):
    """Some."""

    RED = "red"
    BLUE = "blue"


class Inner(Strict, frozen=True):
    """In another one."""

    size: Annotated[float, Meta(ge=0.5, le=3)]
    any: JSON = None


class Outer(Strict, frozen=True):
    """One of each kind of key."""

    number: Annotated[int, Meta(ge=1)] = 1
    little: Annotated[int, Meta(le=9)] = 1
    switch: bool = False
    colour: Colour | None = None
    mode: Literal["ro", "rw"] = "ro"
    level: Literal[0, 1] = 0
    name: Annotated[str, Meta(min_length=1, extra={"problem": "is empty; write a name"})] = "x"
    path: Annotated[str, Meta(pattern="^/", extra={"problem": "{} is no path"})] | None = None
    word: Annotated[str, Meta(pattern=whole("[a-z]+"))] = "a"
    either: Annotated[Annotated[int, Meta(ge=0)] | Literal["auto"], Meta(extra={"problem": lambda v: f"<{v}>"})] = 0
    many: tuple[Annotated[int, Meta(le=3)], ...] | bool = ()
    some: Annotated[tuple[str, ...], Meta(min_length=1)] = ()
    tables: tuple[Inner, ...] = ()
    named: dict[str, dict[str, Annotated[int, Meta(ge=0, le=3)]]] = msgspec.field(default_factory=dict)


@pytest.mark.parametrize(
    ("table", "key", "problem"),
    [
        ({"numbr": 1}, "numbr", "unknown key; allowed are number, little, switch"),
        ({"a b": 1}, "a b", "unknown key"),
        ({"number": 0}, "number", "0 is less than 1"),
        ({"number": -(16**5000)}, "number", "a very small number is less than 1"),
        ({"number": 1.0}, "number", "expected `int`, got `float`: 1.0"),
        ({"number": True}, "number", "expected `int`, got `bool`: True"),
        ({"number": "1" * 500}, "number", f"expected `int`, got `str`: '{'1' * 79}..."),
        ({"number": [1]}, "number", "expected `int`, got `array`"),
        ({"number": date(2024, 1, 1)}, "number", "expected `int`, got `date`: 2024-01-01"),
        ({"little": 10}, "little", "10 is more than 9"),
        ({"colour": "green"}, "colour", "'green'; allowed are red, blue"),
        ({"colour": 3}, "colour", "expected `str`, got `int`: 3"),
        ({"mode": "rx"}, "mode", "'rx'; allowed are ro, rw"),
        ({"level": 2}, "level", "2; allowed are 0, 1"),
        ({"name": ""}, "name", "is empty; write a name"),
        ({"path": "x"}, "path", "'x' is no path"),
        ({"word": "a\n"}, "word", r"'a\n' does not match"),
        ({"either": -1}, "either", "<-1>"),
        ({"either": "all"}, "either", "<all>"),
        ({"either": True}, "either", "expected `int | str`, got `bool`"),
        ({"many": [1, 5]}, "many.[1]", "5 is more than 3"),
        ({"many": "x"}, "many", "expected `array | bool`, got `str`"),
        ({"some": []}, "some", "has fewer than 1 entries"),
        ({"tables": [{"size": 1.0}, {}]}, "tables.[1].size", "is required"),
        ({"tables": [{"size": float("nan")}]}, "tables.[0].size", "nan is outside 0.5 to 3"),
        ({"tables": [{"size": 1, "x": 2}]}, "tables.[0].x", "unknown key; allowed are size, any"),
        ({"tables": [{"any": date(2024, 1, 1), "size": 9}]}, "tables.[0].size", "9 is outside 0.5 to 3"),
        ({"named": {"a.b": {"c": 1, "d e": 7}}}, "named.a.b.d e", "7 is outside 0 to 3"),
        ({"named": {"a": 3}}, "named.a", "expected `object`, got `int`: 3"),
    ],
)
def test_mistake_names_the_key_the_value_and_what_is_allowed(table: dict[str, Any], key: str, problem: str) -> None:
    """Of every kind of key."""
    with pytest.raises(Wrong) as caught:
        convert(table, Outer, ("top",))
    assert ".".join(caught.value.key) == f"top.{key}"
    assert caught.value.problem.startswith(problem)


@pytest.mark.parametrize("kind", TABLES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_whatever_msgspec_refuses_is_explained(kind: type[Struct], data: st.DataObject) -> None:
    """By a key in the table, in our words: nothing falls back on msgspec's, which knows no names below a table."""
    names = [field.encode_name for field in msgspec.structs.fields(kind)]
    table = data.draw(st.dictionaries(st.sampled_from(names) | texts, values, max_size=4))
    try:
        convert(table, kind, ("top",))
    except Wrong as wrong:
        assert len(wrong.key) > 1
        assert wrong.problem[:8] not in ("Expected", "Invalid ", "Object m", "Object c", "Number o")


@given(st.from_regex(whole("a|b"), fullmatch=True) | texts)
@example("a\n")
@example("")
def test_whole_pattern_is_for_all_of_the_text(text: str) -> None:
    """Also where it ends with a newline, which `$` alone lets pass."""
    try:
        msgspec.convert(text, Annotated[str, Meta(pattern=whole("a|b"))])
    except msgspec.ValidationError:
        assert text not in ("a", "b")
    else:
        assert text in ("a", "b")
