"""Which JSON Schemas grammars are made of. Pure.

What a grammar cannot keep is refused by name, and what would cost too much is refused before anything is made of it:
while a grammar is compiled, no model computes. llguidance has limits of its own; here is what it takes and is slow at.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from msgspec import Struct

from edged.types import JSON

# Words of JSON Schema that no grammar keeps. (llguidance refuses them too; here they have a place in the schema.)
NOT_KEPT = frozenset(
    {
        *("not", "if", "then", "else"),
        *("contains", "minContains", "maxContains", "uniqueItems", "unevaluatedItems"),
        *("propertyNames", "dependencies", "dependentRequired", "dependentSchemas", "unevaluatedProperties"),
        *("$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor"),
    }
)
ONE = ("items", "additionalItems", "additionalProperties")  # words that hold a schema,
SEVERAL = ("allOf", "anyOf", "oneOf", "prefixItems", "items")  # a list of them,
NAMED = ("properties", "patternProperties", "$defs", "definitions")  # or some by name
JOINING = ("allOf", "anyOf", "oneOf", "$ref")  # by which one value falls under several schemas
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")

MAX_LEVELS = 64  # of JSON; llguidance reads 128
MAX_VALUES = 50_000  # of JSON: they are walked through on the event loop, in 30 ms at most
MAX_TEXT = 4096  # characters of one name, constant or pattern; each step within one of 20,000 takes 5 ms
MAX_COUNT = 1_000_000  # of items or characters: beyond any context
MAX_PROPERTIES = 1000  # of one object: each step goes through those that may still come, 10 ms
# What compiling a schema costs, in ms on one core of an AMD EPYC, as measured (but for patterns, see `Looked`).
MAX_MS = 400.0  # one that costs more is not used, nor tools that do so together
PROPERTY_MS, PROPERTIES_SQUARED_MS = 0.06, 3.5e-5
FORMAT_MS = 0.4
BOUND_MS = 0.09
ALTERNATIVE_MS, INNER_VALUE_MS = 0.007, 0.05  # texts and numbers in an enum; values within its objects and lists
ONE_OF_PAIR_MS, ONE_OF_REQUIRED_MS = 0.0006, 0.0044  # each with each other, and for each property required there
PATTERN_PAIR_MS = 0.1  # patternProperties: each with each other
# The states of a number's digits, but for its factors 2 and 5. 1 kB each, too.
MULTIPLE_MS = 0.01
TOO_MUCH = 10**9  # states: far beyond MAX_MS; what would be more is not calculated
MAX_MULTIPLE_BITS = (
    256  # of a whole multipleOf: one with more is not taken apart. Powers of ten so large are no numbers
)


class _Beyond(Exception):
    """A schema is not used; the words say why."""


class Looked(Struct, frozen=True):
    """What can be seen of a schema without making a grammar of it.

    problem: why it is not used, with the place in it; None where nothing speaks against trying.
    ms: what a grammar costs.
    sure: nothing in it costs more than is known beforehand. Of patterns that is not known: a few characters that have
        to be brought together with a few others can take years.
    """

    problem: str | None
    ms: float
    sure: bool


def look(schema: JSON) -> Looked:
    """At a schema. Takes up to 0.1 s for the largest ones that a request can hold."""
    costs: dict[str, float] = defaultdict(float)
    sure = True
    try:
        _measure(schema)
        multiples: set[int] = set()
        joined = False
        for where, part in _parts(schema):
            _check(where, part)
            for word, ms in _costs(part):
                costs[word] += ms
            if "multipleOf" in part:
                multiples.add(_hard_part(where, part["multipleOf"]))
            joined = joined or any(word in part for word in JOINING)
            sure = sure and "pattern" not in part and "patternProperties" not in part
        if joined:  # a value may have to be a multiple of several
            costs["multipleOf"] += _common(multiples) * MULTIPLE_MS
    except _Beyond as beyond:
        return Looked(str(beyond), 0.0, sure)
    if (total := sum(costs.values())) > MAX_MS:
        worst = max(costs, key=lambda word: costs[word])
        return Looked(f"it costs {total / MAX_MS:.1f} times what it may, most of it for `{worst}`", total, sure)
    return Looked(None, total, sure)


def _measure(schema: JSON) -> None:
    """Its size as JSON, without recursion: it may be nested in any way."""
    level, values = [schema], 0
    for _ in range(MAX_LEVELS):
        values += len(level)
        if values > MAX_VALUES:
            raise _Beyond(f"it has more than {MAX_VALUES} values")
        below: list[JSON] = []
        for value in level:
            below += _inner(value)
        if not below:
            return
        level = below
    raise _Beyond(f"it is nested deeper than {MAX_LEVELS} levels")


def _parts(schema: JSON) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, schema) of the schema and of all in it; those that are just true or false are left out."""
    rest: list[tuple[str, JSON]] = [("", schema)]
    while rest:
        where, part = rest.pop()
        if isinstance(part, bool):
            continue
        if not isinstance(part, dict):
            raise _Beyond(f"{where or 'it'} is no schema: it is neither an object nor true or false")
        yield where, part
        rest += [(_at(where, word), part[word]) for word in ONE if word in part and not isinstance(part[word], list)]
        for word in SEVERAL:
            if isinstance(part.get(word), list):
                rest += [(f"{_at(where, word)}[{i}]", item) for i, item in enumerate(part[word])]
        for word in NAMED:
            if isinstance(part.get(word), dict):
                rest += [(_at(_at(where, word), name[:40]), item) for name, item in part[word].items()]


def _check(where: str, part: dict[str, Any]) -> None:
    """One schema, without those in it."""
    if words := sorted(NOT_KEPT & part.keys()):
        raise _Beyond(f"`{_at(where, words[0])}` is not supported")
    for word in ("properties", "patternProperties", "required", "enum", "const", "pattern"):
        value = part.get(word, ())
        for text in list(value) if word in NAMED and isinstance(value, dict) else _texts(value):
            if len(text) > MAX_TEXT:
                found = f"a text of {len(text)} characters; at most {MAX_TEXT} are taken"
                raise _Beyond(f"`{_at(where, word)}`: {found}")
    for word in ("properties", "required"):
        if _size(part.get(word)) > MAX_PROPERTIES:
            raise _Beyond(f"`{_at(where, word)}`: {_size(part[word])} of them; at most {MAX_PROPERTIES} are taken")
    for word in COUNTS:
        if isinstance(part.get(word), int | float) and not part[word] <= MAX_COUNT:
            raise _Beyond(f"`{_at(where, word)}`: {part[word]} is more than {MAX_COUNT}")
    # Names that are only matched by a pattern may come twice and are one property then.
    least, certain = part.get("minProperties"), _size(part.get("required")) + 1
    if isinstance(least, int | float) and least > certain:
        bound = f"is {least}, and only {certain} different ones can be made sure of: name more of them in `required`"
        raise _Beyond(f"`{_at(where, 'minProperties')}` {bound}")


def _costs(part: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """(word, ms) of one schema, without those in it."""
    names = max(_size(part.get("properties")), _size(part.get("required")))
    yield "properties", names * (PROPERTY_MS + names * PROPERTIES_SQUARED_MS)
    yield "patternProperties", _size(part.get("patternProperties")) ** 2 / 2 * PATTERN_PAIR_MS
    if "format" in part:
        yield "format", FORMAT_MS
    for word in BOUNDS:
        if word in part:
            yield word, BOUND_MS
    for word, value in (("enum", part.get("enum")), ("const", [part.get("const")])):
        for item in value if isinstance(value, list) else ():
            yield word, sum(1 for _ in _values(item)) * INNER_VALUE_MS if _inner(item) else ALTERNATIVE_MS
    if isinstance(part.get("oneOf"), list):
        required = max((_size(one.get("required")) for one in part["oneOf"] if isinstance(one, dict)), default=0)
        yield "oneOf", len(part["oneOf"]) ** 2 / 2 * (ONE_OF_PAIR_MS + max(required - 1, 0) * ONE_OF_REQUIRED_MS)
    if "multipleOf" in part:
        yield "multipleOf", _hard_part("", part["multipleOf"]) * MULTIPLE_MS


def _hard_part(where: str, multiple: JSON) -> int:
    """Of a multipleOf what makes it costly."""
    number = isinstance(multiple, int | float) and not isinstance(multiple, bool)
    if not number or (isinstance(multiple, float) and not math.isfinite(multiple)):
        raise _Beyond(f"`{_at(where, 'multipleOf')}` is no number")
    if isinstance(multiple, int) and multiple.bit_length() > MAX_MULTIPLE_BITS:
        return TOO_MUCH
    rest = abs(Decimal(str(multiple)).as_integer_ratio()[0])
    for factor in (2, 5):
        while rest and rest % factor == 0:
            rest //= factor
    return min(rest, TOO_MUCH) or 1


def _common(multiples: set[int]) -> int:
    """What they have in common, as far as it matters: it may have as many digits as all of them."""
    found = 1
    for multiple in multiples:
        if (found := math.lcm(found, multiple)) > TOO_MUCH:
            break
    return min(found, TOO_MUCH)


def _texts(value: JSON) -> Iterator[str]:
    """All texts in a value, names included."""
    for item in _values(value):
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            yield from item


def _values(value: JSON) -> Iterator[JSON]:
    """A value and all in it."""
    rest = [value]
    while rest:
        item = rest.pop()
        yield item
        rest += _inner(item)


def _inner(value: JSON) -> list[JSON]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def _size(value: JSON) -> int:
    return len(value) if isinstance(value, dict | list) else 0


def _at(where: str, word: str) -> str:
    return f"{where}.{word}" if where else word
