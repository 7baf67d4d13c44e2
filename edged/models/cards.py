"""What clients are told of the configured models: size, age and what their files say of themselves."""

from __future__ import annotations

import asyncio
from pathlib import Path

from msgspec import Struct, structs

from edged.config import Config
from edged.engines import registry
from edged.engines.kind import FileFacts
from edged.errors import ModelUnavailable
from edged.models import catalog
from edged.models.examined import Identity, identity_of
from edged.models.files import is_here
from edged.residency.governor import Governor
from edged.types import ModelSpec


class Card(Struct, frozen=True, kw_only=True):
    """A model.

    here: it can be used without a pull. bytes: of its file. modified: when the file, or the configuration that names a
    server, was changed last, in seconds since the epoch. context: tokens that one request may use.
    identity: changes whenever the file does.
    """

    name: str
    here: bool
    bytes: int = 0
    modified: float = 0.0
    context: int
    served: bool = False
    facts: FileFacts = FileFacts()
    family: str = ""
    licence: str = ""
    adapter: str = ""
    identity: Identity = ()


class Cards:
    """The cards; a file is read once, and again when it has changed.

    Args:
        governor: knows which files the names of models stand for now.
    """

    def __init__(self, settings: Config, governor: Governor) -> None:
        self._settings, self._governor = settings, governor
        self._known: dict[tuple[str, str], tuple[Identity, FileFacts]] = {}  # by engine and path

    async def of(self, name: str) -> Card:
        """A configured model's. Of several variants it is the best one that is here."""
        model = self._settings.models[name]
        if model.is_served:
            modified = max((Path(file).stat().st_mtime for file in self._settings.files), default=0.0)
            return Card(name=name, here=True, modified=modified, context=model.context, served=True)
        return await asyncio.to_thread(self._look, name)

    def _look(self, name: str) -> Card:
        variants = self._governor.aliases[name].variants
        spec = next((each for each in variants if is_here(each)), None)
        if spec is None:
            return self._card(variants[0], here=False)
        return self._card(spec, here=True)

    def _card(self, spec: ModelSpec, *, here: bool) -> Card:
        entry = self._entry(spec)
        card = Card(
            name=spec.name,
            here=here,
            context=spec.context,
            family=entry.family if entry else "",
            licence=entry.licence if entry else "",
            adapter=spec.adapter,
        )
        identity = identity_of(Path(spec.path)) if here else ()
        if not identity:
            return card
        facts = self._facts(spec, identity)
        if entry is not None:
            parameters = facts.parameters or _in_words(entry.parameters)
            facts = structs.replace(facts, parameters=parameters, quantization=entry.quantization)
        _, size, modified_ns, _ = identity
        return structs.replace(card, bytes=size, modified=modified_ns / 1e9, facts=facts, identity=identity)

    def _facts(self, spec: ModelSpec, identity: Identity) -> FileFacts:
        """What the file says; nothing where it is no model, which its load will tell."""
        key = (spec.engine, spec.path)
        known = self._known.get(key)
        if known is None or known[0] != identity:
            try:
                facts = registry.kind(spec.engine).facts(Path(spec.path))
            except ModelUnavailable:
                facts = FileFacts()
            known = self._known[key] = identity, facts
        return known[1]

    def _entry(self, spec: ModelSpec) -> catalog.Entry | None:
        """The catalog's, where the file is one of its models."""
        sources = self._settings.models[spec.name].sources
        names = [source.partition(":")[2] for source in sources if source.startswith("catalog:")]
        entries = [catalog.catalog()[name] for name in names if name in catalog.catalog()]
        here = self._settings.models_dir
        return next((one for one in entries if str(here / one.files[0].name) == spec.path), None)


def _in_words(parameters: int) -> str:
    """A number of parameters as people say it: 494.03M, 1.54B."""
    return f"{parameters / 1e9:.2f}B" if parameters >= 1e9 else f"{parameters / 1e6:.2f}M"
