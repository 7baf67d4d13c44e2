"""Tools: can they be described to a model, and does what they work with let them."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from edged.agent.grammars import cost
from edged.agent.grammars.kept import kept
from edged.agent.styles import specs
from edged.config import Config
from edged.daemon.checks.finding import About, Finding, Inspection, Level, of_error, ok, with_key
from edged.host.users import own_name
from edged.tools.kind import Problem
from edged.tools.toolbox import Toolbox, resolve, silenced

CORRECT = "correct the tool, then reload: systemctl reload edged"


async def prepare(settings: Config) -> tuple[Config, list[Finding]]:
    """The configuration with its tools resolved (Python tools are read), and what is wrong with those that no model can
    be told of as they should be; these are silenced."""
    settings, wrong = await resolve(settings)
    for name, tool in settings.tools.items():
        wrong += [settings.error(("tools", name, *key), problem) for key, problem in tool.defects()]
    found = [with_key(of_error("tools", error, CORRECT)) for error in wrong]
    for spec in specs(settings.tools):
        if (problem := cost.look(kept(spec.parameters, loose=True).schema).problem) is not None:
            error = settings.error(("tools", spec.name, "parameters"), problem)
            found.append(with_key(of_error("tools", error, CORRECT)))
    left_out = named(found)
    tools = {name: silenced(name, tool) if name in left_out else tool for name, tool in settings.tools.items()}
    return msgspec.structs.replace(settings, tools=tools), found


def named(found: Iterable[Finding]) -> frozenset[str]:
    """The tools that findings are about."""
    return frozenset(finding.subject.name for finding in found if finding.subject.about is About.TOOL)


async def problems(inspected: Inspection, toolbox: Toolbox) -> list[Finding]:
    """What keeps the tools of a toolbox from working now, and what makes the outcome of calls wrong. No tool is
    called."""
    found = [finding(inspected, each) for each in await toolbox.check() if each.tool not in inspected.left_out]
    for name, tool in inspected.settings.tools.items():
        if name not in inspected.left_out:  # such a one has lost its parameters
            found += [inspected.of_tool((name, *key), problem, CORRECT) for key, problem in tool.doubts()]
    return found


async def look(inspected: Inspection) -> list[Finding]:
    """Whether the tools can work now; one line where all can."""
    toolbox = Toolbox(inspected.settings)
    try:
        found = await problems(inspected, toolbox)
        found += [finding(inspected, caution, Level.WARN) for caution in toolbox.cautions()]
    finally:
        await toolbox.stop()
    works = (f"{len(kind.tools)} {kind.works}" for kind in toolbox.kinds if kind.works)
    return found or [ok("tools", ", ".join(works))]


def finding(inspected: Inspection, problem: Problem, level: Level = Level.FAIL) -> Finding:
    """What a kind of tools says of one of them, or of all."""
    key = ("tools", problem.tool, *problem.key) if problem.tool else ("tools",)
    if level is Level.FAIL and not inspected.sees_all:
        message = f"seen by {own_name()}: {problem.message}"
        return inspected.at("tools", key, message, "run: sudo edged doctor", Level.WARN)
    return inspected.at("tools", key, problem.message, problem.hint, level)
