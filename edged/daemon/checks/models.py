"""Models: is what they are loaded from on this board, and is it what it should be."""

from __future__ import annotations

from collections.abc import Iterator

from edged.config import Config
from edged.daemon.checks.finding import Finding, Inspection, Level, nearest, ok
from edged.engines import registry
from edged.errors import ConfigError, ModelUnavailable
from edged.host.users import own_name
from edged.models import catalog
from edged.models.files import Installed, model_aliases
from edged.types import ModelSpec


def look(inspected: Inspection, installed: Installed | None = None) -> Iterator[Finding]:
    """Every model that this board loads. Reads the headers of the files, up to a tenth of a second for each.

    Args:
        installed: of a running daemon, which remembers the files that it has looked at.
    """
    settings = inspected.settings
    aliases = model_aliases(settings)
    installed = installed or Installed(settings, aliases)
    for name, alias in aliases.items():
        if settings.models[name].is_served:
            continue
        try:
            yield model(inspected, name, alias.variants, installed)
        except PermissionError as error:
            message = f"{error.filename} may not be looked into by {own_name()}"
            yield inspected.at("models", ("models", name), message, "run: sudo edged doctor", Level.WARN)


def model(inspected: Inspection, name: str, variants: tuple[ModelSpec, ...], installed: Installed) -> Finding:
    """Whether a model can be loaded; of several variants one is enough."""
    settings = inspected.settings
    at = ("models", name, "variants" if settings.models[name].variants else "source")
    wrong: dict[str, str] = {}
    for spec, source in zip(variants, settings.models[name].sources, strict=True):
        try:
            installed.check(spec)
        except ModelUnavailable as error:
            wrong.setdefault(error.message, _what_to_do(settings, spec, source))
    if not wrong:
        return ok("models", f"{name}: {', '.join(spec.path for spec in variants)}")
    message, do = next(iter(wrong.items()))
    if len(wrong) < len(variants):
        here = len(variants) - len(wrong)
        return inspected.at("models", at, f"{here} of {len(variants)} variants are here; {message}", do, Level.WARN)
    return inspected.at("models", at, message, do)
