"""Models: is what they are loaded from on this board, and is it what it should be."""

from __future__ import annotations

from collections.abc import Iterator

from edged.config import Config
from edged.daemon.checks.finding import Finding, Inspection, Level, ok
from edged.engines import registry
from edged.errors import ModelUnavailable
from edged.host.users import own_name
from edged.models import calibrations, catalog
from edged.models.catalog import ModelFile
from edged.models.examined import Examined
from edged.models.files import is_here, model_aliases, not_installed
from edged.types import ModelSpec


def look(inspected: Inspection, examined: Examined | None = None, *, closely: bool = True) -> Iterator[Finding]:
    """Every model that this board loads. Blocks.

    Args:
        examined: what is known of the files, of a running daemon.
        closely: read the headers of files that nobody has read yet; up to a tenth of a second for each.
    """
    settings, examined = inspected.settings, examined or Examined()
    for name, alias in model_aliases(settings).items():
        if settings.models[name].is_served:
            continue
        try:
            yield _model(inspected, name, alias.variants, examined, closely=closely)
        except PermissionError as error:
            message = f"{error.filename} may not be looked into by {own_name()}"
            yield inspected.at("models", ("models", name), message, "run: sudo edged doctor", Level.WARN)


def scores(inspected: Inspection) -> Iterator[Finding]:
    """Agents whose `min_confidence` cannot count in probabilities: nobody has looked how often their model is right.
    Blocks."""
    settings = inspected.settings
    specs = {name: alias.variants[0] for name, alias in model_aliases(settings).items()}
    for name, agent in settings.agents.items():
        if agent.min_confidence in ("auto", 0) or agent.model in settings.served:
            continue
        if not calibrations.is_there(settings.state_dir / calibrations.FOLDER, name, specs[agent.model]):
            message = "counts in scores, which are no probabilities: the model has no calibration"
            do = f"run: edged calibrate {name}"
            yield inspected.at("models", ("agents", name, "min_confidence"), message, do, Level.WARN)


def learning(inspected: Inspection) -> Iterator[Finding]:
    """Agents that learn and have no use for it: a second look is for calls that are unsure, of models that are shown no
    examples anyway. Blocks."""
    settings = inspected.settings
    specs = {name: alias.variants[0] for name, alias in model_aliases(settings).items()}
    for name, agent in settings.agents.items():
        if not agent.learn or agent.model in settings.served:
            continue
        spec = specs[agent.model]
        at = ("agents", name, "learn")
        try:
            taught = registry.chat_template(spec).taught
        except (ModelUnavailable, PermissionError):  # the check of the model says why
            continue
        if not taught:
            message = "the model has no adapter, so its prompts have the tools' own examples and no others"
            yield inspected.at("models", at, message, "leave it out, or take the default model", Level.WARN)
        elif agent.min_confidence == "auto" and not calibrations.is_there(
            settings.state_dir / calibrations.FOLDER, name, spec
        ):
            message = 'no call is unsure: the model has no calibration, and min_confidence is "auto"'
            yield inspected.at("models", at, message, f"run: edged calibrate {name}", Level.WARN)


def _model(
    inspected: Inspection, name: str, variants: tuple[ModelSpec, ...], examined: Examined, *, closely: bool
) -> Finding:
    """Whether a model can be loaded; of several variants one is enough."""
    settings = inspected.settings
    at = ("models", name, "variants" if settings.models[name].variants else "source")
    wrong: list[tuple[str, str]] = []
    for spec, source in zip(variants, settings.models[name].sources, strict=True):
        if not is_here(spec):
            wrong.append(_absent(settings, name, spec, source))
            continue
        file = _file(settings, spec, source)
        problem = examined.examine(spec, file) if closely else examined.known(spec)
        if problem is not None:
            wrong.append((problem, _how_to_get(settings, source) or "put the right file there, or name another"))
    if not wrong:
        return ok("models", f"{name}: {', '.join(spec.path for spec in variants)}")
    message, do = wrong[0]
    if len(wrong) < len(variants):
        told = f"{len(variants) - len(wrong)} of {len(variants)} variants are here; {message}"
        return inspected.at("models", at, told, do, Level.WARN)
    return inspected.at("models", at, message, do)


def _file(settings: Config, spec: ModelSpec, source: str) -> ModelFile | None:
    """All that belongs to a model, with sizes; None for one that was updated: only the ledger of updates knows it."""
    file = catalog.resolve(source, settings.models_dir)
    return file if str(file.path) == spec.path else None


def _absent(settings: Config, name: str, spec: ModelSpec, source: str) -> tuple[str, str]:
    if fetch := _how_to_get(settings, source):
        return not_installed(name, source), fetch
    return f"model {name!r}: there is no file {spec.path}", f"put it there, or correct models.{name}"


def _how_to_get(settings: Config, source: str) -> str | None:
    """The command that pulls a model; None where nothing does."""
    if source.partition(":")[0] not in ("catalog", "https", "hf"):
        return None
    return f"run: edged models pull {source.removeprefix('catalog:')} --models-dir {settings.models_dir}"
