"""The one owner of what is resident. Everybody else asks: `hold` keeps a model while it is used.

One task decides and acts, so loads and unloads never overlap and a model is never freed under a running request. The
decisions are `policy.plan`'s; this file counts users, keeps the order of those who wait, and does what the plan says.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping

from edged.clock import Stopwatch
from edged.errors import EdgedError, ModelUnavailable, NoMemory
from edged.governor import probe
from edged.governor.policy import Action, Plan, Resident, plan
from edged.interfaces import Loader
from edged.types import JSON, ModelSpec, ModelState

log = logging.getLogger("edged.governor")

REFUSED_RETRY_S = 30.0  # memory that other programs hold comes back in tens of seconds, if it does


class _Model:
    """Books of one model."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.state = ModelState.UNLOADED
        self.users = 0
        self.used_at = 0.0
        self.size_bytes = 0
        self.waiting: list[asyncio.Future[None]] = []
        self.dismissed: asyncio.Future[bool] | None = None  # set: somebody asked for it to be taken out
        self.successor: tuple[ModelSpec | None, asyncio.Future[None]] | None = None  # set: it is to become that, or go


class Governor:
    """Implements `interfaces.Residency`.

    Args:
        predict: bytes a model will take, from its file; raises ModelUnavailable where the file is no model.
        budget_bytes: what all models together with the daemon may take.
        reserve_bytes: of MemAvailable, left to others.
        tell: gets (event name, data).
    """

    def __init__(
        self,
        specs: Mapping[str, ModelSpec],
        loader: Loader,
        *,
        predict: Callable[[ModelSpec], int],
        budget_bytes: int,
        reserve_bytes: int,
        idle_unload_s: float,
        tell: Callable[[str, dict[str, JSON]], None] = lambda name, data: None,
    ) -> None:
        self._models = {name: _Model(spec) for name, spec in specs.items()}
        self._loader = loader
        self._predict = predict
        self._budget_bytes = budget_bytes
        self._reserve_bytes = reserve_bytes
        self._idle_unload_s = idle_unload_s
        self._tell = tell
        self._changed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def hold(self, model: str) -> AsyncIterator[float]:
        """See interfaces.Residency."""
        books = self._models.get(model)
        if books is None:
            raise ModelUnavailable(f"no model {model!r} is configured")
        watch = Stopwatch()
        books.users += 1
        try:
            if books.state is not ModelState.READY or books.successor:
                await self._wait_for(books)
            yield watch.ms()
        finally:
            books.users -= 1
            books.used_at = time.monotonic()
            self._changed.set()

    async def load(self, model: str) -> None:
        """Bring a model in now, as if a request wanted it. Raises as hold does."""
        async with self.hold(model):
            pass

    async def unload(self, model: str) -> bool:
        """Take an idle model out now; False where it is not resident or in use."""
        books = self._models.get(model)
        if books is None:
            raise ModelUnavailable(f"no model {model!r} is configured")
        if books.state is not ModelState.READY or books.users:
            return False
        books.dismissed = books.dismissed or asyncio.get_running_loop().create_future()
        self._changed.set()
        return await asyncio.shield(books.dismissed)

    def admit(self, spec: ModelSpec) -> None:
        """See interfaces.Residents."""
        if spec.name in self._models:
            raise ValueError(f"there is a model {spec.name!r}")
        self._models[spec.name] = _Model(spec)

    async def dismiss(self, name: str) -> None:
        """See interfaces.Residents."""
        await self._succeed(name, None)

    async def switch(self, name: str, spec: ModelSpec) -> None:
        """See interfaces.Residents."""
        await self._succeed(name, spec)

    async def _succeed(self, name: str, spec: ModelSpec | None) -> None:
        books = self._models[name]
        books.successor = spec, asyncio.get_running_loop().create_future()
        self._changed.set()
        await asyncio.shield(books.successor[1])

    async def _replace(self, books: _Model) -> None:
        """Another file for a name, or none any more, as soon as nobody uses the old one."""
        if books.successor is None or books.users > len(books.waiting):  # who waits does not use it yet
            return
        if books.state is ModelState.READY:
            await self._unload(books, "asked")
        (spec, future), books.successor = books.successor, None
        if spec is None:
            del self._models[books.spec.name]
            self._answer(books, ModelUnavailable(f"no model {books.spec.name!r} is configured"))
        else:
            books.spec = spec
        if not future.done():
            future.set_result(None)

    async def run(self) -> None:
        """The governor task; ends by being cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._until_idle()):
                    await self._changed.wait()
            self._changed.clear()
            for books in list(self._models.values()):
                await self._replace(books)
            for books in list(self._models.values()):
                if books.waiting and not books.successor:
                    await self._serve(books)
            for books in self._models.values():
                if self._is_idle(books):
                    await self._unload(books, "asked" if books.dismissed else "idle")
                self._dismiss(books)

    def status(self) -> dict[str, JSON]:
        """Memory and models for `status`, in bytes."""
        return {
            "budget_bytes": self._budget_bytes,
            "private_bytes": probe.private_bytes(),
            "available_bytes": probe.available_bytes(),
            "models": {
                name: {
                    "state": books.state,
                    "predicted_bytes": books.size_bytes or None,
                    "in_use": books.users,
                    "context": books.spec.context,
                }
                for name, books in self._models.items()
            },
        }

    async def _wait_for(self, books: _Model) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        books.waiting.append(future)
        self._changed.set()
        try:
            await future
        finally:
            if future in books.waiting:
                books.waiting.remove(future)

    async def _serve(self, books: _Model) -> None:
        """One turn of the plan for a model that is waited for."""
        try:
            if books.state is not ModelState.READY:
                books.size_bytes = await asyncio.to_thread(self._predict, books.spec)
                decided = self._plan(books)
                if decided.action is Action.WAIT:
                    return
                if decided.action is Action.REFUSE:
                    raise self._refusal(books)
                for name in decided.evict:
                    if self._models[name].users:  # a request came while the one before was unloaded: plan anew
                        self._changed.set()
                        return
                    await self._unload(self._models[name], "evicted")
                await self._load(books)
        except EdgedError as error:
            name, told = books.spec.name, {"code": error.code, "reason": error.message}
            self._tell("model_load_failed", {"model": name, **told})
            self._answer(books, error)
        else:
            self._answer(books, None)

    def _answer(self, books: _Model, error: EdgedError | None) -> None:
        waiting, books.waiting = books.waiting, []
        for future in waiting:
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

    def _plan(self, books: _Model) -> Plan:
        resident = [
            Resident(m.spec.name, m.size_bytes, m.users > 0, m.spec.pin, m.used_at)
            for m in self._models.values()
            if m.state is ModelState.READY
        ]
        return plan(
            room_bytes=self._room(sum(m.size_bytes for m in resident)),
            resident=resident,
            wanted=books.spec.name,
            wanted_bytes=books.size_bytes,
        )

    def _room(self, resident_bytes: int) -> int:
        """What may still be taken: of the budget, and of what the kernel says is available."""
        room = self._budget_bytes - resident_bytes
        available = probe.available_bytes()
        return room if available is None else min(room, available - self._reserve_bytes)

    def _refusal(self, books: _Model) -> NoMemory:
        mib = 2**20
        available = probe.available_bytes() or 0
        return NoMemory(
            f"model {books.spec.name!r} needs about {books.size_bytes // mib} MiB; the budget is "
            f"{self._budget_bytes // mib} MiB, and {available // mib} MiB are available on the board, of which "
            f"{self._reserve_bytes // mib} MiB are reserved for others ([memory])",
            retry_after_s=REFUSED_RETRY_S,
        )

    async def _load(self, books: _Model) -> None:
        books.state = ModelState.LOADING
        watch = Stopwatch()
        try:
            await self._loader.load(books.spec)
        except BaseException:
            books.state = ModelState.UNLOADED
            raise
        books.state = ModelState.READY
        books.used_at = time.monotonic()
        log.info("model %s loaded in %.0f ms", books.spec.name, watch.ms())
        self._tell("model_loaded", {"model": books.spec.name, "load_ms": watch.ms(), "bytes": books.size_bytes})

    async def _unload(self, books: _Model, reason: str) -> None:
        books.state = ModelState.UNLOADING
        before = probe.private_bytes()
        await self._loader.unload(books.spec.name)
        books.state = ModelState.UNLOADED
        freed = before - probe.private_bytes()
        log.info("model %s unloaded (%s), %d MiB of private memory came back", books.spec.name, reason, freed // 2**20)
        self._tell("model_unloaded", {"model": books.spec.name, "reason": reason, "freed_bytes": freed})

    def _is_idle(self, books: _Model) -> bool:
        unused = books.state is ModelState.READY and not books.users and not books.waiting
        if books.dismissed:
            return unused
        return unused and not books.spec.pin and time.monotonic() - books.used_at >= self._idle_unload_s

    def _dismiss(self, books: _Model) -> None:
        """Tell whoever asked for the unload; where a request came first it stayed."""
        asked, books.dismissed = books.dismissed, None
        if asked and not asked.done():
            asked.set_result(books.state is ModelState.UNLOADED)

    def _until_idle(self) -> float | None:
        """Seconds until the next model may have been idle for long enough; None where there is none."""
        ready = [m for m in self._models.values() if m.state is ModelState.READY and not m.users and not m.spec.pin]
        return min((max(0.0, m.used_at + self._idle_unload_s - time.monotonic()) for m in ready), default=None)
