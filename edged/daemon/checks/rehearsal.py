"""Agents' dialogues written out and counted, tools' schemas made into grammars: in a process of its own.

    python -m edged.daemon.checks.rehearsal PARENT

reads one `Script` as JSON from stdin and prints one `Verdict` a line, in the script's order. It loads Jinja, llguidance
and a model's vocabulary, 200 MB in all, which an idle daemon does not carry. A chat template is a program of the file's
author and a schema may hold any pattern, so either may also never end: then this process does, and whatever has no
verdict yet is what ended it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct, field

from edged.agent.dialects.chat_template import Dialect
from edged.agent.grammars import precheck
from edged.agent.prompts import STAND_IN, Prompt, Prompts
from edged.agent.styles import specs
from edged.config import Agent, Tool
from edged.engines import registry
from edged.engines.kind import ChatTemplate, TokenCount
from edged.errors import BadRequest, ModelUnavailable
from edged.host import process
from edged.tools import check
from edged.tools.toolbox import silenced
from edged.tools.values import given, sample, schema
from edged.types import JSON, Message, ToolRecord

DATA_BYTES = 2**30  # private memory; the largest vocabularies and their grammars take a third of it
NICE = 10  # requests of the daemon go before
PR_SET_PDEATHSIG = 1
PAST = (Message("user", "Hello"), Message("assistant", "Hello."))  # an earlier turn of a conversation


class Face(Tool, frozen=True, kw_only=True):
    """What a model is shown of a tool of any kind."""

    key = ""


class Part(Struct, frozen=True):
    """An agent and its tools. escalates: it may hand requests to an upstream."""

    agent: Agent
    tools: dict[str, Face]
    escalates: bool = False


class Script(Struct, frozen=True):
    """What is rehearsed: agents of one model, or tools for their own sake.

    engine: the kind that runs the model. cpu_s: seconds of CPU that one of them may take.
    """

    engine: str = ""
    path: str = ""
    template: ChatTemplate = ChatTemplate()
    parts: list[Part] = field(default_factory=list)
    tools: dict[str, Face] = field(default_factory=dict)
    cpu_s: float = 20.0


class Verdict(Struct, frozen=True, omit_defaults=True):
    """What came of a part or a tool.

    problem: why it cannot work; None: it can. fixed, shortest: tokens of the longest prefix that all its requests
    share, and of the longest prompt of a first question; None: nobody counts them. doubts: (key below the tool,
    problem) of values in the configuration that its parameters do not allow.
    """

    problem: str | None = None
    fixed: int | None = None
    shortest: int | None = None
    doubts: tuple[tuple[tuple[str, ...], str], ...] = ()


def verdicts(script: Script) -> Iterator[Verdict]:
    """One for each part, then one for each tool."""
    try:
        with _counter(script) as count:
            for part in script.parts:
                with _limited(script.cpu_s):
                    yield _rehearse(script, part, count)
    except ModelUnavailable as error:  # of the vocabulary
        yield from [Verdict(error.message)] * len(script.parts)
    for name, tool in script.tools.items():
        with _limited(script.cpu_s):
            fit = _fit(name, tool)
            yield fit if fit.problem is not None else Verdict(doubts=tuple(_outside(tool)))


def _fit(name: str, tool: Face) -> Verdict:
    try:
        asyncio.run(precheck.fitted_tools(specs({name: tool})))
    except precheck.Inexpressible as error:
        return Verdict(error.reason)
    return Verdict()


def _outside(tool: Face) -> Iterator[tuple[tuple[str, ...], str]]:
    """(key below the tool, problem) of defaults and examples that are not what the parameters allow."""
    declared = schema(tool.parameters)
    values: list[tuple[tuple[str, ...], str, JSON]] = [
        (("parameters", name, "default"), name, parameter["default"])
        for name, parameter in tool.parameters.items()
        if "default" in parameter
    ]
    for i, example in enumerate(tool.examples):
        arguments = given(tool.parameters, example.arguments).items()
        values += [(("examples", f"[{i}]", "arguments", name), name, value) for name, value in arguments]
    for key, name, value in values:
        if (problem := check.problem_now({**declared, "required": []}, {name: value})) is not None:
            yield key, f"is not what the parameter allows: {problem.removeprefix(f'{name}: ')}"


def _rehearse(script: Script, part: Part, count: TokenCount | None) -> Verdict:
    tools = {
        name: tool if _fit(name, tool).problem is None else silenced(name, tool) for name, tool in part.tools.items()
    }
    try:
        taken = asyncio.run(precheck.fitted_tools(specs(tools)))
        dialect = Dialect(script.template.source, script.template.tokens, script.template.taught)
        prompts = Prompts(part.agent, tools, dialect, taken, escalates=part.escalates)
        first = _dialogues(prompts, tools)
    except (ModelUnavailable, BadRequest) as error:  # BadRequest: the tools are too much together
        return Verdict(error.message)
    if tools and (why := precheck.failure(prompts.grammar)) is not None:
        return Verdict(f"its tools cannot be made into one grammar: {why}")
    if count is None:
        return Verdict()
    whole = max(count((*each.prefix, *each.turn)) for each in first)
    return Verdict(fixed=max(count(each.prefix) for each in first), shortest=whole)


def _dialogues(prompts: Prompts, tools: Mapping[str, Tool]) -> list[Prompt]:
    """The prompts of a first question. ModelUnavailable: the template refuses one of them, or one of those that come
    later in a dialogue, with a tool's result and an earlier turn."""
    records = [ToolRecord(name, _arguments(tool), {"ok": True}, True) for name, tool in list(tools.items())[:1]]
    prompts.answering([PAST], STAND_IN, records)
    first = [prompts.answering([], STAND_IN, [])]
    if tools:
        prompts.deciding([PAST], STAND_IN, records)
        first.append(prompts.deciding([], STAND_IN, []))
    return first


def _arguments(tool: Tool) -> dict[str, JSON]:
    with contextlib.suppress(LookupError, TypeError):  # a schema whose values cannot be guessed
        return sample(tool.parameters)
    return {}


@contextlib.contextmanager
def _counter(script: Script) -> Iterator[TokenCount | None]:
    """Counts the tokens of a prompt; None where the kind of engine does not count, or is none of edged's own."""
    kind = next((kind for kind in registry.KINDS if kind.name == script.engine), None)
    counter = kind.token_counter(Path(script.path)) if kind is not None and script.parts else None
    if counter is None:
        yield None
    else:
        with counter as count:
            yield count


@contextlib.contextmanager
def _limited(cpu_s: float) -> Iterator[None]:
    """SIGPROF ends the process where this takes too long."""
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def main(parent: str) -> None:
    """The process."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it died before the kernel was told
        return
    process.be_first_to_go()  # where memory runs out after all, this is what nobody misses
    os.nice(NICE)
    resource.setrlimit(resource.RLIMIT_DATA, (DATA_BYTES, DATA_BYTES))
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no verdict
    script = msgspec.json.decode(sys.stdin.buffer.read(), type=Script)
    for verdict in verdicts(script):
        out.write(msgspec.json.encode(verdict) + b"\n")


if __name__ == "__main__":
    main(sys.argv[1])
