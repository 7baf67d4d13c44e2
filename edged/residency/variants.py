"""Smaller variants of models while there is a reason for it, and better ones when there is room again."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from edged.errors import ModelUnavailable
from edged.residency.loading import Loading
from edged.residency.record import ModelRecord, Way, shorter
from edged.residency.ways import Ways, label

# A better variant than the one in memory: looked for once a minute, when the model was not used for half of one, and
# taken where a tenth of its size is free beyond it. Else memory that comes and goes would load the one and the other.
BETTER_S, LULL_S, BETTER_MARGIN = 60.0, 30.0, 1.1
SPARED_S = 300.0  # a model that was made smaller stays so for as long, unless `grow` says that the reason is gone


class Variants:
    """Changes which variant of an idle model is in memory. Only the governor's task calls what is async.

    Args:
        models: all records, by name; a live view.
        load: loads a model in one of the ways, and answers those who wait.
    """

    def __init__(
        self,
        models: Mapping[str, ModelRecord],
        ways: Ways,
        loading: Loading,
        load: Callable[[ModelRecord, Sequence[Way], int], Awaitable[None]],
    ) -> None:
        self._models, self._ways, self._loading, self._load = models, ways, loading, load

    async def shrink(self, reason: str, may_load: Callable[[], bool]) -> list[str]:
        """Put a smaller variant in the place of every idle model that has one and is not pinned. Returns their names.
        may_load: False: a model is only taken out, and its smaller variant comes when it is asked for."""
        smaller = []
        for record in list(self._models.values()):
            at = next((i for i, spec in enumerate(record.alias.variants) if spec.path == record.spec.path), 0)
            later = record.alias.variants[at + 1 :]
            if not later or not record.idle or record.spec.pin:
                continue
            try:
                ways = await self._ways.find(record.name, later)
            except ModelUnavailable:  # none of them is here
                continue
            fit = [way for way in ways if way.need.total < record.need.total]
            if not fit or not record.idle:
                continue
            first = record.alias.variants.index(fit[0].spec)
            record.spared = (first, time.monotonic() + SPARED_S)
            await self._loading.unload(record, "shrunk", why=reason)
            if may_load():
                await self._load(record, fit, 0)
            smaller.append(record.name)
        return smaller

    def grow(self) -> None:
        """Better variants may be loaded again at once."""
        for record in self._models.values():
            record.spared, record.looked_at, record.ways = (0, 0.0), 0.0, None

    def due_at(self, record: ModelRecord) -> float | None:
        """When to look for a better variant of a model (monotonic clock); None: there is nothing to look for."""
        if not record.idle or not record.lesser or record.change is not None:
            return None
        return max(record.looked_at + BETTER_S, record.used_at + LULL_S)

    async def improve(self, record: ModelRecord) -> None:
        """Load a better variant, or a longer context, where there is room for it again."""
        record.looked_at = time.monotonic()
        specs = [*record.variants(), *(shorter(record.spec, context) for context in record.contexts())]
        better = specs[: specs.index(record.spec)] if record.spec in specs else []
        if not better:
            return
        try:
            ways = await self._ways.find(record.name, better)
        except ModelUnavailable:  # none of them is here
            return
        room = self._ways.room() + record.need.returned
        number = next((i for i, way in enumerate(ways) if way.need.total * BETTER_MARGIN <= room), None)
        if number is None or not record.idle:
            return
        await self._loading.unload(record, "better", why=f"there is room for {label(ways[number])}")
        await self._load(record, ways, number)
