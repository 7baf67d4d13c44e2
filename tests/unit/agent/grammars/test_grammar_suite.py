"""The official JSON Schema tests against the grammars: what they call invalid cannot be written, what they call valid
can, and what is written at random is valid for somebody else's validator. Or the schema is refused with a reason."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import referencing
from llguidance import LLMatcher, LLTokenizer

from edged.agent.dialects.chat_template import write_json
from edged.agent.grammars import cost, grammar, precheck
from edged.types import JSON

SUITE = Path(__file__).parents[5] / "shared" / "data" / "json-schema-test-suite"
DRAFTS: dict[str, Any] = {
    "draft2020-12": jsonschema.Draft202012Validator,
    "draft7": jsonschema.Draft7Validator,
}
FILES = [path.relative_to(SUITE) for draft in DRAFTS for path in sorted((SUITE / draft).glob("*.json"))]
# Files of which every schema is refused: what they are about is not kept, or they refer to documents elsewhere; and one
# that has no schema but true and false.
REFUSED = {
    *("contains", "dependencies", "dependentRequired", "dependentSchemas", "dynamicRef", "if-then-else", "maxContains"),
    *("minContains", "not", "propertyNames", "unevaluatedItems", "unevaluatedProperties", "uniqueItems"),
    *("defs", "definitions", "refRemote", "vocabulary"),
    "boolean_schema",
}
WRITTEN = 12  # outputs for each schema

pytestmark = pytest.mark.skipif(not FILES, reason=f"{SUITE} is not there")


@pytest.fixture(scope="module")
def bytewise() -> Any:
    """A vocabulary of bytes."""
    return LLTokenizer("byte")


def groups(file: Path) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """(schema, its cases), the draft named in the schema. Those that are just true or false are no request's."""
    for group in json.loads((SUITE / file).read_text()):
        if isinstance(group["schema"], dict):
            draft = {"$schema": "http://json-schema.org/draft-07/schema#"} if file.parts[0] == "draft7" else {}
            yield {**draft, **group["schema"]}, group["tests"]


def made(tokenizer: Any, schema: dict[str, JSON]) -> LLMatcher | None:
    """The grammar of a schema; None where it is refused, which says why."""
    rules = grammar.answer(schema)
    reason = cost.look(schema).problem or precheck.failure(rules)
    if reason is not None:
        assert reason.strip()
        return None
    return LLMatcher(tokenizer, rules, log_level=0)


def accepts(tokenizer: Any, start: LLMatcher, value: JSON) -> bool:
    """Whether a model may write this, as we write JSON, and stop."""
    found = start.deep_copy()
    tokens = tokenizer.tokenize_bytes(write_json(value).encode("utf-8", "surrogatepass"))
    if found.validate_tokens(tokens) < len(tokens):
        return False
    found.consume_tokens(tokens)
    return bool(found.is_accepting())


# Valid values that cannot be written, and why that is right


def reordered(value: JSON) -> Iterator[JSON]:
    """Properties come in the order of the schema: the same object in all other orders."""
    if isinstance(value, dict):
        for names in itertools.permutations(value):
            yield {name: value[name] for name in names}


def shortened(value: JSON) -> JSON:
    """An integer has no fraction: 1.0 is written 1."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return [shortened(item) for item in value] if isinstance(value, list) else value


def has(schema: JSON, word: str) -> bool:
    return word in json.dumps(schema)


def excused(tokenizer: Any, start: LLMatcher, schema: dict[str, JSON], value: JSON) -> bool:
    """Formats are kept, where JSON Schema lets anything pass; and in draft 7 what stands beside a `$ref` is, too."""
    others = [*reordered(value), shortened(value)]
    strict = has(schema, '"format"') or (has(schema, "draft-07") and has(schema, '"$ref"') and has(schema, "maxItems"))
    return strict or any(accepts(tokenizer, start, other) for other in others)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_what_the_suite_calls_valid_and_nothing_else_can_be_written(bytewise: Any, file: Path) -> None:
    """Or the schema is refused, which never fails; and a file is refused whole only where that is known."""
    kept = 0
    for schema, cases in groups(file):
        start = made(bytewise, schema)
        if start is None:
            continue
        kept += 1
        for case in cases:
            can = accepts(bytewise, start, case["data"])
            if case["valid"] and not can:
                assert excused(bytewise, start, schema, case["data"]), (schema, case)
            assert not can or case["valid"], (schema, case)
    assert (kept == 0) == (file.stem in REFUSED)


# What is written at random


def write(start: LLMatcher, chance: random.Random, vocabulary: int) -> str | None:
    """One output, byte by byte, that tends to an end; None where it finds none."""
    found, out = start.deep_copy(), bytearray()
    while len(out) < 600 and not found.is_stopped():
        bits = int.from_bytes(found.compute_bitmask(), "little")
        allowed = [byte for byte in range(min(vocabulary, 256)) if bits >> byte & 1]
        long = len(out) > 60
        if found.is_accepting() and (long or not allowed or chance.random() < 0.3):
            break
        ends = [byte for byte in allowed if chr(byte) in '"}]']
        plain = [byte for byte in allowed if 32 <= byte < 127]
        some = ends if ends and (long or chance.random() < 0.35) else plain if chance.random() < 0.95 else allowed
        out.append(chance.choice(some or allowed))
        found.consume_token(out[-1])
    return out.decode() if found.is_accepting() or found.is_stopped() else None


def number(text: str) -> Decimal:
    """As it is written; beyond what decimals hold, as large as they are."""
    return Decimal(text) if len(text.lower().rpartition("e")[2]) < 6 or "e" not in text.lower() else Decimal("1e99999")


def exact_multiple(validator: Any, of: float, value: JSON, schema: JSON) -> Iterator[Any]:
    """jsonschema's own divides floats: for it 5.39 is no multiple of 0.0001."""
    if isinstance(value, int | Decimal) and not isinstance(value, bool) and Fraction(value) % Fraction(str(of)):
        yield jsonschema.ValidationError(f"{value} is no multiple of {of}")


@pytest.mark.parametrize("file", [file for file in FILES if file.stem not in REFUSED], ids=str)
def test_what_is_written_is_valid_for_another_validator(bytewise: Any, file: Path) -> None:
    """Every schema that is not refused, and every output. Numbers are read as they are written: a float keeps only the
    first 16 digits, and of a multiple of 1.5 that has more they are none."""
    chance = random.Random(str(file))
    extend: Any = jsonschema.validators.extend
    kind = extend(DRAFTS[file.parts[0]], {"multipleOf": exact_multiple})
    for schema, _ in groups(file):
        start = made(bytewise, schema)
        if start is None or has(schema, r"\\p{"):  # Python's regular expressions have no Unicode properties
            continue
        validator = kind(schema, registry=referencing.Registry())
        outputs = [write(start, chance, bytewise.vocab_size) for _ in range(WRITTEN)]
        assert any(output is not None for output in outputs), schema
        for output in outputs:
            if output is not None:
                problem = jsonschema.exceptions.best_match(
                    validator.iter_errors(json.loads(output, parse_float=number))
                )
                assert problem is None, (schema, output, problem.message)
