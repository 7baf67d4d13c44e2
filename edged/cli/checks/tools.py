"""The tools: can the Python ones be imported, do the statements fit their databases."""

from __future__ import annotations

from edged.cli.checks.finding import Finding, fail, is_the_daemons, ok, warn
from edged.config import Config, PythonTool, SqlTool
from edged.host.users import own_name
from edged.tools.python import landlock, signatures
from edged.tools.toolbox import Toolbox


async def look(settings: Config) -> list[Finding]:
    """What is wrong with tools; one line where nothing is. Nothing of them is run."""
    python = sum(isinstance(tool, PythonTool) for tool in settings.tools.values())
    sql = sum(isinstance(tool, SqlTool) for tool in settings.tools.values())
    advice = "correct the module in tools/ beside the configuration; `edged check` shows where it fails"
    _, wrong = await signatures.resolve(settings)
    found = [fail("tools", str(error), advice) for error in wrong]
    toolbox = Toolbox({n: t for n, t in settings.tools.items() if isinstance(t, SqlTool)}, settings.databases, None)
    try:
        problems = await toolbox.check()
    finally:
        await toolbox.stop()
    if python and (why := landlock.missing()):
        told = f"nothing keeps Python tools from edged's own files: {why}"
        found.append(warn("tools", told, "use a kernel with Landlock, or only modules you trust with everything"))
    found += [_statement(settings, name, why) for name, why in problems.items()]
    if not found:
        found.append(ok("tools", f"{sql} statements fit their databases, {python} Python functions can be imported"))
    return found


def _statement(settings: Config, name: str, why: str) -> Finding:
    if is_the_daemons(settings.state_dir):
        return fail("tools", f"{name}: {why}", "correct the statement or the database")
    return warn("tools", f"{name}: seen by {own_name()}: {why}", "run: sudo edged doctor")
