"""Schemas that no grammar can be made of, or none in good time: each is refused with a word, or takes no longer than
it may."""

from __future__ import annotations

import asyncio
import contextlib
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edged.agent.grammars import cost, grammar, precheck
from edged.agent.grammars.precheck import Part
from edged.types import JSON

# What the engine may be kept from computing by one schema is 0.5 s; this machine may be busy with other things.
PATIENCE = 3


def nested(levels: int, leaf: JSON, around: Callable[[JSON], JSON]) -> Any:
    for _ in range(levels):
        leaf = around(leaf)
    return leaf


def properties(count: int, of: JSON = True) -> dict[str, JSON]:
    return {f"p{i}": of for i in range(count)}


def doubling(levels: int, both: Callable[[JSON], JSON]) -> dict[str, JSON]:
    """Each definition refers twice to the next one."""
    defs = {f"d{i}": both({"$ref": f"#/$defs/d{i + 1}"}) for i in range(levels)}
    return {"$ref": "#/$defs/d0", "$defs": {**defs, f"d{levels}": {"type": "integer"}}}


def any_of_all(groups: int, choices: int) -> dict[str, JSON]:
    one = [[{"type": "object", "properties": {f"p{i}{j}": {}}} for j in range(choices)] for i in range(groups)]
    return {"allOf": [{"anyOf": choice} for choice in one]}


def variants(count: int, required: int) -> dict[str, JSON]:
    others = properties(required - 1)
    kinds = [{"type": "object", "properties": {"k": {"const": f"v{i}"}, **others}} for i in range(count)]
    return {"oneOf": [{**kind, "required": ["k", *others]} for kind in kinds]}


FINE: dict[str, JSON] = {
    "an object": {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
    "a tree": {
        "$ref": "#/$defs/n",
        "$defs": {"n": {"type": "object", "properties": {"l": {"$ref": "#/$defs/n"}, "r": {"$ref": "#/$defs/n"}}}},
    },
    "references that double": doubling(30, lambda r: {"type": "object", "properties": {"a": r, "b": r}}),
    "references that double in allOf": doubling(30, lambda r: {"allOf": [r, r]}),
    "28 levels": nested(28, {"type": "integer"}, lambda s: {"type": "array", "items": s, "minItems": 1_000_000}),
    "900 properties": {"type": "object", "properties": properties(900, {"type": "string"})},
    "10,000 alternatives": {"enum": [f"value number {i}" for i in range(10_000)]},
    "100 variants": variants(100, 3),
    "a million items": {"type": "array", "items": {"type": "integer"}, "minItems": 1_000_000},
    "a million characters": {"type": "string", "minLength": 1_000_000},
    "a large number": {"type": "integer", "maximum": 10**300},
    "cents": {"type": "number", "multipleOf": 0.01},
    "a pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$"},
    "a pattern that makes backtracking explode": {"type": "string", "pattern": "^(a|a)*b{1000}$"},
    "a pattern of a thousand states": {"type": "string", "pattern": "^(a|b)*a(a|b){200}$"},
    "a pattern of a million characters": {"type": "string", "pattern": "^((a{1,100}){1,100}){1,100}$"},
    "fifty patterns for names": {"type": "object", "patternProperties": {f"^p{i}_": {} for i in range(50)}},
}

HOSTILE: dict[str, tuple[JSON, str]] = {
    "10,000 levels": (nested(10_000, {}, lambda s: {"items": s}), "deeper than 64 levels"),
    "10,000 levels of a constant": ({"const": nested(10_000, 1, lambda s: [s])}, "deeper than 64 levels"),
    "100 levels of allOf": (nested(100, {}, lambda s: {"allOf": [s]}), "deeper than 64 levels"),
    "itself": ({"$ref": "#"}, "no value fits it"),
    "a ring": (
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        "no value fits it",
    ),
    "a ring with company": (
        {
            "$ref": "#/$defs/a",
            "$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"type": "null", "$ref": "#/$defs/a"}},
        },
        "circular references",
    ),
    "a reference elsewhere": ({"$ref": "https://example.com/s.json"}, "example.com"),
    "4 choices to the power of 8": (any_of_all(8, 4), "brought together"),
    "2 choices to the power of 20": (any_of_all(20, 2), "brought together"),
    "2,000 variants": (variants(2000, 1), "times what it may, most of it for `oneOf`"),
    "300 variants of 11 properties": (variants(300, 11), "most of it for `oneOf`"),
    "20,000 properties": ({"properties": properties(20_000)}, "`properties`: 20000 of them"),
    "5 times 999 properties": (
        {"properties": {f"o{i}": {"properties": properties(999)} for i in range(5)}},
        "most of it for `properties`",
    ),
    "5,000 required": ({"required": [f"p{i}" for i in range(5000)]}, "`required`: 5000 of them"),
    "1,000 formats": ({"properties": properties(1000, {"format": "ipv6"})}, "most of it for `format`"),
    "a name of 200,000 characters": ({"properties": {"x" * 200_000: {}}}, "`properties`: a text of 200000"),
    "a constant of 200,000 characters": ({"const": {"a": ["x" * 200_000]}}, "`const`: a text of 200000"),
    "100,000 alternatives": ({"enum": list(range(100_000))}, "more than 50000 values"),
    "5,000 objects as alternatives": ({"enum": [{"a": i, "b": [i]} for i in range(5000)]}, "most of it for `enum`"),
    "a billion items": ({"type": "array", "maxItems": 10**9}, "`maxItems`: 1000000000 is more"),
    "10^18 characters": ({"type": "string", "maxLength": 10**18}, "`maxLength`: 10+ is more"),
    "NaN characters": ({"type": "string", "maxLength": float("nan")}, "`maxLength`: nan is more"),
    "a large prime": ({"type": "integer", "multipleOf": 123_457}, "most of it for `multipleOf`"),
    "400 primes or so": ({"properties": {f"p{i}": {"multipleOf": 9001 + 2 * i} for i in range(400)}}, "`multipleOf`"),
    "two primes together": ({"allOf": [{"multipleOf": 997}, {"multipleOf": 991}]}, "most of it for `multipleOf`"),
    "infinity": ({"multipleOf": float("inf")}, "`multipleOf` is no number"),
    "a pattern of 100,000 characters": ({"pattern": "a" * 100_000}, "`pattern`: a text of 100000"),
    "300 patterns for names": ({"patternProperties": {f"^p{i}_": {} for i in range(300)}}, "`patternProperties`"),
    "patterns that overlap": ({"patternProperties": {"a": {}, "b": {}}}, "not disjoint"),
    "40 patterns at once": (
        {"allOf": [{"type": "string", "pattern": f"(a|b)*{i}(x|y){{12}}"} for i in range(40)]},
        "its patterns take too long",
    ),
    "a pattern that looks ahead": ({"type": "string", "pattern": "^(?=a)b"}, "`pattern`: .*look-ahead"),
    "no pattern": ({"type": "string", "pattern": "("}, "`pattern`: "),
    "names that may come twice": ({"additionalProperties": {}, "minProperties": 3}, "`minProperties` is 3, and only 1"),
    "a list of types in items": ({"items": 3}, "items is no schema"),
    "nothing that fits": ({"type": "integer", "minimum": 3, "maximum": 2}, "minimum"),
    "an unknown format": ({"type": "string", "format": "int32"}, "`format`: 'int32' is not known"),
    "alternatives that overlap": (
        {"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]},
        "`oneOf` is kept only where",
    ),
}  # fmt: skip


def part(schema: JSON) -> Part:
    # as json.dumps would go down as deep as the schema does, one that is refused before is not written out
    deep = cost.look(schema).problem is not None and "levels" in str(cost.look(schema).problem)
    return Part(schema, "" if deep else grammar.answer(schema))


@pytest.mark.parametrize("name", FINE)
async def test_schemas_that_are_large_but_harmless_are_taken(name: str) -> None:
    """In the time that the engine may be kept from computing."""
    began = time.process_time()
    assert await precheck.problem([part(FINE[name])]) is None
    assert time.process_time() - began < PATIENCE * precheck.CHILD_CPU_S


@pytest.mark.parametrize("name", HOSTILE)
async def test_schemas_that_cannot_be_kept_are_refused_with_the_word(name: str) -> None:
    """In that time, too."""
    schema, said = HOSTILE[name]
    began = time.process_time()
    found = await precheck.problem([part(schema)])
    assert time.process_time() - began < PATIENCE * precheck.CHILD_CPU_S
    assert found is not None
    assert found[0] == 0
    assert re.search(said, found[1]), found[1]
    assert len(found[1]) < 400


@pytest.mark.parametrize("word", sorted(cost.NOT_KEPT))
async def test_words_that_are_not_kept_are_named_with_their_place(word: str) -> None:
    """And llguidance keeps none of them: what it begins to keep is to be offered."""
    value: JSON = {"a": ["b"]} if word in ("dependencies", "dependentRequired") else {}
    value = "#" if word in ("$dynamicRef", "$recursiveRef") else value
    inner = {"type": "object", "properties": {"x": {"anyOf": [{"type": "string", word: value}]}}}
    assert await precheck.problem([part(inner)]) == (0, f"`properties.x.anyOf[0].{word}` is not supported")
    draft = {"$schema": "https://json-schema.org/draft/2019-09/schema"} if word.startswith("$recursive") else {}
    assert precheck.failure(grammar.answer({**draft, "type": "string", word: value})) is not None


async def test_a_property_with_such_a_name_is_no_such_word() -> None:
    """What stands among names is none."""
    named = {"type": "object", "properties": {"not": {"enum": ["if"]}, "pattern": {"const": {"then": 1}}}}
    assert await precheck.problem([part(named)]) is None


async def test_the_first_part_that_is_wrong_is_told_and_what_is_known_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether it is found in this process or in one of its own."""
    precheck._known.clear()
    good, tried = part({"type": "integer"}), part({"pattern": "^x1$"})
    bad, killer = part({"pattern": "(?=a)"}), part(HOSTILE["40 patterns at once"][0])
    wrong = part({"not": {}})
    for parts, at in (([good, tried, bad, killer], 2), ([tried, killer, bad], 1), ([good, wrong, killer], 1)):
        found = await precheck.problem(parts)
        assert found is not None
        assert found[0] == at
    monkeypatch.setattr(precheck, "_looked_at", None)
    for parts in ([good, tried], [good, bad]):
        with pytest.raises(TypeError):
            await precheck.problem([*parts, part({"type": "null"})])
    monkeypatch.undo()
    assert await precheck.problem([good, tried]) is None


async def test_parts_that_are_too_much_together_are_told_of() -> None:
    """One that is known counts as much."""
    parts = [part({"properties": properties(900, {"type": "null", "title": str(i)})}) for i in range(9)]
    for few in parts:
        assert await precheck.problem([few]) is None
    found = await precheck.problem(parts)
    assert found is not None
    assert found[0] is None
    assert "times what they may together" in found[1]


async def test_as_many_reasons_are_remembered_as_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precheck, "KEPT", 3)
    parts = [part({"const": i}) for i in range(6)]
    assert await precheck.problem(parts) is None
    assert list(precheck._known) == [one.rules for one in parts[3:]]


async def test_a_pattern_that_takes_too_much_memory_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon's own memory is not touched."""
    monkeypatch.setattr(precheck, "CHILD", precheck.CHILD.replace(str(precheck.CHILD_BYTES), str(64 * 2**20)))
    found = await precheck.problem([part({"type": "string", "pattern": "^a{400000}$"})])
    assert found == (0, precheck.TOO_LARGE)


async def test_a_process_that_does_not_answer_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precheck, "CHILD_S", 0.3)
    monkeypatch.setattr(precheck, "CHILD", "import time; time.sleep(60)")
    assert await precheck.problem([part({"pattern": "^never$"})]) == (0, precheck.TOO_LONG)


def endless(child: str) -> str:
    """The program, with a grammar for which no time is enough."""
    assert "failure(rules)" in child
    return child.replace("failure(rules)", "sum(iter(int, 1))")


async def test_a_process_whose_timer_does_not_end_it_is_ended_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Well before the daemon loses its patience with it."""
    monkeypatch.setattr(precheck, "CHILD", endless(precheck.CHILD).replace("signal.setitimer(", "(lambda *_: None)("))
    monkeypatch.setattr(precheck, "CHILD_S", 120.0)  # of a busy machine; what ends it counts CPU time
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert await precheck.problem([part({"pattern": "^endless$"})]) == (0, precheck.TOO_LONG)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 6  # with the start of the process


def is_running(process: Path) -> bool:
    """A zombie is not: nobody may be there to reap it."""
    with contextlib.suppress(OSError):
        return "\nState:\tZ" not in (process / "status").read_text()
    return False


async def test_killed_daemon_leaves_no_process_behind() -> None:
    """One that is trying a pattern ends with it, and not some day."""
    program = (
        "import asyncio, sys\n"
        "from edged.agent.grammars import precheck\n"
        "precheck.CHILD = sys.argv[1]\n"
        "asyncio.run(precheck.fitted_answer({'pattern': '^endless$'}))"
    )
    child = endless(precheck.CHILD).replace(str(precheck.CHILD_CPU_S), "30")
    daemon = await asyncio.create_subprocess_exec(sys.executable, "-c", program, child)
    children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children")
    async with asyncio.timeout(60):
        while not (found := children.read_text(encoding="utf-8").split()):
            await asyncio.sleep(0.05)
        process = Path(f"/proc/{found[0]}")
        while float((process / "schedstat").read_text().split()[0]) < 1e9:  # it is past its start: computing
            await asyncio.sleep(0.05)
    daemon.kill()
    await daemon.wait()
    async with asyncio.timeout(10):
        while is_running(process):
            await asyncio.sleep(0.05)


async def test_looking_at_the_largest_schema_a_request_can_hold_is_quick() -> None:
    """256 KiB of the smallest values."""
    began = time.process_time()
    cost.look({"anyOf": [{"a": 1, "b": 2}] * 12_000})
    assert time.process_time() - began < 1.0
