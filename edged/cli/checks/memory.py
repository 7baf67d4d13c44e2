"""The memory: does at least the smallest model fit."""

from __future__ import annotations

from typing import Any

from edged.cli.common import size
from edged.cli.models.fit import calculated
from edged.config import Config
from edged.daemon.checks.finding import Finding, fail, ok, warn
from edged.host import memory as probe
from edged.models import catalog
from edged.models.files import model_aliases


def look(settings: Config, status: dict[str, Any] | None) -> Finding:
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
