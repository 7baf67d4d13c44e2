"""The configured models as files on this board: whether they are there, and which of them answers."""

from __future__ import annotations

from collections.abc import Mapping

from edged.config import Config
from edged.engines import registry
from edged.errors import ModelUnavailable
from edged.models.examined import Examined
from edged.models.files import is_here, not_installed
from edged.residency.governor import Governor
from edged.types import Alias, ModelSpec
from edged.upstreams import LocalServers


class Installed:
    """The files of the models that edged runs.

    Args:
        aliases: what each of their names stands for.
    """

    def __init__(self, settings: Config, aliases: Mapping[str, Alias]) -> None:
        self._sources = {
            spec.path: source
            for name, alias in aliases.items()
            for spec, source in zip(alias.variants, settings.models[name].sources, strict=True)
        }
        self.examined = Examined()

    def check(self, spec: ModelSpec) -> None:
        """ModelUnavailable where a model is not on this board, with the way to get it, or was found to be none. Reads
        the disk."""
        if is_here(spec):
            if (problem := self.examined.known(spec)) is not None:
                raise ModelUnavailable(problem)
            return
        source = self._sources.get(spec.path, "")
        if not source or source.partition(":")[0] == registry.kind(spec.engine).scheme:
            raise ModelUnavailable(f"model {spec.name!r}: there is no file {spec.path}")
        raise ModelUnavailable(not_installed(spec.name, source))


class Lookup:
    """Which file a request to a model is answered with, and how a model is brought in wherever it runs."""

    def __init__(self, installed: Installed, governor: Governor, served: LocalServers) -> None:
        self._installed = installed
        self._governor = governor
        self._served = served

    async def spec(self, model: str) -> ModelSpec:
        """The file and how it is run. Where a model has several variants it is brought in: which of them fits is not
        known before.

        Raises:
            ModelUnavailable: it is not installed.
            NoMemory: it is to be brought in, and there is no room.
        """
        if len(self._governor.aliases[model].variants) > 1:
            await self._governor.load(model)
        spec = self._governor.spec(model)
        if not self._governor.is_resident(
            model
        ):  # what is loaded has been there; looking costs a request a tenth of a ms
            self._installed.check(spec)
        return spec

    async def bring_in(self, model: str) -> None:
        """Load a model, or have its server do so."""
        await (self._served.warm(model) if model in self._served else self._governor.load(model))
