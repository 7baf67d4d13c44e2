"""Agents and what their models are told: does the model's own chat template write every dialogue, does that leave room
for an answer, and can a grammar be made of the arguments of every tool.

Finding out takes Jinja, llguidance and llama.cpp, so it is tried in a process of its own (see `rehearsal`), and the
verdicts are kept. A start uses those it has, and has the others made once it serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

import edged
from edged.config import Config, Tool
from edged.daemon.checks.finding import Finding, Inspection, Level
from edged.daemon.checks.rehearsal import Face, Part, Script, Verdict
from edged.daemon.checks.verdicts import Verdicts
from edged.engines import registry
from edged.engines.kind import ChatTemplate
from edged.errors import ModelUnavailable
from edged.host import child, memory
from edged.models.examined import identity_of
from edged.models.files import is_here, model_aliases
from edged.types import JSON, ModelSpec

log = logging.getLogger("edged.daemon.checks")

FILE = "checks.json"  # of the verdicts, in the state folder
CPU_S = 20.0  # for one agent or one tool; a hundred times what one takes on a small board
WITHIN_S = 120.0  # wall time of one process, imports and a vocabulary included; a slow card and a busy board take 30
TAKES_BYTES = 200 * 2**20  # a process with a vocabulary of 152k tokens and its grammars
LIBRARIES = ("llama_cpp_python", "llguidance", "jinja2", "jsonschema")  # what verdicts depend on beside edged itself
# A process that ends so was ended by what it tried: a template without end, a file or schema that a library dies of.
DEADLY = {signal.SIGPROF, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}


class Trial(Struct, frozen=True):
    """What is rehearsed in one process: the agents of a model, or tools for their own sake, by name. digests: of all
    that the verdict on each depends on."""

    digests: dict[str, str]
    parts: dict[str, Part] = {}
    tools: dict[str, Face] = {}
    spec: ModelSpec | None = None


def trials(settings: Config, *, offered_only: bool) -> list[Trial]:
    """All that can be rehearsed. Reads the disk, and none of the models.

    Args:
        offered_only: without the tools that no grammar is ever made of, because no agent of a model that follows
            grammars offers them.
    """
    made, offered = [], set[str]()
    for name, alias in model_aliases(settings).items():
        agents = {agent: each for agent, each in settings.agents.items() if each.model == name}
        if settings.models[name].is_served or (spec := _first_here(alias.variants)) is None:
            continue
        if not registry.kind(spec.engine).follows_grammars:
            continue
        parts = {
            agent: Part(each, {t: _face(settings.tools[t]) for t in each.tools}, settings.may_escalate(agent))
            for agent, each in agents.items()
        }
        about = [spec.engine, spec.path, *identity_of(Path(spec.path))]
        made.append(Trial({agent: _digest(about, part) for agent, part in parts.items()}, parts, spec=spec))
        offered |= {tool for each in agents.values() for tool in each.tools}
    tools = {name: _face(tool) for name, tool in settings.tools.items() if not offered_only or name in offered}
    about_tools = {name: [tool.parameters, tool.examples] for name, tool in tools.items()}
    made.append(Trial({name: _digest([], about) for name, about in about_tools.items()}, tools=tools))
    return made


async def rehearse(trial: Trial, verdicts: Verdicts) -> str | None:
    """Make the verdicts that are missing, and keep them. Returns why some are missing all the same; None: none is."""
    left = [name for name, digest in trial.digests.items() if verdicts.get(digest) is None]
    template = ChatTemplate()
    if left and trial.spec is not None:
        try:
            template = await asyncio.to_thread(registry.chat_template, trial.spec)
        except ModelUnavailable:  # the check of the models has the words for it
            return None
    while left:
        script = Script(
            engine=trial.spec.engine if trial.spec else "",
            path=trial.spec.path if trial.spec else "",
            template=template,
            cpu_s=CPU_S,
            parts=[trial.parts[name] for name in left if name in trial.parts],
            tools={name: trial.tools[name] for name in left if name in trial.tools},
        )
        made, trouble = await _in_child(script, left)
        if made:
            await asyncio.to_thread(verdicts.keep, {trial.digests[name]: verdict for name, verdict in made.items()})
        if trouble is not None:
            return f"{left[len(made)]} could not be tried: {trouble}"
        left = left[len(made) :]
    return None


def known(inspected: Inspection, trial: Trial, verdicts: Verdicts) -> Iterator[Finding]:
    """What the verdicts that there are mean."""
    for name, digest in trial.digests.items():
        if (verdict := verdicts.get(digest)) is None:
            continue
        if name in trial.parts:
            yield from _of_agent(inspected, name, verdict)
        elif verdict.problem is not None:
            yield inspected.of_tool((name, "parameters"), verdict.problem, "write the parameter otherwise")


def doubts(inspected: Inspection, trial: Trial, verdicts: Verdicts) -> Iterator[Finding]:
    """What the verdicts say of tools that can be called all the same."""
    for name, digest in trial.digests.items():
        if (verdict := verdicts.get(digest)) is not None:
            for key, problem in verdict.doubts:
                yield inspected.of_tool((name, *key), problem, "correct the value, or what the parameter allows")


def _of_agent(inspected: Inspection, name: str, verdict: Verdict) -> Iterator[Finding]:
    agent = inspected.settings.agents[name]
    context = inspected.settings.models[agent.model].context
    if verdict.problem is not None:
        do = f"correct the agent or its tools, or take another file for models.{agent.model}"
        yield inspected.at("agents", ("agents", name), verdict.problem, do)
    if verdict.fixed is None or verdict.shortest is None:
        return
    room = context - verdict.shortest
    told = f"its system text, tools and examples take {verdict.fixed} tokens of the {context} that one request may use"
    do = f"raise models.{agent.model}.context, or give the agent fewer tools and shorter texts"
    if room < 1:
        yield inspected.at("agents", ("agents", name), f"{told}: no question fits beside them", do)
    elif room < agent.max_tokens:
        message = f"{told}: beside a short question {room} are left for an answer, and max_tokens is {agent.max_tokens}"
        yield inspected.at("agents", ("agents", name, "max_tokens"), message, do, Level.WARN)


async def _in_child(script: Script, names: list[str]) -> tuple[dict[str, Verdict], str | None]:
    """(verdicts by name, in the order of the names and as far as the process came; why it came no further).

    What ended the process, for example a template without end, has a verdict that says so.
    """
    available = memory.available_bytes()
    if available is not None and available < TAKES_BYTES:
        return {}, f"it takes {TAKES_BYTES >> 20} MiB, and {available >> 20} MiB are available"
    try:
        command = (sys.executable, "-P", "-m", "edged.daemon.checks.rehearsal", str(os.getpid()))
        code, out, errors = await child.run(*command, given=msgspec.json.encode(script), within_s=WITHIN_S)
    except TimeoutError:  # an OSError, too
        return {}, f"it took longer than {WITHIN_S:.0f} s"
    except OSError as error:
        return {}, f"no process can be started: {error.strerror}"
    made = dict(zip(names, (msgspec.json.decode(line, type=Verdict) for line in out.splitlines()), strict=False))
    if len(made) == len(names):
        return made, None
    if -code in DEADLY:
        what = "takes too long" if -code == signal.SIGPROF else f"ends the process ({signal.Signals(-code).name})"
        return {**made, names[len(made)]: Verdict(f"trying it {what}")}, None
    return made, errors.decode(errors="replace").strip().rpartition("\n")[2] or f"the process ended with {code}"


def _first_here(variants: tuple[ModelSpec, ...]) -> ModelSpec | None:
    """The best variant that is on this board, as far as this user may look."""
    with contextlib.suppress(PermissionError):
        return next((spec for spec in variants if is_here(spec)), None)
    return None


def _face(tool: Tool) -> Face:
    return Face(description=tool.description, parameters=tool.parameters, examples=tool.examples)


def _digest(about: list[JSON], what: object) -> str:
    text = msgspec.json.encode([edged.__version__, _versions(), about, what], order="deterministic")
    return hashlib.sha256(text).hexdigest()


@functools.cache
def _versions() -> tuple[str, ...]:
    """The versions of the libraries that verdicts depend on, as names of folders beside them: importlib.metadata would
    say them too, and costs a megabyte of an idle daemon."""
    names: set[str] = set()
    for folder in sys.path:
        with contextlib.suppress(OSError):
            names |= {each.name for each in Path(folder or ".").iterdir() if each.suffix == ".dist-info"}
    return tuple(sorted(name for name in names if name.partition("-")[0].lower() in LIBRARIES))
