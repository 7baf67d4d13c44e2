"""`edged models ls|pull|verify|rm`: the catalog's models and what of them is on this board; and the others there.

stdout is the answer (with --json exactly one JSON document), stderr is progress and complaints.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from msgspec import Struct

from edged.cli import complete
from edged.cli.common import AsJson, ConfigFile, ModelsDir, print_table, row, table
from edged.cli.connection import load_config_if_any, models_dir
from edged.cli.models.fit import fit_models, room, why_never, why_not_in_budget
from edged.cli.models.update import rollback_model, update_model
from edged.cli.outcome import EX_DATA, EX_FAILED, EX_INTERRUPTED, EX_RETRY, print_json, reporting_errors
from edged.cli.progress import shown_progress
from edged.engines import registry
from edged.errors import ConfigError, EdgedError
from edged.models import catalog, pull
from edged.models.catalog import Entry, ModelFile, UnknownModel

T = TypeVar("T")

app = typer.Typer(name="models", help="Model weights: what there is, what is here.", no_args_is_help=True)

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME]...", help="Name in the catalog, https://... or hf:", autocompletion=complete.models),
]


class Outcome(Struct, frozen=True, omit_defaults=True):
    """What became of one model. status: pulled | present | right | wrong | removed | absent | failed."""

    name: str
    status: str
    path: str | None = None
    freed_bytes: int | None = None
    problems: list[str] = []
    error: str | None = None


class Outcomes(Struct, frozen=True):
    """The JSON document of pull, verify and rm."""

    models_dir: str
    models: list[Outcome]


class Listed(Struct, frozen=True):
    """A model of the catalog in the JSON document of ls; partial_bytes: kept of an interrupted pull."""

    name: str
    installed: bool
    partial_bytes: int
    path: str
    bytes: int
    parameters: int
    quantization: str
    context: int
    family: str
    engine: str
    licence: str
    upstream: str
    description: str
    default: bool
    sha256: str


class Other(Struct, frozen=True):
    """A weight file that no entry of the catalog describes."""

    path: str
    bytes: int


class InServer(Struct, frozen=True):
    """A configured model that a server on this board runs; model: the server's name of it."""

    name: str
    model: str
    base_url: str
    context: int


class Listing(Struct, frozen=True):
    """The JSON document of ls."""

    models_dir: str
    models: list[Listed]
    other: list[Other]
    served: list[InServer]


@app.command("ls")
def list_models(where: ModelsDir = None, config_file: ConfigFile = None, as_json: AsJson = False) -> None:
    """List the catalog, smallest model first, and what of it is here."""
    with _ended(as_json):
        folder = models_dir(where, config_file)
        listed = [_listed(entry, folder) for entry in catalog.catalog().values()]
        listing = Listing(str(folder), listed, _others(folder), _served(config_file))
        if as_json:
            print_json(listing)
        else:
            _print_table(listing)


@app.command("pull")
def pull_models(
    names: Names = None,
    where: ModelsDir = None,
    config_file: ConfigFile = None,
    force: Annotated[
        bool, typer.Option("--force", help="Fetch again what is here already, and what cannot run here.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Download models (without a name: the default one). An interrupted pull goes on where it ended."""

    async def one(model: ModelFile, report: pull.Report) -> Outcome:
        if not model.present() and model.name in catalog.catalog():
            entry, here = catalog.find(model.name), room(load_config_if_any(config_file))
            if (never := why_never(entry, here)) and not force:
                raise pull.PullFailed(never)  # not NoMemory: asking again changes nothing
            if told_of := never or why_not_in_budget(entry, here):
                print(f"{model.name}: {told_of}", file=sys.stderr)
        fetched = await pull.pull(model, progress=report, force=force)
        return Outcome(model.name, "pulled" if fetched else "present", str(model.path))

    _for_each(lambda _: names or [catalog.default().name], where, config_file, one, as_json)


@app.command("verify")
def verify_models(
    names: Names = None, where: ModelsDir = None, config_file: ConfigFile = None, as_json: AsJson = False
) -> None:
    """Compare files with the catalog's sha256 (without a name: all that are here); a wrong file is deleted."""

    async def one(model: ModelFile, report: pull.Report) -> Outcome:
        problems = await pull.verify(model, progress=report)
        return Outcome(model.name, "wrong" if problems else "right", str(model.path), problems=problems)

    _for_each(
        lambda folder: names or [model.name for model in pull.installed(folder)], where, config_file, one, as_json
    )


@app.command("rm")
def remove_models(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...", help="Name in the catalog, https://... or hf:", autocompletion=complete.models
        ),
    ],
    where: ModelsDir = None,
    config_file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Delete models and what is left of interrupted pulls."""

    async def one(model: ModelFile, report: pull.Report) -> Outcome:
        freed = await pull.remove(model, progress=report)
        return Outcome(model.name, "removed" if freed else "absent", str(model.path), freed_bytes=freed)

    _for_each(lambda _: names, where, config_file, one, as_json)


app.command("fit")(fit_models)
app.command("update")(update_model)
app.command("rollback")(rollback_model)


def _for_each(
    names: Callable[[Path], list[str]],
    where: Path | None,
    config_file: Path | None,
    one: Callable[[ModelFile, pull.Report], Coroutine[object, object, Outcome]],
    as_json: bool,
) -> None:
    """Does all of them even when one fails, prints what became of each, exits with the first failure's code.

    Args:
        names: of the models, by the folder they are in.
    """
    outcomes: list[Outcome] = []
    codes: list[int] = []
    with _ended(as_json):
        folder = models_dir(where, config_file)
        with shown_progress() as report:
            for name in names(folder):
                outcome, code = _attempt(name, folder, one, report)
                outcomes.append(outcome)
                codes.append(code)
        _print_outcomes(Outcomes(str(folder), outcomes), as_json)
    if any(codes):
        raise typer.Exit(next(code for code in codes if code))


def _attempt(
    name: str,
    folder: Path,
    one: Callable[[ModelFile, pull.Report], Coroutine[object, object, Outcome]],
    report: pull.Report,
) -> tuple[Outcome, int]:
    try:
        source = name if ":" in name else f"catalog:{name}"
        outcome = asyncio.run(one(catalog.resolve(source, folder), report))
    except EdgedError as error:
        return Outcome(name, "failed", error=error.message), exit_code(error)
    return outcome, EX_FAILED if outcome.problems else 0


def exit_code(error: EdgedError) -> int:
    """65: no such model; 75: asking again may help; 70: it will not."""
    if isinstance(error, UnknownModel):
        return EX_DATA
    return EX_RETRY if error.retryable else EX_FAILED


@contextmanager
def _ended(as_json: bool) -> Iterator[None]:
    """What ends a command as a whole, a broken catalog or configuration too, in words and as an exit code."""
    try:
        with reporting_errors(as_json):
            yield
    except KeyboardInterrupt:
        print("stopped; what has arrived is kept, and the same command goes on from there", file=sys.stderr)
        raise typer.Exit(EX_INTERRUPTED) from None


def _listed(entry: Entry, folder: Path) -> Listed:
    model = catalog.of_entry(entry, folder)
    return Listed(
        name=entry.name,
        installed=model.present(),
        partial_bytes=pull.partial(model),
        path=str(model.path),
        bytes=sum(spec.bytes or 0 for spec in entry.files),
        parameters=entry.parameters,
        quantization=entry.quantization,
        context=entry.context,
        family=entry.family,
        engine=entry.engine,
        licence=entry.licence,
        upstream=entry.upstream,
        description=entry.description,
        default=entry.default,
        sha256=entry.sha256,
    )


def _served(config_file: Path | None) -> list[InServer]:
    """Those of the configuration, if there is one that can be read: with a folder named it need not be right."""
    try:
        settings = load_config_if_any(config_file)
    except ConfigError:
        settings = None
    models = settings.served if settings else {}
    return [InServer(name, model.model, model.base_url, model.context) for name, model in models.items()]


def _others(folder: Path) -> list[Other]:
    known = {entry.files[0].name for entry in catalog.catalog().values()}
    suffixes = {kind.suffix for kind in registry.KINDS if kind.suffix}
    found = [p for p in sorted(folder.glob("*")) if p.suffix in suffixes and p.name not in known and p.is_file()]
    return [Other(str(path), path.stat().st_size) for path in found]


def _print_table(listing: Listing) -> None:
    made = table("NAME", "HERE", "SIZE", "CONTEXT", "LICENCE", "FOR", right=("SIZE", "CONTEXT"))
    for model in listing.models:
        partial = f"{model.partial_bytes * 100 // model.bytes} %" if model.partial_bytes else "no"
        purpose = model.description + (" (default)" if model.default else "")
        here = "yes" if model.installed else partial
        row(made, model.name, here, f"{model.bytes / 1e6:.0f} MB", model.context, model.licence, purpose)
    for other in listing.other:
        row(made, Path(other.path).name, "yes", f"{other.bytes / 1e6:.0f} MB", "", "", "not in the catalog")
    for served in listing.served:
        row(made, served.name, "server", "", served.context, "", f"{served.model} at {served.base_url}")
    print_table(made)
    print(f"\nin {listing.models_dir}")


def _print_outcomes(outcomes: Outcomes, as_json: bool) -> None:
    if as_json:
        print_json(outcomes)
        return
    for outcome in outcomes.models:
        if outcome.error is not None:
            print(f"{outcome.name}: {outcome.error}", file=sys.stderr)
            continue
        print(
            f"{outcome.name}: {outcome.status}"
            + (f", {outcome.path}" if outcome.status in ("pulled", "present") else "")
        )
        for problem in outcome.problems:
            print(f"  {problem}", file=sys.stderr)
