"""Checks of a configuration beyond its own rules: statements, files, models, grammars of the arguments of tools."""

from __future__ import annotations

from edged.agent.grammars import cost, precheck
from edged.agent.grammars.kept import kept
from edged.agent.prompts import specs
from edged.config import Config
from edged.errors import ConfigError
from edged.models.files import is_here, model_aliases, not_installed
from edged.tools.toolbox import Toolbox, resolve


async def check_all(settings: Config) -> list[str]:
    """What `edged check` finds beyond the configuration's own rules: statements, files, models."""
    settings, wrong = await with_signatures(settings)
    problems = [str(error) for error in wrong]
    problems += [str(error) for error in await tools_that_fail(settings)]
    problems += [str(error) for error in await _inexpressible(settings)]
    for name, alias in model_aliases(settings).items():
        if not settings.models[name].is_served and not any(is_here(spec) for spec in alias.variants):
            problems.append(f"{settings.files[0]}: models.{name}: {not_installed(name, settings.models[name].source)}")
    return list(dict.fromkeys(problems))  # two of them may find the same


async def tools_that_fail(settings: Config) -> list[ConfigError]:
    """Tools that cannot work now: a statement, table or file is wrong."""
    toolbox = Toolbox(settings)
    try:
        return [settings.error(("tools", problem.tool), problem.message) for problem in await toolbox.check()]
    finally:
        await toolbox.stop()


async def cautions(settings: Config) -> list[str]:
    """What keeps no tool from working, and whoever wrote the configuration should know."""
    toolbox = Toolbox(settings)
    try:
        await toolbox.check()
        return [caution.message for caution in toolbox.cautions()]
    finally:
        await toolbox.stop()


async def _inexpressible(settings: Config) -> list[ConfigError]:
    """Tools whose arguments no grammar can be made of."""
    wrong = []
    for spec in specs(settings.tools):
        try:
            await precheck.fitted_tools([spec])
        except precheck.Inexpressible as error:
            wrong.append(settings.error(("tools", spec.name, "parameters"), error.reason))
    return wrong


async def with_signatures(settings: Config) -> tuple[Config, list[ConfigError]]:
    """The configuration with its tools resolved (Python tools read), and what is wrong with tools as far as that can be
    seen without making grammars of their parameters, which takes a library that an idle daemon does not carry."""
    settings, wrong = await resolve(settings)
    for spec in specs(settings.tools):
        if (problem := cost.look(kept(spec.parameters, loose=True).schema).problem) is not None:
            wrong.append(settings.error(("tools", spec.name, "parameters"), problem))
    return settings, wrong
