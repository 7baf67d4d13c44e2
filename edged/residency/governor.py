"""The one owner of what is resident. Everybody else asks: `hold` keeps a model while it is used.

One task decides and acts, so loads and unloads never overlap and a model is never freed under a running request. What
is done for a model that is wanted says `policy`, how long the others wait for theirs `turns`; this file lets requests
in, keeps the order of those who wait, and does what the plan says.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from msgspec import structs

from edged.errors import EdgedError, ModelUnavailable
from edged.host import memory
from edged.host.clock import Stopwatch
from edged.interfaces import Loader, Sizer
from edged.residency.loading import Loading
from edged.residency.policy import Plan
from edged.residency.record import ModelRecord, Waiter, Way, due_times
from edged.residency.turns import Decision, decide
from edged.residency.variants import Variants
from edged.residency.ways import Ways
from edged.residency.wishes import Changes, Wishes
from edged.types import JSON, Alias, ModelSpec, ModelState

log = logging.getLogger("edged.residency")


class Governor:
    """Implements `interfaces.Residency`, `interfaces.Relief` and `interfaces.Residents`.

    Args:
        specs: what each name stands for.
        budget_bytes: what all models together with the daemon may take.
        reserve_bytes: of MemAvailable, left to others.
        lost_s: seconds to compute again what a model holds and nobody keeps, by its name.
        tell: gets (event name, data).
    """

    def __init__(
        self,
        specs: Mapping[str, ModelSpec | Alias],
        loader: Loader,
        *,
        sizer: Sizer,
        budget_bytes: int,
        reserve_bytes: int,
        idle_unload_s: float,
        lost_s: Callable[[str], float] = lambda name: 0.0,
        tell: Callable[[str, dict[str, JSON]], None] = lambda name, data: None,
    ) -> None:
        self._models = {name: ModelRecord(_alias(spec)) for name, spec in specs.items()}
        self._idle_unload_s = idle_unload_s
        self._tell = tell
        self._ways = Ways(self._models, sizer, budget_bytes=budget_bytes, reserve_bytes=reserve_bytes, lost_s=lost_s)
        self._loading = Loading(loader, sizer, self._ways, tell)
        self._variants = Variants(self._models, self._ways, self._loading, self._load)
        self._paused: str | None = None
        self._changed = asyncio.Event()
        wake = self._changed.set
        self._wishes = Wishes(wake)
        self._changes = Changes(self._models, self._loading, answer=self._answer, tell=tell, wake=wake)

    # -- what others ask -------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def hold(self, model: str) -> AsyncIterator[float]:
        """See interfaces.Residency. Not to be nested: whoever holds a model and asks again may wait for himself."""
        record = self._of(model)
        watch = Stopwatch()
        record.asked()
        if record.open:
            record.active += 1
        else:
            await self._wait_for(record)
        try:
            yield watch.ms()
        finally:
            record.active -= 1
            record.used()
            self._changed.set()

    async def load(self, model: str) -> None:
        """Bring a model in now, as if a request wanted it. Raises as hold does."""
        async with self.hold(model):
            pass

    async def unload(self, model: str) -> bool:
        """Take an idle model out now; False where it is not resident or in use."""
        record = self._of(model)
        if not record.ready or record.active:
            return False
        return await self._wishes.ask(lambda: self._take_out(record))

    def keep(self, model: str, seconds: float | None) -> None:
        """The wish that a model stays so long after its last request, from now until the next one: never longer than
        the policy has it. 0: it goes as soon as nobody uses it; None: no wish."""
        self._of(model).keep_s = seconds
        self._changed.set()

    def stays_s(self, model: str) -> float | None:
        """Seconds that a model in memory stays if nobody uses it any more; None: it is not taken out."""
        until = self._of(model).idle_until(self._idle_unload_s)
        return None if until is None else max(0.0, until - time.monotonic())

    def spec(self, model: str) -> ModelSpec:
        """The file and context a name stands for: of what is in memory, else of what was or would be first."""
        return self._of(model).spec

    def variant(self, model: str) -> str:
        """Which of its variants that is; empty where there is one only."""
        return self.spec(model).variant

    def is_resident(self, model: str) -> bool:
        """Whether it can be used without a load."""
        return self._of(model).ready

    @property
    def aliases(self) -> dict[str, Alias]:
        """What each name stands for."""
        return {name: record.alias for name, record in self._models.items()}

    async def relieve(self, reason: str) -> list[str]:
        """Unload every model that nobody uses and that is not pinned, now (behind a load that has begun). Returns
        their names."""
        return await self._wishes.ask(lambda: self._relieve(reason))

    async def shrink(self, reason: str) -> list[str]:
        """Put a smaller variant in the place of every idle model that has one and is not pinned. Returns their names.
        They stay smaller until `grow`, or for `variants.SPARED_S`."""
        return await self._wishes.ask(lambda: self._variants.shrink(reason, lambda: self._paused is None))

    def grow(self, reason: str) -> None:
        """The reason to `shrink` is gone: better variants may be loaded again, as room allows."""
        self._variants.grow()
        self._tell("models_may_grow", {"reason": reason})
        self._changed.set()

    def pause_loads(self, reason: str) -> None:
        """From now on nothing is loaded: who wants what is not resident waits. What was accepted is not to fail."""
        self._paused = reason
        self._tell("loads_paused", {"reason": reason})
        self._changed.set()

    def resume_loads(self) -> None:
        """Load again."""
        if self._paused is not None:
            self._tell("loads_resumed", {"reason": self._paused})
        self._paused = None
        self._changed.set()

    def admit(self, spec: ModelSpec) -> None:
        """Take a model beside the configured ones, under a name of its own; loads nothing. ModelUnavailable: the name
        is taken."""
        if spec.name in self._models:
            raise ModelUnavailable(f"there is a model {spec.name!r} already")
        self._models[spec.name] = ModelRecord(Alias((spec,)), admitted=True)
        self._tell("model_admitted", {"model": spec.name, "path": spec.path})

    async def dismiss(self, name: str) -> None:
        """Forget an admitted model: no request is let in any more, and when nobody uses it, it is unloaded. A name of
        the configuration cannot be dismissed."""
        if not self._of(name).admitted:
            raise ModelUnavailable(f"model {name!r} is a configured one: it stays")
        await self._changes.ask(self._of(name), None)

    async def switch(self, name: str, spec: ModelSpec) -> None:
        """Let a name mean another file from the next request on; returns when it does. Requests that run end with the
        old file, those that come meanwhile wait and get the new one."""
        record = self._of(name)
        await self._changes.ask(record, structs.replace(record.alias, variants=(structs.replace(spec, name=name),)))

    def room(self) -> int:
        """See Ways.room."""
        return self._ways.room()

    def status(self) -> dict[str, JSON]:
        """Memory and models for `status`, in bytes."""
        paused = {"loads_paused": self._paused} if self._paused is not None else {}
        return {
            "budget_bytes": self._ways.budget_bytes,
            "private_bytes": memory.private_bytes(),
            "mapped_bytes": sum(record.mapped_bytes for record in self._models.values() if record.ready),
            "available_bytes": memory.available_bytes(),
            **paused,
            "models": {name: record.status() for name, record in self._models.items()},
        }

    def _of(self, model: str) -> ModelRecord:
        record = self._models.get(model)
        if record is None:
            raise ModelUnavailable(f"no model {model!r} is configured")
        return record

    async def _wait_for(self, record: ModelRecord) -> None:
        """Until the governor has counted us among those who use it."""
        waiter = Waiter(asyncio.get_running_loop().create_future(), time.monotonic())
        record.waiting.append(waiter)
        self._changed.set()
        try:
            await waiter.granted
        except asyncio.CancelledError:
            granted = waiter.granted
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                record.active -= 1  # let in and cancelled in one step of the loop
            raise
        finally:
            if waiter in record.waiting:
                record.waiting.remove(waiter)
            if not record.waiting:
                record.ways = None  # they are looked at anew for who comes next
            self._changed.set()

    # -- the task --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """The governor task; ends by being cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._until_next()):
                    await self._changed.wait()
            self._changed.clear()
            await self._wishes.do()
            await self._changes.do()
            for record in list(self._models.values()):  # before somebody else has to make room
                until = record.idle_until(self._idle_unload_s)
                if record.idle and until is not None and time.monotonic() >= until:
                    await self._loading.unload(record, "idle")
            await self._serve()
            for record in list(self._models.values()):
                due = self._variants.due_at(record) if self._paused is None else None
                if due is not None and time.monotonic() >= due:
                    await self._variants.improve(record)

    async def _serve(self) -> None:
        """Let in whoever can be, and do the next thing for those who cannot: one load or none, then all is looked at
        anew."""
        waiting = sorted((m for m in self._models.values() if m.waiting), key=lambda m: m.waiting[0].since)
        waiting = [record for record in waiting if not record.ready and record.change is None and self._paused is None]
        for record in waiting:
            try:
                await self._ways.look(record)
            except EdgedError as error:
                self._fail(record, error)
        resident = self._ways.resident() if waiting else []
        able = [record for record in waiting if record.waiting and record.ways]
        turn, closed, refused = Decision(None, set(), [])
        if able:  # the kernel is asked only where somebody wants memory, and not with every request that ends
            now = time.monotonic()
            turn, closed, refused = decide(
                able, resident, self._ways.room(), lambda name: now >= self._models[name].turn_ends
            )
        for record in self._models.values():
            record.closed = record.name in closed
            if record.open:
                self._answer(record, None)
        for record in refused:
            self._fail(record, await self._ways.refuse(record, resident))
        if turn:
            await self._bring_in(*turn)
            self._changed.set()

    async def _bring_in(self, record: ModelRecord, decided: Plan) -> None:
        """What the plan says, unless a request comes in between, or everybody who waited has left."""
        ways = record.ways or []
        for name in decided.out:
            victim = self._models[name]
            if not victim.ready or victim.active:  # a request came while the one before was unloaded: plan anew
                return
            await self._loading.unload(victim, "evicted", why=f"{record.name} is wanted")
        if record.waiting:
            await self._load(record, ways, decided.way)

    def _answer(self, record: ModelRecord, error: EdgedError | None) -> None:
        """Let in all who wait, or tell them why not."""
        waiting, record.waiting = record.waiting, []
        for waiter in waiting:
            if waiter.granted.done():
                continue
            if error is None:
                record.active += 1
                waiter.granted.set_result(None)
            else:
                waiter.granted.set_exception(error)

    def _fail(self, record: ModelRecord, error: EdgedError) -> None:
        self._tell("model_load_failed", {"model": record.name, "code": error.code, "reason": error.message})
        self._answer(record, error)
        record.ways = None

    def _until_next(self) -> float | None:
        """Seconds until something is due though nothing happens; None: nothing is."""
        now = time.monotonic()
        improvable = self._variants.due_at if self._paused is None else None
        due = min(due_times(list(self._models.values()), now, self._idle_unload_s, improvable), default=None)
        return None if due is None else max(0.0, due - now)

    # -- in and out ------------------------------------------------------------------------------------------------

    async def _load(self, record: ModelRecord, ways: Sequence[Way], number: int) -> None:
        """Load in one of the ways; those who wait get it, or the runtime's reason."""
        try:
            await self._loading.load(record, ways, number, lambda: self._answer(record, None))
        except EdgedError as error:
            self._fail(record, error)

    async def _take_out(self, record: ModelRecord) -> bool:
        """Where a request came before us, the model stays."""
        if record.idle:
            await self._loading.unload(record, "asked")
        return record.state is ModelState.UNLOADED

    async def _relieve(self, reason: str) -> list[str]:
        gone = []
        for record in list(self._models.values()):
            if record.idle and not record.spec.pin:
                await self._loading.unload(record, "pressure", why=reason)
                gone.append(record.name)
        return gone


def _alias(spec: ModelSpec | Alias) -> Alias:
    return spec if isinstance(spec, Alias) else Alias((spec,))
