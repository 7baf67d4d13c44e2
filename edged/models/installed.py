"""The configured models as files on this board: whether they are there, and the template in each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from edged.engines.llama import gguf
from edged.engines.registry import embeds_only
from edged.errors import ModelUnavailable
from edged.models.files import not_installed
from edged.residency.governor import Governor
from edged.types import EngineKind, ModelSpec
from edged.upstreams import LocalServers


class Installed:
    """The files of the models that take memory here.

    Args:
        sources: what the configuration says of each file, by its path: how it is pulled.
        scripted: the models follow scripts, whose files their engine reads.
    """

    def __init__(self, sources: Mapping[str, str], *, scripted: bool) -> None:
        self._sources = sources
        self._scripted = scripted

    def check(self, spec: ModelSpec) -> None:
        """ModelUnavailable, with the way to pull it, where the file of a model is not there."""
        if self._scripted or Path(spec.path).is_file():
            return
        source = self._sources.get(spec.path)
        raise ModelUnavailable(
            not_installed(spec.name, source) if source else f"model {spec.name!r}: there is no file {spec.path}"
        )

    def checked(self, identity: Callable[[ModelSpec], str]) -> Callable[[ModelSpec], str]:
        """The identity of models that are installed; of the others the error says how to pull them."""

        def of(spec: ModelSpec) -> str:
            self.check(spec)
            return identity(spec)

        return of

    def template(self, path: str) -> tuple[str | None, dict[str, str]]:
        """The chat template in a model's file and the special tokens it uses. Blocks."""
        if self._scripted:
            return None, {}
        pairs = gguf.metadata(Path(path))
        template = pairs.get("tokenizer.chat_template")
        source = template if isinstance(template, str) else None
        used = source and ("bos_token" in source or "eos_token" in source)
        return source, gguf.special_tokens(Path(path), pairs) if used else {}


class Lookup:
    """Which file a request to a model is answered with, and how a model is brought in wherever it runs."""

    def __init__(self, installed: Installed, governor: Governor, served: LocalServers) -> None:
        self._installed = installed
        self._governor = governor
        self._served = served

    async def file(self, model: str) -> str:
        """The path. Where a model has several variants it is brought in: which of them fits is not known before.

        Raises:
            BadRequest: it is an embedding model.
            ModelUnavailable: it is not installed.
        """
        if len(self._governor.aliases[model].variants) > 1:
            await self._governor.load(model)
        spec = self._governor.spec(model)
        if spec.engine is EngineKind.ONNX:
            raise embeds_only(model)
        self._installed.check(spec)
        return spec.path

    async def bring_in(self, model: str) -> None:
        """Load a model, or have its server do so."""
        await (self._served.warm(model) if model in self._served else self._governor.load(model))
