"""What others want of the governor's task: work between two decisions, or a name that is to mean another file."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeVar

from edged.errors import EdgedError, ModelUnavailable
from edged.residency.loading import Loading
from edged.residency.record import Change, ModelRecord
from edged.types import JSON, Alias

T = TypeVar("T")


class Wishes:
    """Work that waits for the governor's task.

    Args:
        wake: lets the task look.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._waiting: list[tuple[Callable[[], Awaitable[Any]], asyncio.Future[Any]]] = []

    async def ask(self, work: Callable[[], Awaitable[T]]) -> T:
        """Have the task do something. Whoever leaves before it began does not get it."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, future))
        self._wake()
        return await future

    async def do(self) -> None:
        """Do all of it; called by the task."""
        waiting, self._waiting = self._waiting, []
        for work, future in waiting:
            if future.done():
                continue
            try:
                done = await work()
            except EdgedError as error:
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(done)


class Changes:
    """Names that are to mean something else, as soon as nobody uses what they mean now.

    Args:
        models: all records, by name; those of names that are taken away are removed here.
        answer: lets in those who wait for a model, or tells them why not.
        wake: lets the task look.
    """

    def __init__(
        self,
        models: MutableMapping[str, ModelRecord],
        loading: Loading,
        *,
        answer: Callable[[ModelRecord, EdgedError | None], None],
        tell: Callable[[str, dict[str, JSON]], None],
        wake: Callable[[], None],
    ) -> None:
        self._models, self._loading = models, loading
        self._answer, self._tell, self._wake = answer, tell, wake

    async def ask(self, record: ModelRecord, alias: Alias | None) -> None:
        """Have a name mean something else, or nothing; returns when it does."""
        while record.change is not None:
            await asyncio.wait([record.change.done])
        change = record.change = Change(alias, asyncio.get_running_loop().create_future())
        self._wake()
        try:
            await change.done
        finally:
            if record.change is change:  # we leave before it was done
                record.change = None
            self._wake()

    async def do(self) -> None:
        """Make the changes that can be made; called by the task."""
        for name, record in list(self._models.items()):
            change = record.change
            if change is None or record.active:
                continue
            if record.ready and not change.done.done():
                await self._loading.unload(record, "switched" if change.alias else "dismissed")
            if record.change is change:  # else another one came for it
                record.change = None
            if change.done.done():  # whoever wanted it has left
                continue
            if change.alias is None:
                del self._models[name]
                self._answer(record, ModelUnavailable(f"model {name!r} was taken away"))
                self._tell("model_dismissed", {"model": name})
            else:
                before = record.spec.path
                record.become(change.alias)
                self._tell("model_switched", {"model": name, "path": record.spec.path, "before": before})
            change.done.set_result(None)
