"""What the models of a configuration stand for: their files on this board, in all variants, updates included."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from edged.config import Config
from edged.engines import registry
from edged.errors import ModelUnavailable
from edged.models import adapters, catalog
from edged.models.catalog import ModelFile
from edged.models.digests import Digests
from edged.models.updates.ledger import Version, in_force, read
from edged.types import SERVER_ENGINE, Alias, KvType, ModelSpec


def model_specs(settings: Config) -> dict[str, ModelSpec]:
    """The best file of every configured model. ConfigError where a source means nothing."""
    return {name: alias.variants[0] for name, alias in model_aliases(settings).items()}


def model_aliases(settings: Config) -> dict[str, Alias]:
    """The configured models with all their variants, or the file they were updated to; one that a server runs has none.
    ConfigError where a source means nothing."""
    updated = in_force(read(settings.state_dir), {name: model.source for name, model in settings.models.items()})
    digests = Digests(settings.state_dir)
    aliases = {name: _alias(settings, name, digests) for name in settings.models}
    for name, version in updated.versions.items():
        if len(aliases[name].variants) == 1:
            adapter = adapter_of(settings, aliases, digests, name, version)
            spec = msgspec.structs.replace(aliases[name].variants[0], path=version.path, adapter=adapter)
            aliases[name] = msgspec.structs.replace(aliases[name], variants=(spec,))
    return aliases


def adapter_of(settings: Config, aliases: Mapping[str, Alias], digests: Digests, name: str, version: Version) -> str:
    """The adapter of a model with this file; empty: none, or nobody knows yet what the file is."""
    if not registry.kind(aliases[name].variants[0].engine).generates:
        return ""
    file = catalog.resolve(version.source, settings.models_dir)
    said = version.sha256 or (file.sha256 if str(file.path) == version.path else None)
    return adapters.chosen(settings.models[name].adapter, said or digests.of(Path(version.path)))


def hang_on_digests(
    settings: Config, aliases: Mapping[str, Alias], versions: Callable[[], Mapping[str, Version]]
) -> dict[str, tuple[Path, ...]]:
    """The files whose adapter is chosen by a digest that no source says, by the model's name.

    Args:
        versions: those in force, of models that have one file.
    """
    found: dict[str, tuple[Path, ...]] = {}
    now = versions()
    for name, alias in aliases.items():
        if settings.models[name].adapter != adapters.AUTO or not registry.kind(alias.variants[0].engine).generates:
            continue
        said = {str(file.path) for file in _model_files(settings, name) if file.sha256}
        paths = {spec.path for spec in alias.variants}
        if name in now:
            paths = {now[name].path} if now[name].sha256 is None else set()
        found[name] = tuple(Path(path) for path in sorted(paths - said))
    return {name: paths for name, paths in found.items() if paths}


def _model_files(settings: Config, name: str) -> list[ModelFile]:
    return [_model_file(settings, name, source) for source in settings.models[name].sources]


def is_here(spec: ModelSpec) -> bool:
    """Whether what a model is loaded from is on this board."""
    return registry.kind(spec.engine).is_present(Path(spec.path))


def _alias(settings: Config, name: str, digests: Digests) -> Alias:
    model = settings.models[name]
    if model.is_served:
        return Alias((ModelSpec(name=name, path="", context=model.context, engine=SERVER_ENGINE),))
    if model.engine is not None and model.engine not in registry.names():
        allowed = ", ".join([*registry.names(), SERVER_ENGINE])
        raise settings.error(("models", name, "engine"), f"no engine {model.engine!r}; allowed are {allowed}")
    files = _model_files(settings, name)
    engines = {file.engine or model.engine or registry.DEFAULT for file in files}
    if len(engines) > 1:
        problem = f"are files for {' and '.join(sorted(engines))}: one kind only"
        raise settings.error(("models", name, "variants"), problem)
    [engine] = engines
    generates = registry.kind(engine).generates
    if not generates:
        _check_embedding(settings, name)
    labels = [file.name for file in files]
    if len(set(labels)) < len(labels):  # files of one name in several folders
        labels = list(model.sources)
    specs = [
        ModelSpec(
            name=name,
            path=str(file.path),
            context=model.context if generates else min(model.context, file.context or model.context),
            pin=model.pin,
            threads=settings.threads(),
            engine=engine,
            kv_type=model.kv_type,
            variant=label if len(files) > 1 else "",
            adapter=adapters.chosen(model.adapter, file.sha256 or digests.of(file.path)) if generates else "",
        )
        for file, label in zip(files, labels, strict=True)
    ]
    return Alias(tuple(specs), model.min_context)


def _model_file(settings: Config, name: str, source: str) -> ModelFile:
    model = settings.models[name]
    try:
        file = catalog.resolve(source, settings.models_dir)
    except ModelUnavailable as error:
        raise settings.error(("models", name, "variants" if model.variants else "source"), error.message) from None
    by_suffix = registry.by_suffix(file.path.suffix)
    known = file.engine or (by_suffix.name if by_suffix else None)
    if model.engine is not None and known not in (None, model.engine):
        problem = f"{model.engine}, and {source!r} is a file for {known}; leave it out"
        raise settings.error(("models", name, "engine"), problem)
    return file


def _check_embedding(settings: Config, model: str) -> None:
    """Raises ConfigError where an agent is to speak with an embedding model, or where it is told what means nothing to
    it."""
    for name, agent in settings.agents.items():
        if agent.model == model:
            problem = f"{model!r} is an embedding model: it does not generate; name a language model"
            raise settings.error(("agents", name, "model"), problem)
    given = settings.models[model]
    for key, meant in (("kv_type", given.kv_type is not KvType.F16), ("min_context", given.min_context is not None)):
        if meant:
            raise settings.error(("models", model, key), "means nothing for an embedding model: leave it out")


def not_installed(name: str, source: str) -> str:
    """For people: a model is not on the board, and how to pull it."""
    return f"model {name!r} is not installed: edged models pull {source.removeprefix('catalog:')}"
