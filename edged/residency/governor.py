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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from msgspec import structs

from edged.errors import EdgedError, ModelUnavailable, NoMemory
from edged.host import memory
from edged.host.clock import Stopwatch
from edged.interfaces import Loader, Sizer
from edged.residency import budget, fairness, measure
from edged.residency.policy import Action, Plan, Resident, plan
from edged.residency.record import Books, Change, Waiter, Way, shorter
from edged.residency.refusal import MIB, BoardMemory, Fits, fitting_context, refusal
from edged.types import JSON, Alias, ModelSpec, ModelState

log = logging.getLogger("edged.residency")
T = TypeVar("T")

REFUSED_RETRY_S = 30.0  # memory that other programs hold comes back in tens of seconds, if it does
# A better variant than the one in memory: looked for once a minute, when the model was not used for half of one, and
# taken where a tenth of its size is free beyond it. Else memory that comes and goes would load the one and the other.
BETTER_S, LULL_S, BETTER_MARGIN = 60.0, 30.0, 1.1
SPARED_S = 300.0  # a model that was made smaller stays so for as long, unless `grow` says that the reason is gone
LEAST_CONTEXT = 256  # tokens; the shortest a configuration may name, and what a refusal reckons from
# Of what a load took, so much may stay without a warning: at the first unload the runtime's libraries (75 MiB at most,
# measured), later what the allocator cannot give back.
KEPT_FIRST, KEPT = 96 * MIB, 16 * MIB
MAX_TOLD = 3  # models that a refusal names as fitting


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
        self._models = {name: Books(_alias(spec)) for name, spec in specs.items()}
        self._loader = loader
        self._sizer = sizer
        self._budget_bytes = budget_bytes
        self._reserve_bytes = reserve_bytes
        self._idle_unload_s = idle_unload_s
        self._lost_s = lost_s
        self._tell = tell
        self._unloads = 0
        self._paused: str | None = None
        self._warned: set[str] = set()
        self._wishes: list[tuple[Callable[[], Awaitable[Any]], asyncio.Future[Any]]] = []
        self._changed = asyncio.Event()

    # -- what others ask -------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def hold(self, model: str) -> AsyncIterator[float]:
        """See interfaces.Residency. Not to be nested: whoever holds a model and asks again may wait for himself."""
        books = self._of(model)
        watch = Stopwatch()
        books.asked()
        if books.open:
            books.active += 1
        else:
            await self._wait_for(books)
        try:
            yield watch.ms()
        finally:
            books.active -= 1
            books.used()
            self._changed.set()

    async def load(self, model: str) -> None:
        """Bring a model in now, as if a request wanted it. Raises as hold does."""
        async with self.hold(model):
            pass

    async def unload(self, model: str) -> bool:
        """Take an idle model out now; False where it is not resident or in use."""
        books = self._of(model)
        if not books.ready or books.active:
            return False
        return await self._wish(lambda: self._take_out(books))

    def spec(self, model: str) -> ModelSpec:
        """The file and context a name stands for: of what is in memory, else of what was or would be first."""
        return self._of(model).spec

    def variant(self, model: str) -> str:
        """Which of its variants that is; empty where there is one only."""
        return self.spec(model).variant

    def is_resident(self, model: str) -> bool:
        """Whether it can be used without a load."""
        return bool(self.status()["models"][model]["state"] == ModelState.READY)

    @property
    def aliases(self) -> dict[str, Alias]:
        """What each name stands for."""
        return {name: books.alias for name, books in self._models.items()}

    async def relieve(self, reason: str) -> list[str]:
        """Unload every model that nobody uses and that is not pinned, now (behind a load that has begun). Returns
        their names."""
        return await self._wish(lambda: self._relieve(reason))

    async def shrink(self, reason: str) -> list[str]:
        """Put a smaller variant in the place of every idle model that has one and is not pinned. Returns their names.
        They stay smaller until `grow`, or for SPARED_S."""
        return await self._wish(lambda: self._shrink(reason))

    def grow(self, reason: str) -> None:
        """The reason to `shrink` is gone: better variants may be loaded again, as room allows."""
        for books in self._models.values():
            books.spared, books.looked_at, books.ways = (0, 0.0), 0.0, None
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
        self._models[spec.name] = Books(Alias((spec,)), admitted=True)
        self._tell("model_admitted", {"model": spec.name, "path": spec.path})

    async def dismiss(self, name: str) -> None:
        """Forget an admitted model: no request is let in any more, and when nobody uses it, it is unloaded. A name of
        the configuration cannot be dismissed."""
        if not self._of(name).admitted:
            raise ModelUnavailable(f"model {name!r} is a configured one: it stays")
        await self._change(name, None)

    async def switch(self, name: str, spec: ModelSpec) -> None:
        """Let a name mean another file from the next request on; returns when it does. Requests that run end with the
        old file, those that come meanwhile wait and get the new one."""
        await self._change(name, structs.replace(self._of(name).alias, variants=(structs.replace(spec, name=name),)))

    def status(self) -> dict[str, JSON]:
        """Memory and models for `status`, in bytes."""
        paused = {"loads_paused": self._paused} if self._paused is not None else {}
        return {
            "budget_bytes": self._budget_bytes,
            "private_bytes": memory.private_bytes(),
            "mapped_bytes": sum(books.mapped_bytes for books in self._models.values() if books.ready),
            "available_bytes": memory.available_bytes(),
            **paused,
            "models": {name: books.status() for name, books in self._models.items()},
        }

    def _of(self, model: str) -> Books:
        books = self._models.get(model)
        if books is None:
            raise ModelUnavailable(f"no model {model!r} is configured")
        return books

    async def _wait_for(self, books: Books) -> None:
        """Until the governor has counted us among those who use it."""
        waiter = Waiter(asyncio.get_running_loop().create_future(), time.monotonic())
        books.waiting.append(waiter)
        self._changed.set()
        try:
            await waiter.granted
        except asyncio.CancelledError:
            granted = waiter.granted
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                books.active -= 1  # let in and cancelled in one step of the loop
            raise
        finally:
            if waiter in books.waiting:
                books.waiting.remove(waiter)
            if not books.waiting:
                books.ways = None  # they are looked at anew for who comes next
            self._changed.set()

    async def _wish(self, work: Callable[[], Awaitable[T]]) -> T:
        """Have the governor task do something between two decisions. Whoever leaves before it began does not get it."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._wishes.append((work, future))
        self._changed.set()
        return await future

    async def _change(self, name: str, alias: Alias | None) -> None:
        books = self._of(name)
        while books.change is not None:
            await asyncio.wait([books.change.done])
        change = books.change = Change(alias, asyncio.get_running_loop().create_future())
        self._changed.set()
        try:
            await change.done
        finally:
            if books.change is change:  # we leave before it was done
                books.change = None
            self._changed.set()

    # -- the task --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """The governor task; ends by being cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._until_next()):
                    await self._changed.wait()
            self._changed.clear()
            await self._do_wishes()
            await self._do_changes()
            for books in list(self._models.values()):  # before somebody else has to make room
                if books.idle and not books.spec.pin and time.monotonic() - books.used_at >= self._idle_unload_s:
                    await self._unload(books, "idle")
            await self._serve()
            for books in list(self._models.values()):
                if self._may_improve(books):
                    await self._improve(books)

    async def _do_wishes(self) -> None:
        wishes, self._wishes = self._wishes, []
        for work, future in wishes:
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

    async def _do_changes(self) -> None:
        """Names that are to mean something else, where nobody uses them."""
        for name, books in list(self._models.items()):
            change = books.change
            if change is None or books.active:
                continue
            if books.ready and not change.done.done():
                await self._unload(books, "switched" if change.alias else "dismissed")
            if books.change is change:  # else another one came for it
                books.change = None
            if change.done.done():  # whoever wanted it has left
                continue
            if change.alias is None:
                del self._models[name]
                self._answer(books, ModelUnavailable(f"model {name!r} was taken away"))
                self._tell("model_dismissed", {"model": name})
            else:
                before = books.spec.path
                books.become(change.alias)
                self._tell("model_switched", {"model": name, "path": books.spec.path, "before": before})
            change.done.set_result(None)

    async def _serve(self) -> None:
        """Let in whoever can be, and do the next thing for those who cannot: one load or none, then all is looked at
        anew."""
        waiting = sorted((m for m in self._models.values() if m.waiting), key=lambda m: m.waiting[0].since)
        waiting = [books for books in waiting if not books.ready and books.change is None and self._paused is None]
        for books in waiting:
            await self._look(books)
        resident = self._resident() if waiting else []
        turn, closed, refused = self._decide([m for m in waiting if m.waiting and m.ways], resident)
        for books in self._models.values():
            books.closed = books.name in closed
            if books.open:
                self._answer(books, None)
        for books in refused:
            self._fail(books, await self._refusal(books, resident))
        if turn:
            await self._bring_in(*turn)
            self._changed.set()

    def _decide(
        self, waiting: Sequence[Books], resident: Sequence[Resident]
    ) -> tuple[tuple[Books, Plan] | None, set[str], list[Books]]:
        """(the model to load and how, those that let nobody in from now on, those that are refused). Who has waited
        longest is served first; somebody else is before only where that takes nothing from him."""
        if not waiting:  # with every request that ends: the kernel is asked only where somebody wants memory
            return None, set(), []
        room, after = self.room(), None
        closed: set[str] = set()
        refused: list[Books] = []
        sizes = {model.name: model.size_bytes for model in resident}
        for books in waiting:
            ways = [way.need.total for way in books.ways or ()]
            decided = plan(room_bytes=room, resident=resident, wanted=books.name, ways_bytes=ways)
            if decided.action is Action.REFUSE:
                refused.append(books)
            elif decided.action is Action.WAIT:
                closed |= {name for name in decided.wait_for if self._turn_is_over(self._models[name])}
                left = room + sum(sizes[name] for name in decided.out) - ways[decided.way]
                after = left if after is None else min(after, left)
            elif after is None or (not decided.out and ways[decided.way] <= after):
                closed |= {name for name in decided.out if self._turn_is_over(self._models[name])}
                return (books, decided), closed, refused
        return None, closed, refused

    async def _bring_in(self, books: Books, decided: Plan) -> None:
        """What the plan says, unless a request comes in between, or everybody who waited has left."""
        ways = books.ways or []
        for name in decided.out:
            victim = self._models[name]
            if not victim.ready or victim.active:  # a request came while the one before was unloaded: plan anew
                return
            await self._unload(victim, "evicted", why=f"{books.name} is wanted")
        if books.waiting:
            await self._load(books, ways, decided.way)

    def _answer(self, books: Books, error: EdgedError | None) -> None:
        """Let in all who wait, or tell them why not."""
        waiting, books.waiting = books.waiting, []
        for waiter in waiting:
            if waiter.granted.done():
                continue
            if error is None:
                books.active += 1
                waiter.granted.set_result(None)
            else:
                waiter.granted.set_exception(error)

    def _fail(self, books: Books, error: EdgedError) -> None:
        self._tell("model_load_failed", {"model": books.name, "code": error.code, "reason": error.message})
        self._answer(books, error)
        books.ways = None

    def _turn_is_over(self, books: Books) -> bool:
        return time.monotonic() >= fairness.turn_ends(books.loaded_at, books.load_s)

    def _until_next(self) -> float | None:
        """Seconds until something is due though nothing happens; None: nothing is."""
        now = time.monotonic()
        due = min(self._due(now), default=None)
        return None if due is None else max(0.0, due - now)

    def _due(self, now: float) -> Iterator[float]:
        wanted = any(m.waiting and not m.ready for m in self._models.values())
        for books in self._models.values():
            if not books.ready:
                continue
            if wanted:
                ends = fairness.turn_ends(books.loaded_at, books.load_s)
                kept = fairness.kept_until(books.loaded_at, books.used_at, books.load_s)
                yield from (at for at in (ends, kept) if at > now)
            if books.idle and not books.spec.pin:
                yield books.used_at + self._idle_unload_s
            if books.idle and books.lesser and self._paused is None:
                yield max(books.looked_at + BETTER_S, books.used_at + LULL_S)

    # -- ways to load a model --------------------------------------------------------------------------------------

    async def _look(self, books: Books) -> None:
        """Find out in which ways a model can be loaded; tells those who wait where there is none."""
        try:
            if books.ways is None:
                books.ways = await self._ways(books.name, books.variants())
            most = self._most(self._resident())
            tried = any(way.spec.context < books.alias.variants[0].context for way in books.ways)
            if not tried and all(way.need.total > most for way in books.ways):
                specs = [shorter(way.spec, context) for way in books.ways for context in books.contexts()]
                books.ways = [*books.ways, *[Way(spec, await self._sizer.predict(spec, self.room)) for spec in specs]]
        except EdgedError as error:
            self._fail(books, error)
            return
        if books.ways and not books.ready:
            books.need = min((way.need for way in books.ways), key=lambda need: need.total)

    async def _ways(self, name: str, specs: Sequence[ModelSpec]) -> list[Way]:
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

    def _resident(self) -> list[Resident]:
        return [books.resident(self._lost_s(books.name)) for books in self._models.values() if books.ready]

    def room(self) -> int:
        """Bytes that may still be taken; negative where too much is taken already."""
        resident = [books for books in self._models.values() if books.ready]
        return budget.room(
            budget.Bounds(self._budget_bytes, memory.cgroups(), memory.available_bytes(), self._reserve_bytes),
            budget.Taken(
                memory.private_bytes(),
                sum(books.mapped_bytes for books in resident),
                sum(budget.promised(books.need.total, books.measured_bytes) for books in resident),
            ),
        )

    def _most(self, resident: Sequence[Resident]) -> int:
        """What a model can take at most, were all others out that may go."""
        return self.room() + sum(model.size_bytes for model in resident if not model.pinned)

    async def _refusal(self, books: Books, resident: Sequence[Resident]) -> NoMemory:
        ways = books.ways or []
        own = max(0, memory.private_bytes() - sum(m.private_bytes for m in self._models.values() if m.ready))
        reserve = self._reserve_bytes
        board = BoardMemory(self._budget_bytes, reserve, own, memory.available_bytes())
        most = self._most(resident)
        least = min(ways, key=lambda way: way.need.total)
        small = await self._sizer.predict(shorter(least.spec, LEAST_CONTEXT), self.room)
        at = (least.spec.context, least.need.total)
        fits = Fits(fitting_context(most, at, (LEAST_CONTEXT, small.total)), await self._others(books, most))
        sizes = {_label(way): way.need.total for way in ways}
        return NoMemory(refusal(books.name, sizes, board, resident, fits), retry_after_s=REFUSED_RETRY_S)

    async def _others(self, books: Books, most: int) -> tuple[str, ...]:
        """Names of other models that are here and would fit."""
        found: list[str] = []
        for other in self._models.values():
            if other is books or other.admitted or len(found) == MAX_TOLD:
                continue
            with contextlib.suppress(EdgedError):
                if any(way.need.total <= most for way in await self._ways(other.name, other.alias.variants)):
                    found.append(other.name)
        return tuple(found)

    # -- in and out ------------------------------------------------------------------------------------------------

    async def _load(self, books: Books, ways: Sequence[Way], number: int) -> None:
        """Load in one of the ways; those who wait get it, or the runtime's reason."""
        way, best = ways[number], books.alias.variants[0]
        books.state, books.spec, books.need = ModelState.LOADING, way.spec, way.need
        books.lesser = "" if way.spec == best else self._why_lesser(ways, number, books)
        before = await asyncio.to_thread(measure.held)
        watch = Stopwatch()
        try:
            await self._loader.load(way.spec)
        except EdgedError as error:
            books.state = ModelState.UNLOADED
            self._fail(books, error)
            return
        except BaseException:
            books.state = ModelState.UNLOADED
            raise
        books.load_s = watch.ms() / 1000
        took = await asyncio.to_thread(measure.after_load, before)
        books.private_bytes, books.mapped_bytes = took.private, took.mapped
        books.state, books.ways = ModelState.READY, None
        books.used()
        books.loaded_at = books.looked_at = books.used_at
        self._answer(books, None)
        told: dict[str, JSON] = {
            "load_ms": books.load_s * 1000,
            "bytes": books.measured_bytes,
            "context": way.spec.context,
        }
        if way.spec.variant:
            told["variant"] = way.spec.variant
        if books.lesser:
            told["why"] = books.lesser
        log.info("model %s (%s) loaded in %.0f ms", books.name, _label(way), books.load_s * 1000)
        self._tell("model_loaded", {"model": books.name, **told})
        await self._sizer.observe(way.spec, books.measured_bytes)

    def _why_lesser(self, ways: Sequence[Way], number: int, books: Books) -> str:
        if not number:  # the best of those that may be loaded now, or that are here
            return (
                "it was made smaller" if books.variants() != books.alias.variants else "better ones are not installed"
            )
        need, most = ways[0].need.total, self._most(self._resident())
        return f"{_label(ways[0])} needs {need // MIB} MiB, and there is room for {most // MIB} MiB"

    async def _unload(self, books: Books, reason: str, *, why: str = "") -> None:
        """Free a model, and prove that its memory came back."""
        books.state = ModelState.UNLOADING
        before = await asyncio.to_thread(memory.private_bytes)
        await self._loader.unload(books.name)
        books.state = ModelState.UNLOADED
        found = await asyncio.to_thread(measure.after_unload, books.private_bytes, before)
        self._unloads += 1
        told: dict[str, JSON] = {"reason": reason, **structs.asdict(found), **({"why": why} if why else {})}
        log.info(
            "model %s unloaded (%s): %d MiB of private memory came back, %d of them trimmed",
            books.name, reason, found.freed_bytes // MIB, found.trimmed_bytes // MIB,
        )  # fmt: skip
        if found.kept_bytes > (KEPT_FIRST if self._unloads == 1 else KEPT):
            log.warning(
                "model %s: %d MiB of the %d MiB that its load took did not come back when it was unloaded (%s)",
                books.name, found.kept_bytes // MIB, books.private_bytes // MIB, why or reason,
            )  # fmt: skip
        self._tell("model_unloaded", {"model": books.name, **told})

    async def _take_out(self, books: Books) -> bool:
        """Where a request came before us, the model stays."""
        if books.idle:
            await self._unload(books, "asked")
        return books.state is ModelState.UNLOADED

    async def _relieve(self, reason: str) -> list[str]:
        gone = []
        for books in list(self._models.values()):
            if books.idle and not books.spec.pin:
                await self._unload(books, "pressure", why=reason)
                gone.append(books.name)
        return gone

    async def _shrink(self, reason: str) -> list[str]:
        smaller = []
        for books in list(self._models.values()):
            at = next((i for i, spec in enumerate(books.alias.variants) if spec.path == books.spec.path), 0)
            later = books.alias.variants[at + 1 :]
            if not later or not books.idle or books.spec.pin:
                continue
            try:
                ways = await self._ways(books.name, later)
            except ModelUnavailable:  # none of them is here
                continue
            fit = [way for way in ways if way.need.total < books.need.total]
            if not fit or not books.idle:
                continue
            first = books.alias.variants.index(fit[0].spec)
            books.spared = (first, time.monotonic() + SPARED_S)
            await self._unload(books, "shrunk", why=reason)
            if self._paused is None:
                await self._load(books, fit, 0)
            smaller.append(books.name)
        return smaller

    def _may_improve(self, books: Books) -> bool:
        now = time.monotonic()
        lull = books.idle and books.lesser and self._paused is None and books.change is None
        return bool(lull) and now >= max(books.looked_at + BETTER_S, books.used_at + LULL_S)

    async def _improve(self, books: Books) -> None:
        """Load a better variant, or a longer context, where there is room for it again."""
        books.looked_at = time.monotonic()
        specs = [*books.variants(), *(shorter(books.spec, context) for context in books.contexts())]
        better = specs[: specs.index(books.spec)] if books.spec in specs else []
        if not better:
            return
        try:
            ways = await self._ways(books.name, better)
        except ModelUnavailable:  # none of them is here
            return
        room = self.room() + books.need.returned
        number = next((i for i, way in enumerate(ways) if way.need.total * BETTER_MARGIN <= room), None)
        if number is None or not books.idle:
            return
        await self._unload(books, "better", why=f"there is room for {_label(ways[number])}")
        await self._load(books, ways, number)


def _alias(spec: ModelSpec | Alias) -> Alias:
    return spec if isinstance(spec, Alias) else Alias((spec,))


def _label(way: Way) -> str:
    return f"{way.spec.variant or way.spec.path.rpartition('/')[2]} with {way.spec.context} tokens of context"
