"""What models take: asked once, corrected by what they really took, kept in the store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping

from msgspec.structs import replace

from edged.errors import ModelUnavailable
from edged.interfaces import Estimate, SizeBook
from edged.types import KnownSize, MemoryNeed, ModelSpec

# How far a measurement moves a prediction. Down by little: right after a load much of what was promised is not touched
# yet (10 % less moved the 0.5B's next prediction 6 % below what a request then took), and a kernel that is short of
# memory has dropped weights that will be read again; a model must not seem to fit because of that. Up by no more than a
# quarter: what other requests take meanwhile looks like the model's, and one such measurement must not make it
# unloadable. The next one moves it again.
LEAST, MOST = 0.97, 1.25


class Sizer:
    """Implements `interfaces.Sizer`.

    Args:
        most: bytes of the largest model there can be: about larger ones nobody is asked, for they are refused anyway.
    """

    def __init__(self, estimate: Estimate, book: SizeBook, *, most: int) -> None:
        self._estimate = estimate
        self._book = book
        self._most = most
        self._libraries: dict[ModelSpec, int] = {}  # what the last prediction counted for them

    async def predict(self, spec: ModelSpec, spare: Callable[[], int]) -> MemoryNeed:
        """See interfaces.Sizer."""
        libraries = self._libraries[spec] = self._estimate.libraries()
        key = await asyncio.to_thread(self._estimate.identity, spec)
        known = await self._book.known(key)
        if known is None:
            asked = await asyncio.to_thread(self._ask, spec, spare())
            if asked is None:  # perhaps next time there is room to ask
                calculated = await asyncio.to_thread(self._estimate.calculate, spec)
                return replace(calculated, libraries=libraries)
            known = KnownSize(asked)
            await self._book.keep(key, known)
        return replace(corrected(known), libraries=libraries)

    async def observe(self, spec: ModelSpec, measured_bytes: int) -> None:
        """See interfaces.Sizer."""
        with contextlib.suppress(ModelUnavailable):  # its file went meanwhile, and with it all that was to be learned
            key = await asyncio.to_thread(self._estimate.identity, spec)
            known = await self._book.known(key)
            measured = measured_bytes - self._libraries.get(spec, 0)
            if known is not None and known.measured != measured:
                await self._book.keep(key, replace(known, measured=measured))

    def _ask(self, spec: ModelSpec, spare: int) -> MemoryNeed | None:
        if self._estimate.least(spec) > self._most or spare < self._estimate.ask_bytes(spec):
            return None
        return self._estimate.ask(spec)


class ByEngine:
    """Implements `interfaces.Sizer` for models of all engines.

    Args:
        estimates: by `ModelSpec.engine`; None: its models take nothing worth counting.
        must_be_here: raises ModelUnavailable, with what helps, for a model that is not on this board; called in a
            thread.
        most: see Sizer.
    """

    def __init__(
        self,
        estimates: Mapping[str, Estimate | None],
        book: SizeBook,
        *,
        must_be_here: Callable[[ModelSpec], None],
        most: int,
    ) -> None:
        self._must_be_here = must_be_here
        self._sizers = {engine: Sizer(estimate, book, most=most) for engine, estimate in estimates.items() if estimate}

    async def predict(self, spec: ModelSpec, spare: Callable[[], int]) -> MemoryNeed:
        """See interfaces.Sizer."""
        await asyncio.to_thread(self._must_be_here, spec)
        sizer = self._sizers.get(spec.engine)
        return await sizer.predict(spec, spare) if sizer else MemoryNeed()

    async def observe(self, spec: ModelSpec, measured_bytes: int) -> None:
        """See interfaces.Sizer."""
        if sizer := self._sizers.get(spec.engine):
            await sizer.observe(spec, measured_bytes)


def corrected(known: KnownSize) -> MemoryNeed:
    """The prediction with what was measured. The difference goes to the weights, which have the vocabulary and all that
    is not counted to the byte."""
    if known.measured is None:
        return known.need
    predicted = known.need.loaded
    wanted = min(max(known.measured, int(LEAST * predicted)), int(MOST * predicted))
    return replace(known.need, weights=max(0, known.need.weights + wanted - predicted))
