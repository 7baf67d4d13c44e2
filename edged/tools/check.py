"""Whether a value fits a JSON Schema. A grammar keeps what the board's model writes; this is for calls by hand and for
what an upstream's model wrote."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from typing import Any

from edged.host import systemd
from edged.types import JSON

# A schema with regular expressions is checked in a child process: Python's matcher can take years for an expression and
# a text that do not suit each other, and nothing in this process could stop it. Starting one takes a tenth of a second.
PATTERN_S = 5.0
# ... and jsonschema follows references itself, uncounted, where it looks for what no other word has evaluated.
WITH_PATTERNS = ("pattern", "patternProperties", "unevaluatedProperties", "unevaluatedItems")
REFERENCES = {"$ref", "$dynamicRef", "$recursiveRef"}
MOST_REFERENCES = 10_000  # followed in half a second; even a result of the largest size hardly has that many values
MOST_ERRORS = 100  # of which the best is shown: a list of a million wrong items has a million
CHILD = (
    "import json, sys; from edged.tools.check import problem_now; "
    "print(json.dumps(problem_now(*json.loads(sys.stdin.read()))))"
)
# Of schemas that say what they are written in; all others are of the newest draft, as OpenAI's are.
DRAFTS = {
    "http://json-schema.org/draft-04/schema": "Draft4Validator",
    "http://json-schema.org/draft-06/schema": "Draft6Validator",
    "http://json-schema.org/draft-07/schema": "Draft7Validator",
    "https://json-schema.org/draft/2019-09/schema": "Draft201909Validator",
}
MAX_PROBLEM = 300  # characters of a problem: it quotes the value, and goes back to a model


async def problem(schema: dict[str, JSON], value: JSON) -> str | None:
    """What is wrong with a value, in words; None where it fits. Never raises: a schema that is none fits nothing."""
    if not _has_patterns(schema):
        return problem_now(schema, value)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CHILD),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=systemd.child_environment(),
    )
    try:
        async with asyncio.timeout(PATTERN_S):
            out, _ = await process.communicate(json.dumps([schema, value]).encode())
    except TimeoutError:
        return f"it could not be checked within {PATTERN_S:.0f} s: a `pattern` of its schema takes too long"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    answer: str | None = json.loads(out) if process.returncode == 0 else "it could not be checked"
    return answer


def problem_now(schema: dict[str, JSON], value: JSON) -> str | None:
    """As `problem`, here and now."""
    import jsonschema
    import referencing.exceptions

    draft = DRAFTS.get(str(schema.get("$schema", "")).rstrip("#"), "Draft202012Validator")
    # an empty registry: nothing is fetched that a `$ref` may name
    try:
        validator: Any = _counting(getattr(jsonschema, draft))(schema, registry=referencing.Registry())
        error = jsonschema.exceptions.best_match(itertools.islice(validator.iter_errors(value), MOST_ERRORS))
    except _TooMuch:
        return f"it cannot be checked: its schema leads to itself more than {MOST_REFERENCES} times for this value"
    except (jsonschema.SchemaError, jsonschema.exceptions.UnknownType, referencing.exceptions.Unresolvable) as bad:
        return f"its schema cannot be used: {str(bad).splitlines()[0]}"[:MAX_PROBLEM]
    except RecursionError:
        return "its schema refers to itself without end"
    except (
        Exception
    ) as bad:  # jsonschema makes anything of a schema that is none, and of numbers that no float can hold
        return f"its schema cannot be used: {bad}"[:MAX_PROBLEM]
    if error is None:
        return None
    where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error.absolute_path).lstrip(".")
    return f"{where}: {error.message}"[:MAX_PROBLEM] if where else error.message[:MAX_PROBLEM]


class _TooMuch(Exception):
    """The references of a schema were followed too often."""


def _counting(draft: Any) -> Any:
    """A validator that follows at most MOST_REFERENCES references. Two of them side by side double the work with every
    level, in the schema or in the value: forty levels would take years."""
    from jsonschema import validators

    left = MOST_REFERENCES

    def counted(follow: Any) -> Any:
        def follow_once_more(*given: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise _TooMuch
            return follow(*given)

        return follow_once_more

    extend: Any = validators.extend  # untyped
    return extend(draft, {word: counted(draft.VALIDATORS[word]) for word in REFERENCES & {*draft.VALIDATORS}})


def _has_patterns(schema: JSON) -> bool:
    """Whether one of the words is anywhere in a schema. Where it is a value, a child process is started needlessly."""
    rest = [schema]
    while rest:
        item = rest.pop()
        if isinstance(item, dict):
            if any(word in item for word in WITH_PATTERNS):
                return True
            rest += item.values()
        elif isinstance(item, list):
            rest += item
    return False
