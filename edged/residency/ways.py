"""In which ways a model can be loaded, and how much memory there is for it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence

from edged.errors import EdgedError, ModelUnavailable, NoMemory
from edged.host import memory
from edged.interfaces import Sizer
from edged.residency import budget
from edged.residency.policy import Resident
from edged.residency.record import ModelRecord, Way, shorter
from edged.residency.refusal import BoardMemory, Fits, fitting_context, refusal
from edged.types import ModelSpec

log = logging.getLogger("edged.residency")

REFUSED_RETRY_S = 30.0  # memory that other programs hold comes back in tens of seconds, if it does
LEAST_CONTEXT = 256  # tokens; the shortest a configuration may name, and what a refusal reckons from
MAX_TOLD = 3  # models that a refusal names as fitting


class Ways:
    """Asks what models take, and the kernel what there is.

    Args:
        models: all records, by name; a live view.
        budget_bytes, reserve_bytes: see Governor.
        lost_s: see Governor.
    """

    def __init__(
        self,
        models: Mapping[str, ModelRecord],
        sizer: Sizer,
        *,
        budget_bytes: int,
        reserve_bytes: int,
        lost_s: Callable[[str], float],
    ) -> None:
        self._models, self._sizer = models, sizer
        self.budget_bytes, self._reserve_bytes, self._lost_s = budget_bytes, reserve_bytes, lost_s
        self._warned: set[str] = set()

    def resident(self) -> list[Resident]:
        """The models in memory, for the policy."""
        return [record.resident(self._lost_s(record.name)) for record in self._models.values() if record.ready]

    def room(self) -> int:
        """Bytes that may still be taken; negative where too much is taken already."""
        resident = [record for record in self._models.values() if record.ready]
        return budget.room(
            budget.Bounds(self.budget_bytes, memory.cgroups(), memory.available_bytes(), self._reserve_bytes),
            budget.Taken(
                memory.private_bytes(),
                sum(record.mapped_bytes for record in resident),
                sum(budget.promised(record.need.total, record.measured_bytes) for record in resident),
            ),
        )

    def most(self, resident: Sequence[Resident]) -> int:
        """What a model can take at most, were all others out that may go."""
        return self.room() + sum(model.size_bytes for model in resident if not model.pinned)

    async def look(self, record: ModelRecord) -> None:
        """Find out in which ways a model can be loaded. EdgedError: in none."""
        if record.ways is None:
            record.ways = await self.find(record.name, record.variants())
        most = self.most(self.resident())
        tried = any(way.spec.context < record.alias.variants[0].context for way in record.ways)
        if not tried and all(way.need.total > most for way in record.ways):
            specs = [shorter(way.spec, context) for way in record.ways for context in record.contexts()]
            record.ways = [*record.ways, *[Way(spec, await self._sizer.predict(spec, self.room)) for spec in specs]]
        if record.ways and not record.ready:
            record.need = min((way.need for way in record.ways), key=lambda need: need.total)

    async def find(self, name: str, specs: Sequence[ModelSpec]) -> list[Way]:
        """Files that are there, best first. ModelUnavailable: the reason of the first one, where none is."""
        ways: list[Way] = []
        missing: list[ModelUnavailable] = []
        for spec in specs:
            try:
                ways.append(Way(spec, await self._sizer.predict(spec, self.room)))
            except ModelUnavailable as error:
                missing.append(error)
        if not ways:
            raise missing[0]
        for why in {error.message for error in missing} - self._warned:
            log.warning("a variant of model %s is left out: %s", name, why)
            self._warned.add(why)
        return ways

    async def refuse(self, record: ModelRecord, resident: Sequence[Resident]) -> NoMemory:
        ways = record.ways or []
        own = max(0, memory.private_bytes() - sum(m.private_bytes for m in self._models.values() if m.ready))
        reserve = self._reserve_bytes
        board = BoardMemory(self.budget_bytes, reserve, own, memory.available_bytes())
        most = self.most(resident)
        least = min(ways, key=lambda way: way.need.total)
        small = await self._sizer.predict(shorter(least.spec, LEAST_CONTEXT), self.room)
        at = (least.spec.context, least.need.total)
        fits = Fits(fitting_context(most, at, (LEAST_CONTEXT, small.total)), await self._others(record, most))
        sizes = {label(way): way.need.total for way in ways}
        return NoMemory(refusal(record.name, sizes, board, resident, fits), retry_after_s=REFUSED_RETRY_S)

    async def _others(self, record: ModelRecord, most: int) -> tuple[str, ...]:
        """Names of other models that are here and would fit."""
        found: list[str] = []
        for other in self._models.values():
            if other is record or other.admitted or len(found) == MAX_TOLD:
                continue
            with contextlib.suppress(EdgedError):
                if any(way.need.total <= most for way in await self.find(other.name, other.alias.variants)):
                    found.append(other.name)
        return tuple(found)


def label(way: Way) -> str:
    return f"{way.spec.variant or way.spec.path.rpartition('/')[2]} with {way.spec.context} tokens of context"
