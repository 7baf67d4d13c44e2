"""The governor with a loader of our own: who is loaded, who waits, who is told what. Nothing here waits for time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar

import pytest

from edged.errors import ModelUnavailable, NoMemory
from edged.host import malloc, memory
from edged.residency.governor import Governor
from edged.types import JSON, MemoryNeed, ModelSpec

SOON_S = 10.0  # a test that waits longer has failed
ROOM = 100


class Loader:
    """Writes down what it is told; `gates` hold a load or unload until they are set."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.resident: set[str] = set()
        self.gates: dict[str, asyncio.Event] = {}
        self.begun: dict[str, asyncio.Event] = {}
        self.faults: dict[str, Exception] = {}

    def gate(self, what: str) -> tuple[asyncio.Event, asyncio.Event]:
        """(is set when it began, lets it end)."""
        self.begun[what], self.gates[what] = asyncio.Event(), asyncio.Event()
        return self.begun[what], self.gates[what]

    async def _do(self, what: str) -> None:
        self.done.append(what)
        if what in self.gates:
            self.begun[what].set()
            await self.gates[what].wait()
        if what in self.faults:
            raise self.faults.pop(what)

    async def load(self, spec: ModelSpec) -> None:
        await self._do(f"load {spec.name}")
        self.resident.add(spec.name)

    async def unload(self, name: str) -> None:
        await self._do(f"unload {name}")
        self.resident.remove(name)


class Board:
    """A governor at work over models a, b, c of 40 of 100 bytes, and `big` of 90."""

    SIZES: ClassVar = {"a": 40, "b": 40, "c": 40, "big": 90, "huge": 101, "fixed": 60}

    def __init__(self, idle_unload_s: float = 1e6) -> None:
        self.loader = Loader()
        self.events: list[tuple[str, dict[str, JSON]]] = []
        self.predicts: list[str] = []
        self.observed: list[tuple[str, int]] = []
        specs = {n: ModelSpec(name=n, path="/m", context=512, pin=n == "fixed") for n in self.SIZES}
        self.governor = Governor(
            specs,
            self.loader,
            sizer=self,
            budget_bytes=ROOM,
            reserve_bytes=0,
            idle_unload_s=idle_unload_s,
            tell=lambda name, data: self.events.append((name, data)),
        )

    async def predict(self, spec: ModelSpec, spare: Callable[[], int]) -> MemoryNeed:
        self.predicts.append(spec.name)
        return MemoryNeed(weights=self.SIZES[spec.name])

    async def observe(self, spec: ModelSpec, measured_bytes: int) -> None:
        self.observed.append((spec.name, measured_bytes))

    def hold(self, name: str) -> AbstractAsyncContextManager[float]:
        return self.governor.hold(name)

    async def use(self, name: str) -> None:
        """A request that uses a model and ends at once."""
        async with asyncio.timeout(SOON_S), self.hold(name):
            assert name in self.loader.resident

    def state(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.governor.status()["models"][name]
        return found


@pytest.fixture(autouse=True)
def _large_board(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 10**9)
    monkeypatch.setattr(memory, "private_bytes", lambda: 0)
    monkeypatch.setattr(memory, "file_bytes", lambda: 0)
    monkeypatch.setattr(memory, "cgroups", list)
    monkeypatch.setattr(malloc, "trim", lambda: False)  # it is slow in a process as large as a test's


@contextlib.asynccontextmanager
async def at_work(board: Board) -> AsyncIterator[Board]:
    """The board while its governor runs; a governor that died fails the test."""
    task = asyncio.create_task(board.governor.run())
    try:
        yield board
        assert not task.done()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture
async def board() -> AsyncIterator[Board]:
    async with at_work(Board()) as board:
        yield board


async def until(holds: Callable[[], bool]) -> None:
    """Let other tasks run until something holds."""
    async with asyncio.timeout(SOON_S):
        while not holds():
            await asyncio.sleep(0)


async def test_hold_by_many_loads_once(board: Board) -> None:
    """Everybody who asks while it loads gets the one load."""
    begun, go = board.loader.gate("load a")
    users = [asyncio.create_task(board.use("a")) for _ in range(5)]
    await begun.wait()
    users += [asyncio.create_task(board.use("a")) for _ in range(5)]
    await until(lambda: board.state("a")["in_use"] == 10)
    go.set()
    await asyncio.gather(*users)
    assert board.loader.done == ["load a"]
    assert [name for name, _ in board.events] == ["model_loaded"]


async def test_hold_of_a_resident_model_does_not_wait_for_the_governor() -> None:
    """The usual case costs no turn of the task."""
    board = Board()
    async with at_work(board):
        await board.use("a")
    async with asyncio.timeout(SOON_S), board.hold("a") as load_ms:  # nobody runs the governor now
        assert load_ms < 1000


async def test_hold_of_a_model_nobody_configured_is_unavailable(board: Board) -> None:
    """So is unloading it."""
    with pytest.raises(ModelUnavailable, match="no model 'x'"):
        await board.use("x")
    with pytest.raises(ModelUnavailable, match="no model 'x'"):
        await board.governor.unload("x")


async def test_least_recently_used_idle_model_is_evicted(board: Board) -> None:
    """Just the one that makes room."""
    await board.use("a")
    await board.use("b")
    await board.use("a")
    await board.use("c")
    assert board.loader.done == ["load a", "load b", "unload b", "load c"]
    assert ("model_unloaded", "b", "evicted") in [(n, d["model"], d.get("reason")) for n, d in board.events]


async def test_busy_model_is_waited_for_and_never_evicted(board: Board) -> None:
    """The waiting one goes on when the request ends."""
    async with board.hold("a"), board.hold("b"):
        waiting = asyncio.create_task(board.use("c"))
        await until(lambda: "c" in board.predicts)
        await until(lambda: board.state("c")["in_use"] == 1)
        assert not waiting.done()
        assert board.loader.resident == {"a", "b"}
    await asyncio.wait_for(waiting, SOON_S)
    assert "c" in board.loader.resident


async def test_model_taken_into_use_while_another_is_evicted_stays(board: Board) -> None:
    """Between two evictions a request may come for the second: it must not lose its model."""
    await board.use("a")
    await board.use("b")
    begun, go = board.loader.gate("unload a")
    waiting = asyncio.create_task(board.use("big"))  # needs both out
    await begun.wait()
    async with board.hold("b"):
        go.set()
        await until(lambda: board.state("a")["state"] == "unloaded")
        assert "unload b" not in board.loader.done
        assert not waiting.done()
    await asyncio.wait_for(waiting, SOON_S)
    assert board.loader.done == ["load a", "load b", "unload a", "unload b", "load big"]


async def test_model_being_evicted_is_loaded_again_for_who_asks_meanwhile(board: Board) -> None:
    """Whoever comes during the unload waits for a load, not for a corpse."""
    await board.use("a")
    begun, go = board.loader.gate("unload a")
    first = asyncio.create_task(board.use("big"))
    await begun.wait()
    second = asyncio.create_task(board.use("a"))
    await until(lambda: board.state("a")["in_use"] == 1)
    go.set()
    await asyncio.wait_for(asyncio.gather(first, second), SOON_S)
    assert board.loader.done == ["load a", "unload a", "load big", "unload big", "load a"]


async def test_model_that_never_fits_is_refused_with_no_memory(board: Board) -> None:
    """The message has the sizes, the refusal says when to ask again, and what is idle stays."""
    await board.use("a")
    with pytest.raises(NoMemory, match="'huge' needs") as caught:
        await board.use("huge")
    assert caught.value.retryable
    assert caught.value.retry_after_s
    assert board.loader.resident == {"a"}


async def test_memory_others_need_is_left_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel says is available bounds the budget; where it says nothing, the budget alone counts."""
    board = Board()
    async with at_work(board):
        monkeypatch.setattr(memory, "available_bytes", lambda: 39)
        with pytest.raises(NoMemory):
            await board.use("a")
        monkeypatch.setattr(memory, "available_bytes", lambda: 40)
        await board.use("a")
        monkeypatch.setattr(memory, "available_bytes", lambda: None)
        await board.use("b")
    assert board.loader.resident == {"a", "b"}


async def test_pinned_model_is_never_evicted_but_unloaded_on_request(board: Board) -> None:
    """A pin is against the governor, not against its owner."""
    await board.use("fixed")
    with pytest.raises(NoMemory):
        await board.use("big")
    assert await board.governor.unload("fixed")
    await board.use("big")
    assert board.loader.resident == {"big"}


async def test_failed_load_is_told_to_all_who_wait_and_tried_again_later(board: Board) -> None:
    """The runtime's reason reaches everybody; the next request starts a new load."""
    begun, go = board.loader.gate("load a")
    board.loader.faults["load a"] = ModelUnavailable("damaged")
    users = [asyncio.create_task(board.use("a")) for _ in range(3)]
    await begun.wait()
    await until(lambda: board.state("a")["in_use"] == 3)
    go.set()
    results = await asyncio.gather(*users, return_exceptions=True)
    assert [str(r) for r in results] == ["damaged"] * 3
    assert board.state("a") == {
        "state": "unloaded",
        "predicted_bytes": 40,
        "predicted": {"weights": 40},
        "measured_bytes": None,
        "in_use": 0,
        "context": 512,
    }
    await board.use("a")
    assert board.loader.done == ["load a", "load a"]


async def test_failed_load_of_one_model_does_not_hold_up_another(board: Board) -> None:
    """The governor goes on."""
    board.loader.faults["load a"] = ModelUnavailable("damaged")
    results = await asyncio.gather(board.use("a"), board.use("b"), return_exceptions=True)
    assert isinstance(results[0], ModelUnavailable)
    assert results[1] is None


async def test_file_that_is_no_model_is_refused_before_anything_is_evicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """predict says so."""
    board = Board()

    async def refuse(spec: ModelSpec, spare: Callable[[], int]) -> MemoryNeed:
        if spec.name == "big":
            raise ModelUnavailable("no GGUF file")
        return MemoryNeed(weights=40)

    monkeypatch.setattr(board, "predict", refuse)
    async with at_work(board):
        await board.use("a")
        with pytest.raises(ModelUnavailable, match="no GGUF"):
            await board.use("big")
    assert board.loader.done == ["load a"]


async def test_idle_model_is_unloaded_and_a_pinned_one_stays() -> None:
    """idle_unload_s = 0: at once when its last request ends."""
    board = Board(idle_unload_s=0)
    async with at_work(board):
        async with board.hold("fixed"), board.hold("a"):
            async with board.hold("a"):
                pass
            await asyncio.sleep(0)
            assert "a" in board.loader.resident
        await until(lambda: board.events[-1][0] == "model_unloaded")
        assert board.loader.done == ["load fixed", "load a", "unload a"]
    reasons = [data["reason"] for name, data in board.events if name == "model_unloaded"]
    assert reasons == ["idle"]


async def test_model_is_kept_until_it_was_idle_for_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time counts from the end of the last request."""
    now = [1000.0]
    monkeypatch.setattr("edged.residency.governor.time.monotonic", lambda: now[0])
    board = Board(idle_unload_s=30)
    async with at_work(board):
        await board.use("a")
        now[0] += 29
        await board.use("a")
        now[0] += 29
        await board.use("b")  # wakes the governor
        assert "a" in board.loader.resident
        now[0] += 1
        await board.use("c")
        await until(lambda: "a" not in board.loader.resident)
        assert "b" in board.loader.resident


async def test_unload_on_request_says_whether_it_happened(board: Board) -> None:
    """False for what is not resident or in use, and nothing is taken from under a request."""
    assert await board.governor.unload("a") is False
    async with board.hold("a"):
        assert await board.governor.unload("a") is False
    assert await asyncio.wait_for(board.governor.unload("a"), SOON_S) is True
    assert board.loader.resident == set()
    assert board.events[-1][1]["reason"] == "asked"


async def test_unload_that_a_request_overtakes_is_answered_with_no(board: Board) -> None:
    """The request came first: the model stays, and whoever asked for the unload is told."""
    await board.use("a")
    asked = asyncio.create_task(board.governor.unload("a"))
    await asyncio.sleep(0)
    async with board.hold("a"):
        assert await asyncio.wait_for(asked, SOON_S) is False
    assert board.loader.done == ["load a"]


async def test_unload_asked_by_many_is_done_once_and_told_to_all(board: Board) -> None:
    """One wish, many askers."""
    await board.use("a")
    answers = await asyncio.wait_for(asyncio.gather(*(board.governor.unload("a") for _ in range(3))), SOON_S)
    assert answers == [True, True, True]
    assert board.loader.done == ["load a", "unload a"]


async def test_cancelled_waiter_leaves_the_books_balanced(board: Board) -> None:
    """A request that is cancelled while it waits holds nothing up and is nobody's user."""
    begun, go = board.loader.gate("load a")
    gone, stays = asyncio.create_task(board.use("a")), asyncio.create_task(board.use("a"))
    await begun.wait()
    await until(lambda: board.state("a")["in_use"] == 2)
    gone.cancel()
    await asyncio.wait([gone])
    assert board.state("a")["in_use"] == 1
    go.set()
    await asyncio.wait_for(stays, SOON_S)
    await until(lambda: board.state("a")["in_use"] == 0)
    await board.use("big")  # needs a out: nobody is counted as its user
    assert board.loader.done == ["load a", "unload a", "load big"]


async def test_request_that_fails_gives_its_model_back(board: Board) -> None:
    """However a block ends."""
    with pytest.raises(ZeroDivisionError):
        async with board.hold("a"):
            raise ZeroDivisionError
    assert board.state("a")["in_use"] == 0


async def test_load_brings_a_model_in_without_a_request(board: Board) -> None:
    """`models.load` and pins use it."""
    await board.governor.load("a")
    assert board.state("a")["state"] == "ready"
    assert (board.state("b")["state"], board.state("b")["predicted_bytes"]) == ("unloaded", None)


async def test_what_a_model_took_is_measured_and_told(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """Private memory that came with the load, and the weights that are mapped; what it may still touch is kept free."""
    taken = {"private": 5, "mapped": 0}
    monkeypatch.setattr(memory, "private_bytes", lambda: taken["private"])
    monkeypatch.setattr(memory, "file_bytes", lambda: 1000 + taken["mapped"])
    begun, go = board.loader.gate("load a")
    loading = asyncio.create_task(board.governor.load("a"))
    await begun.wait()
    taken.update(private=12, mapped=20)
    go.set()
    await asyncio.wait_for(loading, SOON_S)
    assert board.observed == [("a", 27)]
    assert board.state("a")["measured_bytes"] == 27
    assert board.governor.room() == ROOM - 12 - 20 - (40 - 27)
