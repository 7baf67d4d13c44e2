"""The tools: can the Python ones be imported, do the statements fit their databases."""

from __future__ import annotations

from edged.cli.checks.finding import Finding, fail, is_the_daemons, ok, warn
from edged.config import Config
from edged.host.users import own_name
from edged.tools.kind import Problem
from edged.tools.toolbox import Toolbox, resolve


async def look(settings: Config) -> list[Finding]:
    """What is wrong with tools; one line where nothing is. Nothing of them is run."""
    _, wrong = await resolve(settings)
    advice = "correct the module in tools/ beside the configuration; `edged check` shows where it fails"
    found = [fail("tools", str(error), advice) for error in wrong]
    toolbox = Toolbox(settings)
    try:
        problems = await toolbox.check()
    finally:
        await toolbox.stop()
    found += [warn("tools", caution.message, caution.hint) for caution in toolbox.cautions()]
    found += [_broken(settings, problem) for problem in problems]
    if not found:
        works = (f"{len(kind.tools)} {kind.works}" for kind in toolbox.kinds if kind.works)
        found.append(ok("tools", ", ".join(works)))
    return found


def _broken(settings: Config, problem: Problem) -> Finding:
    if is_the_daemons(settings.state_dir):
        return fail("tools", f"{problem.tool}: {problem.message}", problem.hint)
    return warn("tools", f"{problem.tool}: seen by {own_name()}: {problem.message}", "run: sudo edged doctor")
