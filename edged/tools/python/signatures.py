"""Reads description and parameters of Python tools from their functions, in child processes, before the start. After
that a Python tool has both in the configuration, like any other tool."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import msgspec

from edged.config import Config, PythonTool, words_that_fail
from edged.errors import ConfigError, ToolFailed
from edged.tools.python.child import Function, Hello
from edged.tools.python.landlock import own_files
from edged.tools.python.process import END_S, Module, Process, module_of
from edged.types import JSON

logger = logging.getLogger("edged.tools")


async def resolve(settings: Config, tools: Mapping[str, PythonTool]) -> tuple[dict[str, PythonTool], list[ConfigError]]:
    """The tools with description and parameters filled in, and what is wrong with those that stay as they were. One
    child reads all functions of a module."""
    described = await _read(settings, tools)
    resolved: dict[str, PythonTool] = dict(tools)
    problems: list[ConfigError] = []
    for name, tool in tools.items():
        try:
            resolved[name] = _filled(settings, name, tool, described[name])
        except ConfigError as error:
            problems.append(error)
    return resolved, problems


async def _read(settings: Config, python: Mapping[str, PythonTool]) -> dict[str, Function]:
    """What the function of each tool says about itself, by the tool's name."""
    own = own_files(settings)
    modules = {name: module_of(tool, settings.tools_dir, own) for name, tool in python.items()}
    functions = {name: tool.python.partition(":")[2] for name, tool in python.items()}
    wanted = {one: sorted({functions[n] for n, m in modules.items() if m == one}) for one in modules.values()}
    hellos = dict(zip(wanted, await asyncio.gather(*(_introduce(m, f) for m, f in wanted.items())), strict=True))
    return {
        name: Function(problem=f"module {module.name!r} {hellos[module].problem}")
        if hellos[module].problem
        else hellos[module].functions[functions[name]]
        for name, module in modules.items()
    }


async def _introduce(module: Module, functions: list[str]) -> Hello:
    if not module.folder.is_dir():
        return Hello(problem=f"cannot be imported: there is no folder {module.folder}")
    try:
        process = await Process.start(module.name, module, functions)
    except ToolFailed as error:
        return Hello(problem=error.message)
    try:
        hello = await process.hello()
        if hello.traceback:
            logger.warning("%s: %s", module.name, hello.traceback.rstrip())
        return hello
    finally:
        if not process.ended.done():
            process.dismiss()
        await process.end(END_S)


def _filled(settings: Config, name: str, tool: PythonTool, told: Function) -> PythonTool:
    """The tool with what its function says. What the configuration says takes precedence."""
    at = ("tools", name)
    if told.problem:
        raise settings.error((*at, "python"), told.problem)
    for parameter in tool.parameters:
        if parameter not in told.parameters:
            known = ", ".join(told.parameters) or "none"
            raise settings.error((*at, "parameters", parameter), f"the function has no such parameter; it has {known}")
        if tool.parameters[parameter].get("optional") and "default" not in told.parameters[parameter]:
            problem = "the function needs a value: give the parameter a default there, as in `T | None = None`"
            raise settings.error((*at, "parameters", parameter, "optional"), problem)
    if not (tool.description.strip() or told.description):
        raise settings.error((*at, "description"), "is missing: the function has no docstring; the model chooses by it")
    parameters: dict[str, dict[str, JSON]] = {
        parameter: {**schema, **tool.parameters.get(parameter, {})} for parameter, schema in told.parameters.items()
    }
    description = tool.description.strip() or told.description
    filled = msgspec.structs.replace(tool, description=description, parameters=parameters)
    for key, problem in words_that_fail(filled):
        raise settings.error((*at, *key), problem)
    return filled
