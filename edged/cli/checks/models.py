"""The models: are they here, whole, and do they fit the memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edged.cli.checks.finding import Finding, fail, ok, warn
from edged.cli.common import size
from edged.cli.models.fit import calculated
from edged.config import Config
from edged.errors import ConfigError
from edged.host import memory as probe
from edged.host.users import own_name
from edged.models import catalog, pull
from edged.models.files import model_aliases, model_specs
from edged.types import SERVER_ENGINE


def look(settings: Config, status: dict[str, Any] | None) -> Iterator[Finding]:
    """Every model's file, then the memory."""
    try:
        specs = model_specs(settings)
    except ConfigError as error:
        yield fail("models", str(error), "correct it; `edged models ls` shows what there is")
        return
    try:
        for name, spec in specs.items():
            if spec.engine != SERVER_ENGINE:  # see network.servers
                yield present(settings, name)
        yield memory(settings, status)
    except PermissionError as error:
        yield warn("models", f"{error.filename} may not be looked into by {own_name()}", "run: sudo edged doctor")


def present(settings: Config, name: str) -> Finding:
    """Whether a model's files are here with the right size; of several variants one is enough."""
    found = [_present(settings, name, source) for source in settings.models[name].sources]
    here = [finding for finding in found if finding.do is None]
    if len(found) == 1 or not here:
        return found[0]
    if len(here) < len(found):
        gone = next(finding for finding in found if finding.do)
        return warn("models", f"{len(here)} of {len(found)} variants are here; {gone.message}", gone.do or "")
    return ok("models", "; ".join(finding.message for finding in found))


def _present(settings: Config, name: str, source: str) -> Finding:
    now = model_specs(settings)[name].path
    file = catalog.resolve(source, settings.models_dir)
    if now != str(file.path):  # it was updated, and its file is there
        return ok("models", f"{name}: {now}, by an update")
    if file.present():
        return ok("models", f"{name}: {file.path}, {size(sum(path.stat().st_size for path in file.paths()))}")
    if not file.files:
        return fail("models", f"{name}: there is no file {file.path}", f"put it there, or change models.{name}.source")
    fetch = f"run: edged models pull {source.removeprefix('catalog:')} --models-dir {settings.models_dir}"
    for spec in file.files:
        path = file.path.with_name(spec.name)
        if path.is_file() and spec.bytes is not None and path.stat().st_size != spec.bytes:
            return fail("models", f"{name}: {path} has {path.stat().st_size} bytes instead of {spec.bytes}", fetch)
    begun = f"; {size(pull.partial(file))} of an interrupted pull are kept" if pull.partial(file) else ""
    return fail("models", f"{name} is not installed{begun}", fetch)


def memory(settings: Config, status: dict[str, Any] | None) -> Finding:
    """Whether at least the smallest model fits the budget and what is free now. A running daemon's budget counts: its
    cgroup may be another one than ours."""
    budget = status["memory"]["budget_bytes"] if status else settings.budget_bytes(probe.board_bytes())
    ours = [name for name, model in settings.models.items() if not model.is_served]
    needed = {name: taken for name in ours if (taken := _needed(settings, name)) is not None}
    if not needed:
        return ok("memory", f"the budget is {size(budget)}; what the models need is not known before they are here")
    name, least = min(needed.items(), key=lambda item: item[1])
    told = f"the smallest model, {name}, needs about {size(least)}; the budget is {size(budget)}"
    smaller = f"configure a smaller model (the smallest is {catalog.smallest().name}), or a smaller context"
    if least > budget:
        return fail("memory", told, f"raise [memory] budget, or {smaller}")
    available = probe.available_bytes()
    known = status["models"].values() if status else ()
    loaded = any(model["state"] == "ready" and not model.get("server") for model in known)
    if available is not None and not loaded and least > available - settings.reserve_bytes:
        told += f", but only {size(available)} are available, of which {settings.memory.reserve} are reserved"
        return warn("memory", told, f"end other programs, or {smaller}")
    if never := sorted(other for other, taken in needed.items() if taken > budget):
        larger = ", ".join(f"{other} ({size(needed[other])})" for other in never)
        return warn("memory", f"{told}, which is too small for {larger}", "raise [memory] budget, or take them out")
    return ok("memory", f"{told}, and {size(available)} are available")


def _needed(settings: Config, name: str) -> int | None:
    """Bytes a model takes, in the smallest of its variants that is here; None where there is none, or it does not
    tell."""
    needs = (calculated(spec) for spec in model_aliases(settings)[name].variants)
    return min((need for need in needs if need is not None), default=None)
