"""Finds out whether grammars can be made of schemas, before an engine has to: by making them, in a thread beside the
event loop. Those whose cost is not known beforehand are tried in a process of their own, which can be ended."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from edged.agent.grammars import grammar
from edged.agent.grammars.cost import MAX_MS, Looked, look
from edged.agent.grammars.kept import Kept, kept
from edged.engines.llama.limits import LIMITS
from edged.errors import BadRequest, NoMemory
from edged.host import child
from edged.types import JSON, ToolSpec

KEPT = 256  # reasons remembered: clients send the same few schemas again and again
CHILD_CPU_S = 0.5  # of one grammar; as long as it may then keep the engine from computing
CHILD_S = 20.0  # of all, on a board that is busy; the start of the process takes most of it
CHILD_BYTES = 512 * 2**20  # of private memory, the interpreter and llguidance included
PR_SET_PDEATHSIG = 1  # prctl.h
# It ends with the daemon. The timer bounds the CPU time of each grammar; should its signal be ignored or blocked, as a
# parent may hand it on, the kernel's limit for the process ends it a second or two later.
CHILD = f"""
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl({PR_SET_PDEATHSIG}, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit()
import json, math, resource
from edged.agent.grammars.precheck import failure
every = json.load(sys.stdin)
cpu_s = math.ceil(sum(os.times()[:2]) + {CHILD_CPU_S} * len(every)) + 1
resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
resource.setrlimit(resource.RLIMIT_DATA, ({CHILD_BYTES}, {CHILD_BYTES}))
for rules in every:
    signal.setitimer(signal.ITIMER_PROF, {CHILD_CPU_S})
    print(json.dumps(failure(rules)), flush=True)
"""
TOO_LONG_SIGNALS = {-signal.SIGPROF, -signal.SIGXCPU}
TOO_LONG, TOO_LARGE = "its patterns take too long", "its patterns take too much memory"
MAX_REASON = 300  # characters: some reasons quote the schema

QUOTED_GRAMMAR = re.compile(r"\n\s+\d+ \| ")  # how llguidance quotes the grammar's lines
NOT_IMPLEMENTED = re.compile(r'Unimplemented keys: \["(.*?)"')
UNKNOWN_FORMAT = re.compile(r"^Unknown format: (\S*)")
SAID = {  # its reasons in our words, where they speak of its own settings and insides
    "oneOf constraints": "`oneOf` is kept only where its schemas obviously exclude each other (other types, other "
    "constants of a required property); `anyOf` may do",
    "NoExtensionBias": "no value fits it",
    "initial lexer configuration": "it is too large",
    "grammar size": "it is too large",
    "schema too large": "it is too large where `allOf`, `anyOf`, `oneOf` or `$ref` are brought together",
    "recursion limit": "it is nested too deep",
}


class Inexpressible(BadRequest):
    """A JSON Schema that no grammar can be made for. tool: name of the tool whose arguments it describes; None: it is
    the answer's."""

    def __init__(self, tool: str | None, reason: str) -> None:
        what = f"tool {tool!r}: its parameters" if tool else "response_schema: it"
        super().__init__(f"{what} cannot be made into a grammar: {reason}")
        self.tool = tool
        self.reason = reason


class Part(Struct, frozen=True):
    """A schema and a grammar made of it."""

    schema: JSON
    rules: str


_known: OrderedDict[str, Looked] = OrderedDict()


async def problem(parts: Sequence[Part]) -> tuple[int | None, str] | None:
    """The first part that no grammar can be made of, and why; None for the part: all of them are too much together.
    None: nothing is wrong.

    Raises:
        NoMemory: there is none for a process to try them in.
    """
    found = {part.rules: _known[part.rules] for part in parts if part.rules in _known}
    found |= await _looked_at([part for part in parts if part.rules not in found])
    for rules, looked in found.items():
        _known[rules] = looked
        _known.move_to_end(rules)
    while len(_known) > KEPT:
        _known.popitem(last=False)
    for i, part in enumerate(parts):
        if part.rules in found and (why := found[part.rules].problem) is not None:
            return i, why
    total = sum(found[part.rules].ms for part in parts)
    return (None, f"they cost {total / MAX_MS:.1f} times what they may together") if total > MAX_MS else None


async def fitted(schemas: Sequence[dict[str, JSON]], names: Sequence[str | None] = ()) -> list[Kept]:
    """Schemas as grammars take them: whole where that works, else without what grammars keep in some cases only.

    Args:
        schemas: as their authors wrote them.
        names: of the tools whose arguments they describe; None (or none given): it is an answer's.

    Raises:
        Inexpressible: no grammar can be made of one of them, whatever is left to a check afterwards.
        BadRequest: all of them together are too much for one grammar.
        NoMemory: as `problem`.
    """
    taken = [kept(schema) for schema in schemas]
    while (wrong := await problem([Part(each.schema, grammar.answer(each.schema)) for each in taken])) is not None:
        at, why = wrong
        if at is None:
            raise BadRequest(f"tools: too much for one grammar: {why}")
        looser = kept(schemas[at], loose=True)
        # what is too much for a grammar would be as much for the check afterwards
        if looser == taken[at] or why in (TOO_LONG, TOO_LARGE):
            raise Inexpressible(names[at] if names else None, why)
        taken[at] = looser
    return taken


async def fitted_answer(schema: dict[str, JSON]) -> Kept:
    """The schema of an answer. Raises as `fitted`."""
    [taken] = await fitted([schema])
    return taken


async def offered_tools(tools: Sequence[ToolSpec]) -> dict[str, Kept]:
    """As `fitted_tools`, for tools that a configuration's checks have looked at: only schemas of which more could be
    left out are tried, so that a request for any other tool waits for no library."""
    closed = {tool.name: {"additionalProperties": False, **tool.parameters} for tool in tools}
    taken = {name: kept(schema) for name, schema in closed.items()}
    unsure = [tool for tool in tools if kept(closed[tool.name], loose=True) != taken[tool.name]]
    return taken | (await fitted_tools(unsure) if unsure else {})


async def fitted_tools(tools: Sequence[ToolSpec]) -> dict[str, Kept]:
    """The parameters of tools, by name; no argument beside those declared, unless a schema says so itself. Raises as
    `fitted`."""
    closed: list[dict[str, JSON]] = [{"additionalProperties": False, **tool.parameters} for tool in tools]
    names = [tool.name for tool in tools]
    return dict(zip(names, await fitted(closed, names), strict=True))


def failure(rules: str) -> str | None:
    """Why a grammar cannot be followed; None where it can. It is tried in this thread, now."""
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer  # only now: the engine loads it with the first model

    limits: Any = LIMITS
    matcher = LLMatcher(LLTokenizer("byte"), rules, log_level=0, limits=LLParserLimits(**limits))
    if not matcher.is_error():
        matcher.compute_ff_bytes()
        matcher.compute_bitmask()  # some show only at their beginning that they have none
    return readable(matcher.get_error()) if matcher.is_error() else None


def readable(said: str) -> str:
    """llguidance's reason without the place in a grammar that no user sees."""
    reason = QUOTED_GRAMMAR.split(said)[0].rpartition("JSON schema: ")[2].replace("<non-verbose/>", "")
    if word := NOT_IMPLEMENTED.search(reason):
        return f"`{word[1]}` is not supported"
    if kind := UNKNOWN_FORMAT.search(reason):
        return f"`format`: {kind[1]!r} is not known"
    if reason.startswith("regex parse error"):
        reason = f"`pattern`: {reason}"
    for theirs, ours in SAID.items():
        if theirs in reason:
            return ours
    return " ".join(reason.split())[:MAX_REASON]


async def _looked_at(parts: Sequence[Part]) -> dict[str, Looked]:
    """What is found out about parts, by their rules, up to the first that is wrong."""
    if not parts:
        return {}
    looked = await asyncio.to_thread(_look, parts)
    unsure = [part.rules for part in parts if part.rules in looked and _is_open(looked[part.rules])]
    if unsure:
        failures = await _tried(unsure)
        for rules in unsure[len(failures) :]:  # not tried, because the one before is wrong
            del looked[rules]
        looked |= {rules: replace(looked[rules], problem=why) for rules, why in zip(unsure, failures, strict=False)}
    return looked


def _look(parts: Sequence[Part]) -> dict[str, Looked]:
    """What can be found out in this process."""
    found: dict[str, Looked] = {}
    for part in parts:
        looked = look(part.schema)
        if looked.problem is None and looked.sure:
            looked = replace(looked, problem=failure(part.rules))
        found[part.rules] = looked
        if looked.problem is not None:
            break
    return found


def _is_open(looked: Looked) -> bool:
    return looked.problem is None and not looked.sure


async def _tried(rules: Sequence[str]) -> list[str | None]:
    """`failure` of grammars, up to the first that is wrong, in a process that is ended where one takes too much."""
    try:
        given = json.dumps(rules).encode()
        ended = await child.run(sys.executable, "-c", CHILD, str(os.getpid()), given=given, within_s=CHILD_S)
    except TimeoutError:  # an OSError, too
        return [TOO_LONG]
    except OSError as error:
        raise NoMemory(f"a schema with a pattern cannot be tried: {error.strerror}") from None
    failures: list[str | None] = [json.loads(line) for line in ended.out.splitlines()]
    if len(failures) < len(rules):
        failures.append(TOO_LONG if ended.status in TOO_LONG_SIGNALS else TOO_LARGE)
    return failures
