"""Tables of TOML into structures. What msgspec refuses is explained from the structures' own types: the key that is
wrong, the value it has, and what is allowed.

A type may say in its own words what is wrong with a value outside its range, pattern or choice:
`Meta(pattern="^/", extra={"problem": "{} is not an absolute path"})`, or a function that is given the value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

import msgspec
from msgspec import inspect

from edged.config.values import NAME, Key, Mistakes, T, Wrong

MAX_SHOWN = 80  # characters of a value in a message: one line of a terminal
NAMES = {bool: "bool", int: "int", float: "float", str: "str", list: "array", dict: "object"}  # as msgspec says
TYPES: dict[type[inspect.Type], tuple[type, ...]] = {  # what values of TOML are in Python, the usual one first
    inspect.BoolType: (bool,),
    inspect.IntType: (int,),
    inspect.FloatType: (float, int),
    inspect.StrType: (str,),
    inspect.VarTupleType: (list,),
    inspect.DictType: (dict,),
    inspect.StructType: (dict,),
}

Words = str | Callable[[Any], str] | None


def convert(value: Any, kind: type[T], at: Key) -> T:
    """A table of TOML as a structure.

    Raises:
        Wrong: a key is unknown or missing, or its value has another type or is out of range.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        found = next(_mistakes(value, inspect.type_info(kind), at), None)
        raise Wrong(*(found or (at, str(error)))) from None


def entries(name: str, table: dict[str, Any], known: Collection[str]) -> list[tuple[str, Any]]:
    """The tables of a table of tables ([models], [tools], ...) by their names.

    Args:
        known: all keys that such a table may have.

    Raises:
        Wrong: a name is not allowed, or an entry is not a table.
    """
    for key, value in table.items():
        if not NAME.fullmatch(key):
            raise Wrong((name, key), "a name has 1 to 64 letters, digits, `_`, `-` or `.`, no dash in front")
        if not isinstance(value, dict):
            raise Wrong((name, key), f"is a table: write [{name}.{key}]")
        for below, inner in value.items():
            if isinstance(inner, dict) and below not in known:
                raise Wrong((name, key, below), _nested(name, key, below, inner, known))
    return list(table.items())


def _nested(name: str, key: str, below: str, inner: dict[str, Any], known: Collection[str]) -> str:
    """Of a table in a named table: most likely its name has a dot, which TOML takes for the beginning of another."""
    parts = [key, below]
    while len(inner) == 1 and isinstance(deeper := next(iter(inner.values())), dict):
        parts, inner = [*parts, next(iter(inner))], deeper
    quoted = f'[{name}."{".".join(parts)}"]'
    return f"unknown key; a name with a dot is written in quotes: {quoted}; else allowed are {', '.join(known)}"


def _mistakes(value: Any, kind: inspect.Type, at: Key) -> Mistakes:
    """Everything in a value that its type does not allow."""
    alternatives = list(_alternatives(kind))
    fitting = [
        (one, words) for one, words in alternatives if isinstance(one, inspect.AnyType) or type(value) in _types(one)
    ]
    if not fitting:
        wanted = " | ".join(dict.fromkeys(NAMES[_types(one)[0]] for one, _ in alternatives))
        got = NAMES.get(type(value), type(value).__name__)
        yield at, f"expected `{wanted}`, got `{got}`" + ("" if isinstance(value, list | dict) else f": {_short(value)}")
        return
    found = [list(_refused(value, one, words, at)) for one, words in fitting]
    if all(found):
        yield from found[0]


def _alternatives(kind: inspect.Type, words: Words = None) -> Iterator[tuple[inspect.Type, Words]]:
    """The types that a value may have, each with what its table says of values that it does not allow."""
    if isinstance(kind, inspect.Metadata):
        yield from _alternatives(kind.type, (kind.extra or {}).get("problem", words))
    elif isinstance(kind, inspect.UnionType):
        for one in kind.types:
            yield from _alternatives(one, words)
    elif not isinstance(kind, inspect.NoneType):  # TOML has no null
        yield kind, words


def _types(kind: inspect.Type) -> tuple[type, ...]:
    """What values of a type are in Python. A boolean is no number, as 1.0 is no integer."""
    if isinstance(kind, inspect.LiteralType | inspect.EnumType):
        return tuple({type(choice): None for choice in _choices(kind)})
    return TYPES[type(kind)]


def _choices(kind: inspect.LiteralType | inspect.EnumType) -> list[Any]:
    return list(kind.values) if isinstance(kind, inspect.LiteralType) else [member.value for member in kind.cls]


def _refused(value: Any, kind: inspect.Type, words: Words, at: Key) -> Mistakes:
    """What is wrong in a value of the right type: of its own range, or below it."""
    if isinstance(kind, inspect.StructType):
        yield from _struct(value, kind, at)
    elif isinstance(kind, inspect.DictType):
        for key, below in value.items():
            yield from _mistakes(below, kind.value_type, (*at, key))
    elif isinstance(kind, inspect.VarTupleType):
        if len(value) < (kind.min_length or 0):
            yield at, _said(value, words or f"has fewer than {kind.min_length} entries")
        for i, below in enumerate(value):
            yield from _mistakes(below, kind.item_type, (*at, f"[{i}]"))
    elif isinstance(kind, inspect.IntType | inspect.FloatType):
        if not (kind.ge is None or value >= kind.ge) or not (kind.le is None or value <= kind.le):
            yield at, _said(value, words or _range(kind))
    elif isinstance(kind, inspect.StrType):
        if len(value) < (kind.min_length or 0) or not re.search(kind.pattern or "", value):
            yield at, _said(value, words or f"{{}} does not match {kind.pattern}")
    elif isinstance(kind, inspect.LiteralType | inspect.EnumType) and value not in _choices(kind):
        yield at, _said(value, words or f"{{}}; allowed are {', '.join(map(str, _choices(kind)))}")


def _struct(table: dict[str, Any], kind: inspect.StructType, at: Key) -> Mistakes:
    fields = {field.encode_name: field for field in kind.fields}
    for key, value in table.items():
        if key not in fields:
            yield (*at, key), f"unknown key; allowed are {', '.join(fields)}"
        else:
            yield from _mistakes(value, fields[key].type, (*at, key))
    for key, field in fields.items():
        if field.required and key not in table:
            yield (*at, key), "is required"


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    if kind.ge is not None and kind.le is not None:
        return f"{{}} is outside {kind.ge} to {kind.le}"
    return f"{{}} is less than {kind.ge}" if kind.ge is not None else f"{{}} is more than {kind.le}"


def _said(value: Any, words: str | Callable[[Any], str]) -> str:
    return words(value) if callable(words) else words.format(_short(value))


def _short(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 256:  # Python does not write very long ones in decimal
        return "a very large number" if value > 0 else "a very small number"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def no_json(value: Any) -> str | None:
    """Why a value of TOML is none of JSON's, which models and tools are given; None where it is one."""
    rest = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, dict | list):
            rest += item.values() if isinstance(item, dict) else item
        elif isinstance(item, float) and not math.isfinite(item):
            return f"{item} is no number of JSON"
        elif isinstance(item, int) and not -(2**63) <= item < 2**64:
            return "a number has more than 64 bits"
        elif not isinstance(item, str | int | float | None):
            return f"{item} is no value of JSON: write dates and times as text"
    return None
