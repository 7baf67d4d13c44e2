"""What of a JSON Schema a grammar is made of, and what is checked afterwards. Pure.

People and generators write schemas for validators, not for grammars. A word that only describes (`format: entity_id`)
or says nothing new (`propertyNames: {"type": "string"}`) must not cost a tool. So a schema is taken apart:

* what a grammar can keep stays;
* what a grammar cannot keep and a validator can check is left out, and `after` says that values have to be checked;
* what only describes is left out.

Everything left out makes the grammar looser, never tighter, so no valid value is lost. Two things make it tighter on
purpose: objects that declare their properties hold no others, as OpenAI's strict mode has it, and numbers have an end.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from edged.agent.grammars.cost import MAX_LEVELS, NAMED, ONE, SEVERAL
from edged.types import JSON

# llguidance's own list (json schema, `format`): each is a regular expression there. All others only describe.
FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown"}
)
# Words that no grammar keeps and a validator checks.
AFTERWARDS = frozenset(
    {
        *("not", "if", "then", "else"),
        *("contains", "minContains", "maxContains", "uniqueItems", "unevaluatedItems", "unevaluatedProperties"),
        *("propertyNames", "dependencies", "dependentRequired", "dependentSchemas"),
        *("$dynamicRef", "$recursiveRef"),
    }
)
# What describes and asks nothing of a value. (`$dynamicAnchor` only names a place that `$dynamicRef` leads to.)
DESCRIBING = frozenset({"$schema", "$dynamicAnchor", "$recursiveAnchor", "$comment", "$vocabulary"})
# Beside these a schema's own `properties` are not all that its value may hold.
JOINING = ("allOf", "anyOf", "oneOf", "$ref", "not", "if", "dependentSchemas", "dependencies")
OPENING = ("additionalProperties", "patternProperties", "unevaluatedProperties")  # with these it says so itself

# A model that writes 33.333... never comes to an end by itself. Digits before the point: a double holds no more than
# 16. After it: 9, because llguidance takes a step (`multipleOf`) as a double, in which smaller ones are not exact.
MOST_NUMBER, STEP = 9_999_999_999_999_999, 1e-9
MOST_INTEGER = 10**18 - 1  # what 64 bits hold in every digit
RANGE = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
MOST_RANGE = 2**62  # llguidance cannot make a range of integers that reaches further


class Kept(Struct, frozen=True):
    """A schema as a grammar takes it.

    schema: what the grammar is made of. after: values have to be checked against the original.
    left_out: words that are checked afterwards, each once, in the order in which they stand.
    """

    schema: dict[str, JSON]
    after: bool
    left_out: tuple[str, ...]


def kept(schema: dict[str, JSON], *, loose: bool = False) -> Kept:
    """Take a schema apart.

    Args:
        schema: as its author wrote it; it is not changed.
        loose: leave out, too, what grammars keep in some cases only and did not keep in this one: patterns, `oneOf`
            whose schemas overlap (it becomes `anyOf`), steps and least numbers of properties.
    """
    work = _Taking(loose, joined=_joined_references(schema))
    taken = work.part(schema, inside=False, level=0)
    return Kept(taken if isinstance(taken, dict) else {}, bool(work.left_out), tuple(dict.fromkeys(work.left_out)))


def wide(schema: dict[str, JSON]) -> dict[str, JSON]:
    """A number's schema with its range and steps as wide as grammars take them; any other as it is."""
    if schema.get("type") not in ("number", "integer") or "enum" in schema or "const" in schema:
        return schema
    taken = {word: value for word, value in schema.items() if word not in RANGE}
    _bound(taken)
    return taken


def closed(schema: dict[str, JSON]) -> dict[str, JSON]:
    """A schema for a check: objects that declare their properties hold no others, by the rule of grammars; every other
    word stays as it is."""
    made = _Closing(joined=_joined_references(schema)).part(schema, inside=False, level=0)
    return made if isinstance(made, dict) else {}


def _joined_references(schema: JSON) -> frozenset[str]:
    """Targets of `$ref`s whose value falls under other schemas, too: what stands there is not closed."""
    found: set[str] = set()
    rest: list[tuple[JSON, bool]] = [(schema, False)]
    while rest:
        value, joined = rest.pop()
        if isinstance(value, list):
            rest += [(item, joined) for item in value]
        elif isinstance(value, dict):
            if isinstance(reference := value.get("$ref"), str) and (joined or _holds_more(value)):
                found.add(reference)
            rest += [(item, joined or word == "allOf") for word, item in value.items()]
    return frozenset(found)


def _holds_more(part: dict[str, Any]) -> bool:
    """Beside a `$ref` something else says what the value may hold."""
    return any(word in part for word in ("properties", *OPENING, "allOf", "anyOf", "oneOf"))


class _Taking:
    """One schema being taken apart."""

    def __init__(self, loose: bool, joined: frozenset[str]) -> None:
        self._loose, self._joined = loose, joined
        self.left_out: list[str] = []

    def part(self, schema: JSON, *, inside: bool, level: int, place: str = "#") -> JSON:
        """One schema with all in it.

        Args:
            inside: its value falls under another schema as well, so it must not be closed.
            place: of it in the document, as `$ref` names it.
        """
        if not isinstance(schema, dict) or level > MAX_LEVELS:
            return schema
        taken = {word: value for word, value in schema.items() if self._keeps(word, value)}
        several = inside or any(word in schema for word in JOINING)
        closed = not (several or place in self._joined or any(word in schema for word in OPENING))
        if isinstance(taken.get("properties"), dict):
            if not any(word in schema for word in ("type", "enum", "const", *JOINING)):
                taken["type"] = "object"
            if closed and _may_be(taken, "object"):
                taken["additionalProperties"] = False
        self._bound(taken)
        for word in ONE:
            if isinstance(taken.get(word), dict):
                taken[word] = self.part(taken[word], inside=False, level=level + 1, place=f"{place}/{word}")
        for word in SEVERAL:
            if isinstance(taken.get(word), list):
                joining = word == "allOf" or (word in ("anyOf", "oneOf") and (inside or _holds_more_than(schema, word)))
                taken[word] = [
                    self.part(item, inside=joining, level=level + 1, place=f"{place}/{word}/{i}")
                    for i, item in enumerate(taken[word])
                ]
        for word in NAMED:
            if isinstance(taken.get(word), dict):
                taken[word] = {
                    name: self.part(item, inside=False, level=level + 1, place=f"{place}/{word}/{_escaped(name)}")
                    for name, item in taken[word].items()
                }
        if self._loose and isinstance(taken.get("oneOf"), list):
            self.left_out.append("oneOf")
            alternatives = taken.pop("oneOf")
            if "anyOf" in taken:  # one of both kinds: the second is left to the validator
                return taken
            taken["anyOf"] = alternatives
        return taken

    def _keeps(self, word: str, value: JSON) -> bool:
        """Whether a word goes into the grammar; where it does not and matters, it is checked afterwards."""
        if word in DESCRIBING or (word == "format" and value not in FORMATS):
            return False
        if word in AFTERWARDS:
            if not _says_nothing(word, value):
                self.left_out.append(word)
            return False
        if self._loose and word in ("pattern", "patternProperties", "multipleOf", "minProperties", "maxProperties"):
            self.left_out.append(word)
            return False
        return True

    def _bound(self, part: dict[str, Any]) -> None:
        _bound(part)


def _bound(part: dict[str, Any]) -> None:
    """Numbers have an end. Bounds that the schema has itself stay where they are tighter."""
    if "enum" in part or "const" in part:
        return
    kinds = part["type"] if isinstance(part.get("type"), list) else [part.get("type")]
    if "number" in kinds:
        _limit(part, MOST_NUMBER)
        part.setdefault("multipleOf", STEP)
    elif "integer" in kinds:
        _limit(part, MOST_INTEGER)


class _Closing(_Taking):
    """Only closes objects."""

    def __init__(self, joined: frozenset[str]) -> None:
        super().__init__(False, joined)

    def _keeps(self, word: str, value: JSON) -> bool:
        return True

    def _bound(self, part: dict[str, Any]) -> None:
        """Numbers stay as they are."""


def _limit(part: dict[str, Any], most: int) -> None:
    for least_word, exclusive, sign in (("minimum", "exclusiveMinimum", -1), ("maximum", "exclusiveMaximum", 1)):
        given = [part[word] for word in (least_word, exclusive) if _is_number(part.get(word))]
        if not given:
            part[least_word] = sign * most
        elif any(abs(number) > MOST_RANGE for number in given):  # a range that cannot be made; all of it is valid
            for word in (least_word, exclusive):
                if _is_number(part.get(word)) and part[word] * sign > MOST_RANGE:
                    part[word] = sign * most


def _is_number(value: JSON) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _may_be(part: dict[str, Any], kind: str) -> bool:
    kinds = part.get("type", kind)
    return kind in (kinds if isinstance(kinds, list) else [kinds])


def _holds_more_than(schema: dict[str, Any], word: str) -> bool:
    """Whether something beside these alternatives says what the value holds."""
    others = ("properties", "required", *OPENING, "allOf", "anyOf", "oneOf", "$ref")
    return any(other in schema for other in others if other != word)


def _says_nothing(word: str, value: JSON) -> bool:
    """Whether every value of JSON passes: names are texts anyway."""
    match word, value:
        case "propertyNames", True | {"type": "string"}:
            return isinstance(value, bool) or len(value) == 1
        case "uniqueItems" | "not", False:
            return True
        case (("unevaluatedProperties" | "unevaluatedItems" | "propertyNames" | "if" | "then" | "else"), True):
            return True
        case _:
            return value == {} and word not in ("not", "contains")


def _escaped(name: str) -> str:
    """A name in a JSON Pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")
