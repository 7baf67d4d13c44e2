"""Whether a value fits a JSON Schema, for what no grammar of ours has made: calls by hand, and what an upstream's model
wrote."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import Any

from edged.types import JSON

# A schema with regular expressions is checked in a child process: Python's matcher can take years for an expression and
# a text that do not suit each other, and nothing in this process could stop it. Starting one takes a tenth of a second.
PATTERN_S = 5.0
WITH_PATTERNS = ("pattern", "patternProperties")
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
        sys.executable, "-c", CHILD, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
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
    told: str | None = json.loads(out) if process.returncode == 0 else "it could not be checked"
    return told


def problem_now(schema: dict[str, JSON], value: JSON) -> str | None:
    """As `problem`, here and now."""
    import jsonschema
    import referencing.exceptions

    draft = DRAFTS.get(str(schema.get("$schema", "")).rstrip("#"), "Draft202012Validator")
    # an empty registry: nothing is fetched that a `$ref` may name
    validator: Any = getattr(jsonschema, draft)(schema, registry=referencing.Registry())
    try:
        error = jsonschema.exceptions.best_match(validator.iter_errors(value))
    except (jsonschema.SchemaError, jsonschema.exceptions.UnknownType, referencing.exceptions.Unresolvable) as bad:
        return f"its schema cannot be used: {str(bad).splitlines()[0]}"[:MAX_PROBLEM]
    except RecursionError:
        return "its schema refers to itself without end"
    except (TypeError, ValueError, AttributeError, re.error) as bad:  # what jsonschema makes of a schema that is none
        return f"its schema cannot be used: {bad}"[:MAX_PROBLEM]
    if error is None:
        return None
    where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error.absolute_path).lstrip(".")
    return f"{where}: {error.message}"[:MAX_PROBLEM] if where else error.message[:MAX_PROBLEM]


def _has_patterns(schema: JSON) -> bool:
    """Whether one of the words stands anywhere in it, in a place of its own or not: a little too often does no harm."""
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
