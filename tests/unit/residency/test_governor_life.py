"""Models that do not fit together, variants, files that are changed, memory that others need. Nothing waits for time:
where it counts, the clock is the test's."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from edged.daemon.assembly import _single
from edged.errors import ModelUnavailable, NoMemory
from edged.host import malloc, memory
from edged.residency.governor import Governor
from edged.residency.variants import BETTER_S, SPARED_S
from edged.types import JSON, Alias, MemoryNeed, ModelSpec

SOON_S = 2000.0  # of the clock, which some tests put forward


class Memory:
    """A board of so many bytes, as its models fill it. kept: stays behind at every unload."""

    def __init__(self, size: int) -> None:
        self.size, self.others, self.private, self.kept = size, 0, 0, 0
        self.most = 0

    def available(self) -> int:
        return self.size - self.others - self.private

    def take(self, size: int) -> None:
        self.private += size
        self.most = max(self.most, self.private)


class Board:
    """A governor over files whose size is in their path (`/size/name`); each token of context takes a byte more where
    the name begins with `long`."""

    def __init__(self, models: dict[str, ModelSpec | Alias], size: int = 100, **more: Any) -> None:
        self.memory = Memory(size)
        self.done: list[str] = []
        self.resident: dict[str, ModelSpec] = {}
        self.events: list[tuple[str, dict[str, JSON]]] = []
        self.observed: list[int] = []
        self.missing: set[str] = set()
        self.on_load: Callable[[ModelSpec], Awaitable[None]] | None = None
        self.governor = Governor(
            models,
            self,
            sizer=self,
            budget_bytes=size,
            reserve_bytes=0,
            tell=lambda name, data: self.events.append((name, data)),
            **{"idle_unload_s": 1e6, **more},
        )

    def need(self, spec: ModelSpec) -> MemoryNeed:
        _, size, name = spec.path.split("/")
        return MemoryNeed(weights=int(size), kv=spec.context if name.startswith("long") else 0)

    async def predict(self, spec: ModelSpec, spare: Callable[[], int]) -> MemoryNeed:
        if spec.path in self.missing:
            raise ModelUnavailable(f"{spec.path} is not installed: edged models pull {spec.path}")
        return self.need(spec)

    async def observe(self, spec: ModelSpec, measured_bytes: int) -> None:
        self.observed.append(measured_bytes)

    async def load(self, spec: ModelSpec) -> None:
        self.done.append(f"load {spec.path}")
        if self.on_load:
            await self.on_load(spec)
        self.memory.take(self.need(spec).total)
        self.resident[spec.name] = spec

    async def unload(self, name: str) -> None:
        spec = self.resident.pop(name)
        self.done.append(f"unload {spec.path}")
        await asyncio.sleep(0)
        self.memory.private -= self.need(spec).total - self.memory.kept

    async def use(self, name: str, turns: int = 1) -> str:
        async with self.governor.hold(name):
            path = self.resident[name].path
            for _ in range(turns):
                await asyncio.sleep(0)
                assert self.resident[name].path == path
        return path

    def told(self, name: str) -> list[dict[str, JSON]]:
        return [data for event, data in self.events if event == name]

    def state(self, name: str) -> dict[str, JSON]:
        return dict(self.governor.status()["models"][name])


def spec(path: str, name: str = "m", **more: Any) -> ModelSpec:
    return ModelSpec(**{"name": name, "path": path, "context": 512, **more})


def family(*paths: str, min_context: int | None = None, **more: Any) -> Alias:
    """Variants of one model."""
    return Alias(tuple(spec(path, variant=path.rpartition("/")[2], **more) for path in paths), min_context)


@contextlib.asynccontextmanager
async def at_work(board: Board, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Board]:
    monkeypatch.setattr(memory, "available_bytes", board.memory.available)
    monkeypatch.setattr(memory, "private_bytes", lambda: board.memory.private)
    monkeypatch.setattr(malloc, "trim", lambda: False)
    task = asyncio.create_task(board.governor.run())
    try:
        async with asyncio.timeout(SOON_S):
            yield board
        assert not task.done()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def slow_clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock of ours, which goes on a little whenever it is looked at."""
    now = [1000.0]

    def tick() -> float:
        now[0] += 1e-4
        return now[0]

    monkeypatch.setattr("edged.residency.record.time.monotonic", tick)
    return now


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0)


PAIR = {"a": spec("/60/a", "a"), "b": spec("/60/b", "b")}


async def test_two_models_that_do_not_fit_together_asked_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request is served; never are both in memory."""
    async with at_work(Board(dict(PAIR)), monkeypatch) as board:
        for i in range(100):
            await board.use("ab"[i % 2])
    assert board.memory.most == 60
    assert len(board.done) == 199


async def test_two_models_that_do_not_fit_together_asked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One load serves all who wait for it: nobody fails, nobody starves."""
    async with at_work(Board(dict(PAIR)), monkeypatch) as board:
        await asyncio.gather(*(board.use("ab"[i % 2], turns=i % 7) for i in range(200)))
        assert board.memory.most == 60
        assert [board.state(name)["in_use"] for name in "ab"] == [0, 0]
    assert len(board.done) == 3


async def test_model_in_endless_use_makes_room_when_its_turn_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that overlap without end would else hold it for ever. Within its turn they go first."""
    now = slow_clock(monkeypatch)
    async with at_work(Board(dict(PAIR)), monkeypatch) as board:
        running = asyncio.Event()
        served = 0

        async def endless() -> None:
            nonlocal served
            while not running.is_set():
                await board.use("a", turns=5)
                served += 1

        users = [asyncio.create_task(endless()) for _ in range(3)]
        await until(lambda: served > 5)
        other = asyncio.create_task(board.use("b"))
        before = served
        await until(lambda: served > before + 30)
        assert not other.done()
        now[0] += 5
        assert await other == "/60/b"
        before = served
        await until(lambda: served > before + 5)  # and a is back, in its turn
        running.set()
        await asyncio.gather(*users)


async def test_small_model_does_not_take_what_an_older_waiter_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else small ones could keep a large one out for ever."""
    models = {"a": spec("/60/a", "a"), "big": spec("/90/big", "big"), "s": spec("/30/s", "s"), "t": spec("/5/t", "t")}
    async with at_work(Board(dict(models)), monkeypatch) as board:
        async with board.governor.hold("a"):
            big = asyncio.create_task(board.use("big"))
            await until(lambda: board.state("big")["in_use"] == 1)
            small, tiny = asyncio.create_task(board.use("s")), asyncio.create_task(board.use("t"))
            assert await tiny == "/5/t"  # fits beside big, too
            assert not small.done()
        await asyncio.gather(big, small)
    assert board.done.index("load /90/big") < board.done.index("load /30/s")


@pytest.mark.parametrize(
    ("others", "missing", "path"),
    [(0, [], "/80/best"), (30, [], "/50/mid"), (60, [], "/20/least"), (0, ["/80/best"], "/50/mid")],
    ids=["best", "smaller", "smallest", "not-installed"],
)
async def test_best_variant_that_fits_is_loaded(
    monkeypatch: pytest.MonkeyPatch, others: int, missing: list[str], path: str
) -> None:
    """Of those that are here; `status` and the event say which and why."""
    async with at_work(Board({"m": family("/80/best", "/50/mid", "/20/least")}), monkeypatch) as board:
        board.memory.others = others
        board.missing.update(missing)
        assert await board.use("m") == path
        state = board.state("m")
        assert state["variant"] == path.rpartition("/")[2] == board.told("model_loaded")[0]["variant"]
        assert ("why" in state) == (path != "/80/best")
        assert board.governor.spec("m").path == path


async def test_best_variant_evicts_what_is_idle_but_not_what_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller only where the better one can have no room."""
    models: dict[str, ModelSpec | Alias] = {"m": family("/80/best", "/20/least"), "a": spec("/60/a", "a")}
    models |= {"p": spec("/60/p", "p", pin=True)}
    async with at_work(Board(models), monkeypatch) as board:
        await board.use("a")
        assert await board.use("m") == "/80/best"
        assert await board.governor.unload("m")
        await board.use("p")
        assert await board.use("m") == "/20/least"


async def test_no_variant_installed_is_unavailable_as_the_best_one_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """With how to get it."""
    async with at_work(Board({"m": family("/80/best", "/20/least")}), monkeypatch) as board:
        board.missing = {"/80/best", "/20/least"}
        with pytest.raises(ModelUnavailable, match="edged models pull /80/best"):
            await board.use("m")


async def test_context_is_shortened_only_where_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By halves, not below the least; the engine gets the context it was loaded with."""
    models: dict[str, ModelSpec | Alias] = {
        "m": family("/100/long", context=4096, min_context=600),
        "n": Alias((spec("/100/long", "n", context=4096),)),
    }
    async with at_work(Board(models, size=1500), monkeypatch) as board:
        await board.use("m")
        assert board.resident["m"].context == board.state("m")["context"] == 1024
        assert "4096 tokens" in board.state("m")["why"]
        with pytest.raises(NoMemory, match="what would fit: a context of 1280 tokens"):
            await board.use("n")
        assert list(board.resident) == ["m"]
        assert _single(board.governor)["m"].context == 4096  # what it is loaded with when its file is made anew


async def test_better_variant_comes_back_with_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """When nobody uses the model, and not at once."""
    now = slow_clock(monkeypatch)
    async with at_work(Board({"m": family("/80/best", "/20/least")}), monkeypatch) as board:
        board.memory.others = 50
        assert await board.use("m") == "/20/least"
        board.memory.others = 0
        async with board.governor.hold("m"):
            now[0] += BETTER_S + 1
            await asyncio.sleep(0)
            assert board.resident["m"].path == "/20/least"
        now[0] += BETTER_S + 1
        await until(lambda: board.state("m").get("variant") == "best" and board.state("m")["state"] == "ready")
    assert board.told("model_unloaded")[0]["reason"] == "better"


async def test_shrunk_models_stay_small_until_they_may_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only idle ones that have a smaller variant."""
    now = slow_clock(monkeypatch)
    models: dict[str, ModelSpec | Alias] = {"m": family("/50/best", "/20/least"), "a": spec("/10/a", "a")}
    async with at_work(Board(models), monkeypatch) as board:
        await board.use("m")
        await board.use("a")
        assert await board.governor.shrink("hot") == ["m"]
        assert board.told("model_unloaded")[0]["why"] == "hot"
        assert await board.use("m") == "/20/least"
        assert await board.governor.unload("m")
        assert await board.use("m") == "/20/least"
        assert await board.governor.unload("m")
        now[0] += SPARED_S + 1
        assert await board.use("m") == "/50/best"
        await board.governor.shrink("hot")
        board.governor.grow("cool")
        assert await board.governor.unload("m")
        assert await board.use("m") == "/50/best"


async def test_relieve_unloads_what_is_idle_and_not_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Now, and says which."""
    models = {"a": spec("/20/a", "a"), "b": spec("/20/b", "b"), "p": spec("/20/p", "p", pin=True)}
    async with at_work(Board(dict(models)), monkeypatch) as board:
        for name in models:
            await board.use(name)
        async with board.governor.hold("b"):
            assert await board.governor.relieve("memory is short") == ["a"]
            assert set(board.resident) == {"b", "p"}
        assert board.told("model_unloaded")[0] | {"freed_bytes": 20} == board.told("model_unloaded")[0]
        assert (board.told("model_unloaded")[0]["reason"], board.told("model_unloaded")[0]["why"]) == (
            "pressure",
            "memory is short",
        )


async def test_paused_loads_wait_and_what_is_in_memory_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for those who waited already."""
    async with at_work(Board(dict(PAIR)), monkeypatch) as board:
        await board.use("a")
        async with board.governor.hold("a"):
            waiting = asyncio.create_task(board.use("b"))
            await until(lambda: board.state("b")["in_use"] == 1)
            board.governor.pause_loads("supply is weak")
        await board.use("a")
        assert board.governor.status()["loads_paused"] == "supply is weak"
        assert not waiting.done()
        board.governor.resume_loads()
        await waiting
    assert [name for name, _ in board.events if name.startswith("loads_")] == ["loads_paused", "loads_resumed"]


async def test_switch_waits_for_who_uses_the_old_file_and_fails_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who runs ends with the old one, who comes meanwhile gets the new one."""
    async with at_work(Board({"m": spec("/60/old")}), monkeypatch) as board:
        async with board.governor.hold("m"):
            switching = asyncio.create_task(board.governor.switch("m", spec("/60/new")))
            await asyncio.sleep(0)
            later = [asyncio.create_task(board.use("m")) for _ in range(5)]
            await until(lambda: board.state("m")["in_use"] == 6)
            assert board.resident["m"].path == "/60/old"
            assert not switching.done()
        await switching
        assert await asyncio.gather(*later) == ["/60/new"] * 5
    assert board.told("model_switched") == [{"model": "m", "path": "/60/new", "before": "/60/old"}]


async def test_switch_that_is_given_up_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """And lets those in who waited for it."""
    async with at_work(Board({"m": spec("/60/old")}), monkeypatch) as board, board.governor.hold("m"):
        switching = asyncio.create_task(board.governor.switch("m", spec("/60/new")))
        await asyncio.sleep(0)
        later = asyncio.create_task(board.use("m"))
        await until(lambda: board.state("m")["in_use"] == 2)
        switching.cancel()
        assert await later == "/60/old"


async def test_admitted_model_is_used_beside_the_others_and_dismissed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the same rules; a configured one stays."""
    async with at_work(Board({"m": spec("/60/old")}), monkeypatch) as board:
        await board.use("m")
        board.governor.admit(spec("/60/new", "trial"))
        with pytest.raises(ModelUnavailable):
            board.governor.admit(spec("/60/new", "trial"))
        assert await board.use("trial") == "/60/new"
        await board.governor.dismiss("trial")
        assert board.resident == {}
        with pytest.raises(ModelUnavailable, match="no model 'trial'"):
            await board.use("trial")
        with pytest.raises(ModelUnavailable, match="stays"):
            await board.governor.dismiss("m")


async def test_model_twice_as_large_as_the_board_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal has the numbers, who holds memory, and what would fit."""
    models = {"a": spec("/20/a", "a"), "p": spec("/30/p", "p", pin=True), "huge": spec("/200/huge", "huge")}
    async with at_work(Board(dict(models)), monkeypatch) as board:
        await board.use("a")
        await board.use("p")
        with pytest.raises(NoMemory) as caught:
            await board.use("huge")
        assert board.done == ["load /20/a", "load /30/p"]
    for part in ("needs about 200 bytes", "the budget is 100 bytes", "p 30 bytes (pinned)", "fit: model 'a'"):
        assert part in caught.value.message


async def test_memory_that_does_not_come_back_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In the event, and in the log where it is much; the room that others get is less by it."""
    mib = 2**20
    async with at_work(Board({"m": spec(f"/{400 * mib}/m")}, size=1000 * mib), monkeypatch) as board:
        board.memory.kept = 20 * mib
        for _ in range(2):
            await board.use("m")
            await board.governor.unload("m")
        assert [data["kept_bytes"] for data in board.told("model_unloaded")] == [20 * mib, 20 * mib]
        assert board.observed == [400 * mib, 400 * mib]
    assert len([r for r in caplog.records if "did not come back" in r.message]) == 1  # at first libraries stay


async def test_thousand_loads_and_unloads_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """No task, no future, no books; some loads fail, some are given up."""
    async with at_work(Board({"m": spec("/60/m")}), monkeypatch) as board:
        count = 0

        async def fail(_: ModelSpec) -> None:
            nonlocal count
            count += 1
            if count % 10 == 0:
                raise ModelUnavailable("damaged")

        async def cycle(i: int) -> None:
            users = [asyncio.create_task(board.use("m")) for _ in range(2)]
            if i % 7 == 0:
                await asyncio.sleep(0)
                users[0].cancel()
            await asyncio.gather(*users, return_exceptions=True)
            await board.governor.unload("m")
            board.governor.admit(spec("/30/t", "t"))
            await board.governor.dismiss("t")

        def left() -> int:
            gc.collect()
            return sum(isinstance(one, asyncio.Future) for one in gc.get_objects())

        board.on_load = fail
        for i in range(20):
            await cycle(i)
        tasks, futures = len(asyncio.all_tasks()), left()
        for i in range(1000):
            await cycle(i)
        assert len(asyncio.all_tasks()) == tasks
        assert left() <= futures + 2
        assert board.state("m")["in_use"] == 0
        assert list(board.governor.status()["models"]) == ["m"]
        assert board.memory.private == 0
