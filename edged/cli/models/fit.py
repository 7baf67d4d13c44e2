"""`edged models fit`, and why `pull` refuses: what models take on this board, against what it has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from msgspec import Struct, structs

from edged import config
from edged.cli import complete
from edged.cli.common import AsJson, ConfigFile, ModelsDir, print_table, row, size, table, when
from edged.cli.connection import load_config_if_any, models_dir
from edged.cli.models.speed import Measured, cached, measured
from edged.cli.outcome import Stop, print_json, reporting_errors
from edged.config import Config
from edged.engines import registry
from edged.errors import ModelUnavailable
from edged.host import memory
from edged.models import catalog, fit
from edged.models.catalog import Entry
from edged.models.files import model_aliases
from edged.types import ModelSpec

Name = Annotated[
    str | None,
    typer.Argument(metavar="[NAME]", help="Of the catalog or the configuration.", autocompletion=complete.models),
]
CONTEXT = config.Model().context  # tokens, where the configuration says nothing
LEAST_CONTEXT = 256  # tokens; the smallest a configuration may ask for


class Room(Struct, frozen=True):
    """What the board has, in bytes: RAM (or the cgroup's limit), the budget, and what is free of it now."""

    board: int
    budget: int
    now: int


class Fit(Struct, frozen=True):
    """A model on this board.

    fits: yes | not now | over budget | never. about: need_bytes is from the manifest, not from the file. Speeds are
    "about", in tokens a second; None where nothing is known. configured: its name in the configuration.
    """

    name: str
    fits: str
    need_bytes: int
    about: bool
    context: int
    installed: bool
    prefill_tokens_s: float | None = None
    decode_tokens_s: float | None = None
    configured: str | None = None


class Fits(Struct, frozen=True):
    """The JSON document."""

    board_bytes: int
    budget_bytes: int
    free_bytes: int
    measured_by: str | None
    measured_at: float | None
    machine: str | None
    models: list[Fit]


def fit_models(
    name: Name = None,
    where: ModelsDir = None,
    config_file: ConfigFile = None,
    again: Annotated[bool, typer.Option("--again", help="Measure this board's speed anew.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say which models fit this board, what they take and about how fast they are."""
    with reporting_errors(as_json):
        settings = load_config_if_any(config_file)
        folder, here = models_dir(where, config_file), room(settings)
        known = list(_known(settings, folder))
        if name is not None and not any(name in names for names, _, _ in known):
            names = ", ".join(dict.fromkeys(each for names, _, _ in known for each in names))
            raise Stop("bad_request", f"no model {name!r} in catalog or configuration; there are {names}")
        board_speed = (None if again else cached()) or measured(folder, min(here.now, here.budget))
        models = [
            _fit(entry, spec, folder, here, board_speed)
            for names, entry, spec in known
            if name is None or name in names
        ]
        document = Fits(here.board, here.budget, here.now, board_speed.by, board_speed.at, board_speed.machine, models)
    if as_json:
        print_json(document)
    else:
        _print(document, board_speed)


def room(settings: Config | None) -> Room:
    """Of this board, by the configuration or, without one, by the defaults."""
    board = memory.board_bytes()
    sizes = settings or Config(node=config.Node())
    available = memory.available_bytes()
    budget = sizes.budget_bytes(board)
    return Room(board, budget, budget if available is None else max(0, available - sizes.reserve_bytes))


def verdict(need: int, least: int, here: Room) -> str:
    """Whether a model fits. least: what it takes with the smallest context."""
    if least > here.board:
        return "never"
    if need > here.budget:
        return "over budget"
    return "yes" if need <= here.now else "not now"


def why_never(entry: Entry, here: Room) -> str | None:
    """Why a model can never run on this board, and what can; None where it may."""
    least = fit.need(entry, LEAST_CONTEXT)
    if least <= here.board:
        return None
    others = [e.name for e in catalog.catalog().values() if fit.need(e, CONTEXT) <= here.budget]
    fitting = f"what fits: {', '.join(others)}" if others else "no model of the catalog fits"
    return (
        f"it cannot run here: it needs about {size(least)} even with the smallest context, and this board (or cgroup) "
        f"has {size(here.board)}; {fitting}; --force pulls it all the same"
    )


def why_not_in_budget(entry: Entry, here: Room) -> str | None:
    """What to know before a model is pulled that may run here, but not as it is configured."""
    need = fit.need(entry, min(CONTEXT, entry.context))
    if need <= here.budget:
        return None
    return f"it needs about {size(need)} and the budget is {size(here.budget)}: raise [memory] budget, or lower context"


def _known(settings: Config | None, folder: Path) -> Iterator[tuple[tuple[str, ...], Entry | None, ModelSpec | None]]:
    """(names, entry, spec) of every model of the catalog, and of those that only the configuration has."""
    aliases = model_aliases(settings) if settings else {}
    by_path = {spec.path: spec for alias in aliases.values() for spec in alias.variants if _is_ours(settings, spec)}
    for entry in catalog.catalog().values():
        spec = by_path.pop(str(catalog.of_entry(entry, folder).path), None)
        yield (entry.name, *((spec.name,) if spec else ())), entry, spec
    for spec in by_path.values():
        yield (spec.name,), None, spec


def _is_ours(settings: Config | None, spec: ModelSpec) -> bool:
    """Whether it takes memory here that is worth counting."""
    assert settings is not None
    return not settings.models[spec.name].is_served and registry.kind(spec.engine).sizes is not None


def _fit(entry: Entry | None, spec: ModelSpec | None, folder: Path, here: Room, board_speed: Measured) -> Fit:
    context = spec.context if spec else min(CONTEXT, entry.context if entry else CONTEXT)
    asked = spec or ModelSpec(name="", path=str(catalog.of_entry(entry, folder).path) if entry else "", context=context)
    if entry is not None:
        asked = structs.replace(asked, engine=entry.engine)
    exact = calculated(asked)
    need = exact if exact is not None else fit.need(entry, context) if entry else 0
    smallest = calculated(structs.replace(asked, context=min(context, LEAST_CONTEXT)))
    least = min(need, smallest or (fit.need(entry, LEAST_CONTEXT) if entry else 0))
    speeds = fit.speed(entry, board_speed.board) if entry and registry.kind(entry.engine).generates else (None, None)
    return Fit(
        name=entry.name if entry else spec.name if spec else "",
        fits=verdict(need, least, here) if need else "not known",
        need_bytes=need,
        about=exact is None,
        context=context,
        installed=Path(asked.path).is_file(),
        prefill_tokens_s=speeds[0],
        decode_tokens_s=speeds[1],
        configured=spec.name if spec else None,
    )


def calculated(spec: ModelSpec) -> int | None:
    """Bytes that a model takes, from its file's own numbers; None where the file is not here, does not tell, or is for
    an engine whose models take none worth counting."""
    try:
        sizes = registry.kind(spec.engine).sizes
        return sizes.calculate(spec).total if sizes else None
    except (ModelUnavailable, OSError):
        return None


def _print(document: Fits, board_speed: Measured) -> None:
    right = ("NEEDS", "CONTEXT", "PROMPT/S", "TOKENS/S")
    listing = table("NAME", "FITS", "NEEDS", "CONTEXT", "PROMPT/S", "TOKENS/S", "HERE", "CONFIGURED AS", right=right)
    for m in document.models:
        about = "about " if m.about else ""
        speeds = [f"about {rate:.0f}" if rate else "-" for rate in (m.prefill_tokens_s, m.decode_tokens_s)]
        here = "yes" if m.installed else "no"
        row(listing, m.name, m.fits, f"{about}{size(m.need_bytes)}", m.context, *speeds, here, m.configured or "")
    print_table(listing)
    sizes = [size(each) for each in (document.board_bytes, document.budget_bytes, document.free_bytes)]
    print("\nboard {}, budget {}, free now {}".format(*sizes))
    print(f"speed by {board_speed.by} on {board_speed.machine}, {when(board_speed.at)}; --again measures anew")
