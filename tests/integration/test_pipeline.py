"""The life of requests in a pipeline with a real store and a real plant, and a model that says what the test wants."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from edged import config
from edged.access import gate
from edged.access.policy import Policy
from edged.agent import router
from edged.agent.dialects import Dialects
from edged.agent.dispatch import Dispatcher
from edged.agent.learning import Learning
from edged.agent.minds.base import Resources
from edged.agent.prompts import PromptBook
from edged.api.requests import Requests
from edged.config import Config, Publish, PublishTool
from edged.config.tools import OnUncertain
from edged.engines.kind import ChatTemplate
from edged.engines.scripted import ScriptedEngine
from edged.errors import BadRequest, Busy, NoLink, NoMemory, UnknownAgent
from edged.host import clock, fault_points
from edged.host.last_end import LastEnd
from edged.interfaces import Deliverer, OnPiece
from edged.requests.estimate import OVERTIME
from edged.requests.pipeline import Pipeline
from edged.requests.worker import MAX_RUNNING
from edged.store import audit, journal, requests
from edged.store.database import Database, Work
from edged.store.lifecycle import State
from edged.store.requests import Accepted
from edged.store.schema import MIGRATIONS
from edged.store.spending import Spending
from edged.tools.toolbox import Toolbox
from edged.types import Address, Ask, Caller, Completion, Delivery, Job, ModelSpec, Packet, Priority, Rate, Speed
from edged.upstreams import Cloud, LocalServers
from edged.wire import request_from_map
from tests.support.broker import until
from tests.support.daemon import Daemon, entry, note
from tests.support.timing import assert_adds_up

CALLER = Caller("unix:1", "unix", frozenset({"house"}))
OTHER = Caller("unix:2", "unix", frozenset({"house"}))


class Gate(ScriptedEngine):
    """A scripted model. Until it is `open`, it does not decide what to do about "wait", nor words the answer to
    "pause"; `error` is raised instead."""

    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()
        self.asked: list[str] = []
        self.error: Exception | None = None

    async def generate(
        self, job: Job, on_text: Callable[[str], None] | None = None, *, on_piece: OnPiece | None = None
    ) -> Completion:
        """See interfaces.Engine."""
        text = [segment.text for segment in job.turn if segment.literal][-1]
        if job.confidence_marker is not None:
            self.asked.append(text)
        if "wait" in text or (job.confidence_marker is None and "pause" in text):
            await self.open.wait()
        if self.error is not None:
            raise self.error
        return await super().generate(job, on_text, on_piece=on_piece)


class Stubborn(Database):
    """A store that `refuses` writes with an error, as long as the test wants. While `held` is there and not set, what
    is committed is not told; `committed` is set when there is something."""

    refuses: apsw.Error | None = None
    refused = 0
    held: asyncio.Event | None = None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.committed = asyncio.Event()

    def post(self, work: Work[Any], *, durable: bool = True, patient: bool = False) -> asyncio.Future[Any]:
        """See Database."""
        if self.refuses is not None:
            self.refused += 1
            refused: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            refused.set_exception(self.refuses)
            return refused
        done = super().post(work, durable=durable, patient=patient)
        return asyncio.ensure_future(self._told_later(done, self.held)) if durable and self.held is not None else done

    async def _told_later(self, done: asyncio.Future[Any], held: asyncio.Event) -> Any:
        value = await done
        self.committed.set()
        await held.wait()
        return value


class Mailbox:
    """Implements interfaces.Deliverer: keeps what it is given."""

    def __init__(self) -> None:
        self.got: list[Delivery] = []

    async def deliver(self, delivery: Delivery) -> None:
        """See interfaces.Deliverer."""
        self.got.append(delivery)


class House:
    """A pipeline with everything below it real, but for the model."""

    def __init__(self, folder: Path, **tables: dict[str, Any]) -> None:
        plant = Daemon(folder, script=SCRIPT)  # its files; nothing is started
        self.rows = plant.rows
        loaded = config.load(str(plant.config))
        changed = {name: msgspec.structs.replace(getattr(loaded, name), **values) for name, values in tables.items()}
        self.config: Config = msgspec.structs.replace(loaded, **changed)
        self.store = Stubborn(folder / "edged.db", MIGRATIONS)
        self.engine = Gate()
        self.mailbox = Mailbox()
        self.deliverers: dict[str, Deliverer] = {"mqtt": self.mailbox}
        self.speeds: dict[str, Speed] = {}  # of the models, as measured
        self.script = folder / "script.toml"
        self.broker: Any = None
        self.last_end: LastEnd | None = LastEnd(True, "a fault of its own")

    async def __aenter__(self) -> House:
        await self.store.start()
        await self.engine.load(ModelSpec(name="small", path=str(self.script), context=4096))
        await self.begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.store.refuses = None
        await self.end()
        await self.store.stop()

    async def begin(self) -> None:
        """Start a pipeline on the store, as the daemon does."""
        self.toolbox = Toolbox(self.config, self.broker)
        self.cloud = Cloud(self.config.upstreams, Spending(self.store))
        self.speak = PromptBook(self.config.agents, self.toolbox.tools, Dialects(lambda _: ChatTemplate()))
        self.pipeline = Pipeline(
            self.config,
            self.store,
            Dispatcher(
                Resources(
                    config=self.config,
                    tools=self.toolbox.tools,
                    engine=self.engine,
                    served=LocalServers({}),
                    cloud=self.cloud,
                    speak=self.speak,
                )
            ),
            self.toolbox,
            self.cloud,
            gate.Gate(Policy(self.config.agents, self.config.roles, self.config.access)),
            Learning(self.config, self.toolbox, self.store),
            deliverers=self.deliverers,
            last_end=lambda: self.last_end,
            speeds=lambda: self.speeds,
        )
        await self.pipeline.recover()
        self.task = asyncio.create_task(self.pipeline.run())

    async def end(self) -> None:
        """Stop it."""
        if not self.task.done():
            await self.pipeline.stop()
        self.task.cancel()
        await asyncio.wait([self.task])
        await self.toolbox.stop()

    async def take(self, text: str, *, caller: Caller = CALLER, **fields: Any) -> Accepted:
        """Hand a request in."""
        request = request_from_map({"input": text, "agent": "house", **fields}, agent=None)
        return await self.pipeline.accept(Ask(request=request, caller=caller))

    async def reply(self, accepted: Accepted) -> Any:
        """Wait for a request's reply."""
        async with asyncio.timeout(10):
            return json.loads(await self.pipeline.result(accepted.rid))

    async def ask(self, text: str, **fields: Any) -> Any:
        """Hand a request in and wait for its reply."""
        return await self.reply(await self.take(text, **fields))

    async def busy(self) -> list[Accepted]:
        """Requests that wait for the gate in every place there is."""
        waiting = [await self.take(f"wait {n}") for n in range(MAX_RUNNING)]
        await until(lambda: len(self.engine.asked) == MAX_RUNNING)
        return waiting

    async def outlook(self, accepted: Accepted) -> tuple[int, float | None]:
        """Its position, and its estimate in seconds."""
        return await self.pipeline.outlook(await self.pipeline.get(accepted.rid))

    async def state(self, accepted: Accepted) -> State:
        """Where a request is."""
        return (await self.pipeline.get(accepted.rid)).state


SCRIPT = "".join(
    (
        entry("write", note("written"), text="written"),
        entry("stream", text="one two three"),
        entry("slowly", text="one two three four five", token_s=0.02),
        entry("crawling", text="one two three four five", token_s=0.4),
        entry("how full", {"name": "tank_level", "arguments": {"tank": "south"}}, text='"It is full."'),
    )
)


@pytest.fixture(autouse=True)
def _no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for the gate at the end of a test would wait all of it."""
    monkeypatch.setattr("edged.requests.worker.GRACE_S", 0.05)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """A pipeline that runs."""
    async with House(tmp_path) as house:
        yield house


# -- identity ----------------------------------------------------------------------------------------------------------


async def test_the_same_id_joins_while_it_runs_and_gets_the_stored_reply_afterwards(house: House) -> None:
    """One run, one reply, the same bytes for all; another client's request of that id is another one."""
    first = await house.take("wait here", id="q")
    await until(lambda: house.engine.asked)
    second = await house.take("wait here", id="q")
    assert (second.rid, second.known, second.reply) == (first.rid, True, None)
    both = asyncio.gather(house.pipeline.result(first.rid), house.pipeline.result(second.rid))
    house.engine.open.set()
    one, two = await both
    assert one == two
    third = await house.take("wait here", id="q")
    assert (third.rid, third.reply) == (first.rid, one)
    assert len(house.engine.asked) == 1
    foreign = await house.take("wait here", id="q", caller=OTHER)
    assert foreign.rid != first.rid
    assert (await house.reply(foreign))["status"] == "done"


async def test_the_same_id_with_other_content_is_a_bad_request(house: House) -> None:
    """While the first runs and after it; the first is not touched."""
    first = await house.take("wait here", id="q")
    with pytest.raises(BadRequest, match="'q' was used"):
        await house.take("something else", id="q")
    house.engine.open.set()
    assert (await house.reply(first))["output"] == "wait here"
    with pytest.raises(BadRequest, match="'q' was used"):
        await house.take("wait here", id="q", temperature=1.0)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"enum": list(range(60_000))}, "response_schema: .*more than 50000 values"),
        ({"$ref": "#"}, "response_schema: .*no value fits it"),
    ],
)
async def test_response_schema_that_cannot_be_kept_is_refused_before_anything_is_done(
    house: House, schema: Any, said: str
) -> None:
    """With the reason; nothing was stored, and the id is free."""
    with pytest.raises(BadRequest, match=said):
        await house.take("write", id="q", response_schema=schema)
    assert house.engine.asked == []
    house.engine.open.set()
    reply = await house.ask("write", id="q", response_schema={"type": "string"})
    assert reply["status"] == "done"
    assert len(reply["tool_calls"]) == 1


async def test_every_waiting_address_gets_the_reply_and_asking_again_sends_it_again(house: House) -> None:
    """The outbox: two addresses, one reply, and one of them asks once more."""

    async def hand_in(topic: str) -> Accepted:
        request = request_from_map({"input": "wait", "agent": "house", "id": "q"}, agent=None)
        caller = Caller("mqtt:x", "mqtt", frozenset({"house"}))
        return await house.pipeline.accept(Ask(request=request, caller=caller, address=Address(topic, b"c")))

    first = await hand_in("a")
    await hand_in("b")
    house.engine.open.set()
    await until(lambda: len(house.mailbox.got) == 2)
    await until_state(house, first, State.DONE)
    await hand_in("a")
    await until(lambda: len(house.mailbox.got) == 3)
    assert [delivery.address.topic for delivery in house.mailbox.got] == ["a", "b", "a"]
    assert len({delivery.body for delivery in house.mailbox.got}) == 1


async def test_refusal_that_may_be_asked_again_leaves_the_id_free(house: House) -> None:
    """No memory now; the same id later does the work, once."""
    house.engine.error = NoMemory("no room", retry_after_s=30.0)
    refused = await house.ask("write it", id="q")
    assert (refused["status"], refused["error"]["code"], refused["error"]["retry_after_s"]) == (
        "refused",
        "no_memory",
        30.0,
    )
    house.engine.error = None
    again = await house.ask("write it", id="q")
    assert (again["status"], again["id"]) == ("done", "q")
    assert again["rid"] != refused["rid"]
    assert house.rows("diary") == [("written",)]


async def test_refusal_after_something_was_done_keeps_the_id(house: House) -> None:
    """Asked again it would be done twice: the failure is the outcome, and tells what was done."""
    first = await house.take("write, pause", id="q")
    await until(lambda: house.rows("diary"))
    house.engine.error = NoMemory("no room")
    house.engine.open.set()
    reply = await house.reply(first)
    assert (reply["status"], reply["error"]["code"]) == ("failed", "no_memory")
    assert [call["name"] for call in reply["tool_calls"]] == ["note"]
    house.engine.error = None
    assert await house.ask("write, pause", id="q") == reply
    assert house.rows("diary") == [("written",)]


async def test_unknown_agent_is_refused_and_an_agent_that_went_away_fails_its_requests(house: House) -> None:
    """The second is what a changed configuration does to requests that waited over the restart."""
    with pytest.raises(UnknownAgent, match="house"):
        await house.take("hello", agent="nobody")
    waiting = [*await house.busy(), await house.take("hello")]
    await house.end()
    agents = {"barn": house.config.agents["house"]}
    house.config = msgspec.structs.replace(house.config, agents=agents)
    await house.begin()
    for accepted in waiting:
        reply = await house.reply(accepted)
        assert (reply["status"], reply["error"]["code"]) == ("failed", "unknown_agent")


@pytest.mark.parametrize("bug", [KeyError("a bug"), TimeoutError("a bug")])
async def test_bug_fails_its_request_and_no_other(
    house: House, bug: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """`internal`, with the traceback in the log; the daemon lives."""
    house.engine.error = bug
    reply = await house.ask("hello", id="q")
    assert (reply["status"], reply["error"]["code"]) == ("failed", "internal")
    assert "a bug" in caplog.text
    house.engine.error = None
    assert (await house.ask("hello"))["status"] == "done"


# -- deadlines and cancelling ------------------------------------------------------------------------------------------


async def test_deadline_ends_a_request_in_the_queue(house: House) -> None:
    """It never ran, and tells so."""
    await house.busy()
    reply = await house.ask("late", deadline_s=0.05)
    assert (reply["status"], reply["error"]["code"]) == ("expired", "expired")
    assert "in the queue" in reply["error"]["message"]
    assert "late" not in house.engine.asked


async def test_deadline_ends_a_running_request_and_its_reply_tells_what_was_done(house: House) -> None:
    """The note was written before the time was over."""
    reply = await house.ask("write, pause", deadline_s=0.3)
    assert reply["status"] == "expired"
    assert [call["ok"] for call in reply["tool_calls"]] == [True]
    assert house.rows("diary") == [("written",)]


async def test_cancel_in_the_queue_while_running_and_afterwards(house: House) -> None:
    """The first two end as cancelled, and whoever waits hears of it; what is over keeps its outcome."""
    running, *_ = await house.busy()
    queued = await house.take("queued", id="mine")
    for accepted, name in ((queued, "mine"), (running, running.rid)):
        waiter = asyncio.create_task(house.reply(accepted))
        row = await house.pipeline.cancel(name)
        assert row is not None
        assert row.state is State.CANCELLED
        assert (await waiter)["error"]["code"] == "cancelled"
    house.engine.open.set()
    done = await house.take("quick")
    reply = await house.reply(done)
    row = await house.pipeline.cancel(done.rid)
    assert row is not None
    assert row.reply is not None
    assert json.loads(row.reply) == reply
    assert await house.pipeline.cancel("nobody's") is None


async def test_cancel_in_any_moment_has_one_outcome(house: House) -> None:
    """Right after the acceptance, before the first step of the work, while the outcome is being stored: whoever waits
    gets an answer, and nothing is left running."""
    for turns in range(40):
        accepted = await house.take("quick")
        waiter = asyncio.create_task(house.reply(accepted))
        for _ in range(turns):
            await asyncio.sleep(0)
        row = await house.pipeline.cancel(accepted.rid)
        assert row is not None
        assert row.state in (State.CANCELLED, State.DONE), turns
        assert (await waiter)["status"] in ("cancelled", "done")


async def test_cancel_twice_while_the_disk_refuses_the_outcome_is_one_cancellation(house: House) -> None:
    """The second must not tear the storing of the first."""
    accepted = await house.take("wait")
    await until(lambda: house.engine.asked)
    house.store.refuses = apsw.FullError("full")
    first = asyncio.create_task(house.pipeline.cancel(accepted.rid))
    await until(lambda: house.store.refused)
    second = asyncio.create_task(house.pipeline.cancel(accepted.rid))
    await asyncio.sleep(0.05)
    house.store.refuses = None
    for row in await asyncio.wait_for(asyncio.gather(first, second), 10):
        assert row is not None
        assert row.state is State.CANCELLED
    assert (await house.reply(accepted))["status"] == "cancelled"


@pytest.mark.parametrize("how", ["cancelled", "expired"])
async def test_write_that_has_begun_is_told_of_though_the_request_ended(
    house: House, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody holds the plant's database; what waits there is written when it is free, and the reply says so."""
    with contextlib.closing(apsw.Connection(house.config.databases["plant"].path)) as other:
        other.execute("BEGIN IMMEDIATE")
        limit: dict[str, Any] = {"deadline_s": 0.3} if how == "expired" else {}
        decided = asyncio.Event()
        monkeypatch.setitem(fault_points._armed, "journal.intent", decided.set)
        accepted = await house.take("write", **limit)
        async with asyncio.timeout(10):
            await decided.wait()
        ending = asyncio.create_task(house.pipeline.cancel(accepted.rid) if how == "cancelled" else asyncio.sleep(0.4))
        await asyncio.wait([ending], timeout=0.5)
        other.execute("ROLLBACK")
    reply = await house.reply(accepted)
    await ending
    assert reply["status"] == how
    assert [(call["name"], call["ok"]) for call in reply["tool_calls"]] == [("note", True)]
    assert house.rows("diary") == [("written",)]


async def test_request_that_ends_in_the_queue_tells_what_was_done_before_a_restart(house: House) -> None:
    """The daemon stopped after the write; it is cancelled, or late, or too much for us, before it goes on."""
    late = await house.take("write, pause", deadline_s=2.0)
    dropped = await house.take("write, pause")
    await until(lambda: len(house.rows("diary")) == 2)
    await house.end()
    house.engine.asked.clear()
    await house.begin()
    blocking = await house.pipeline.cancel(dropped.rid)
    assert blocking is not None
    for accepted, status in ((dropped, "cancelled"), (late, "expired")):
        reply = await house.reply(accepted)
        assert (reply["status"], [call["ok"] for call in reply["tool_calls"]]) == (status, [True])
    assert house.rows("diary") == [("written",)] * 2


# -- order -------------------------------------------------------------------------------------------------------------


async def test_paused_batch_work_waits_and_interactive_work_does_not(house: House) -> None:
    """Nothing of it is lost, and all of it is done when it may go on."""
    house.engine.open.set()
    house.pipeline.pause_batch(True)
    batch = [await house.take(f"hello {n}", priority="batch") for n in range(3)]
    assert (await house.ask("hello you"))["status"] == "done"
    assert [await house.state(each) for each in batch] == [State.RECEIVED] * 3
    house.pipeline.pause_batch(False)
    assert [(await house.reply(each))["status"] for each in batch] == ["done"] * 3


async def test_new_work_is_refused_before_it_is_stored_and_known_work_is_not(house: House) -> None:
    """The same request may be sent again later; what was accepted before gets its answer."""
    first = await house.take("wait", id="known")
    house.pipeline.refuse(NoMemory("the board is full", retry_after_s=15.0))
    for _ in range(2):
        with pytest.raises(NoMemory, match="the board is full") as refused:
            await house.take("hello", id="new")
        assert refused.value.retry_after_s == 15.0
    again = await house.take("wait", id="known")
    assert again.rid == first.rid
    house.engine.open.set()
    assert (await house.reply(first))["status"] == "done"
    explained = await house.pipeline.explain(
        Ask(request=request_from_map({"input": "hello", "agent": "house"}, agent=None), caller=CALLER), decide=False
    )
    assert explained["error"] == {"code": "no_memory", "message": "the board is full"}
    house.pipeline.refuse(None)
    assert (await house.ask("hello", id="new"))["status"] == "done"


async def test_route_is_decided_once_when_a_request_comes_and_again_after_a_restart(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row keeps the decision; what the agent may do is looked at when it is worked on."""
    decided: list[str] = []

    def decide(facts: router.Facts) -> router.Decision:
        decided.append("x")
        return router_decide(facts)

    router_decide = router.decide
    monkeypatch.setattr(router, "decide", decide)
    assert (await house.ask("hello"))["route"]["reason"] == "local_ok"
    assert (await house.ask("stream", response_schema={"type": "string"}))["status"] in ("done", "failed")
    assert len(decided) == 2
    accepted = await house.take("wait")
    await until(lambda: house.engine.asked[-1:] == ["wait"])
    assert (await house.pipeline.get(accepted.rid)).decision == "local local_ok 0"
    await house.end()
    assert (await house.pipeline.get(accepted.rid)).decision == ""
    house.engine.open.set()
    await house.begin()
    assert (await house.reply(accepted))["status"] == "done"
    assert len(decided) == 4


async def test_interactive_goes_before_batch_and_the_earliest_deadline_first(house: House) -> None:
    """With every place taken, what waits is started in that order, not in that of arrival."""
    running = await house.busy()
    waiting: dict[str, dict[str, Any]] = {
        "wait batch": {"priority": "batch", "deadline_s": 30},
        "wait last": {},
        "wait later": {"deadline_s": 600},
        "wait soon": {"deadline_s": 60},
    }
    rows = [await house.take(text, **fields) for text, fields in waiting.items()]
    outlooks = [await house.outlook(accepted) for accepted in rows]
    assert outlooks == [(3, None), (2, None), (1, None), (0, None)]  # nothing was answered yet
    for number, accepted in enumerate(running[: len(waiting)], start=1):
        await house.pipeline.cancel(accepted.rid)
        await until(lambda number=number: len(house.engine.asked) == MAX_RUNNING + number)  # type: ignore[misc]
    assert house.engine.asked[MAX_RUNNING:] == ["wait soon", "wait later", "wait last", "wait batch"]


async def test_full_queue_refuses_one_more_and_takes_it_later(tmp_path: Path) -> None:
    """`busy` with a time after which to ask again; nothing of it is kept, so its id is free."""
    async with House(tmp_path, queue={"max_waiting": 2}) as house:
        running = await house.busy()
        for text in ("wait", "wait"):
            await house.take(text)
        with pytest.raises(Busy, match="max_waiting is 2") as refused:
            await house.take("one more", id="q")
        assert refused.value.retry_after_s
        house.engine.open.set()
        for accepted in running:
            await house.reply(accepted)
        assert (await house.ask("one more", id="q"))["status"] == "done"


async def test_a_conversation_is_answered_in_order_and_each_prompt_knows_what_was_said(house: House) -> None:
    """The second waits for the first although a place is free; another conversation knows nothing of it."""
    first = await house.take("wait, I am Ada", conversation="c")
    await until(lambda: house.engine.asked)
    second = await house.take("who am I?", conversation="c")
    foreign = await house.take("who is it?", conversation="c", caller=OTHER)
    assert (await house.reply(foreign))["status"] == "done"
    assert await house.state(second) is State.RECEIVED
    house.engine.open.set()
    await house.reply(first)
    await house.reply(second)
    prompts = {_prompt(job) for job in house.engine.jobs if "who am I?" in _prompt(job)}
    assert prompts
    assert all("wait, I am Ada" in prompt for prompt in prompts)
    assert not any("Ada" in _prompt(job) for job in house.engine.jobs if "who is it?" in _prompt(job))


async def test_pieces_of_a_streamed_answer_carry_their_offsets(house: House) -> None:
    """Together they are the answer; a watcher that comes when all is over gets none, and is not kept."""
    pieces: list[tuple[int, str]] = []
    request = request_from_map({"input": "stream", "agent": "house", "stream": True, "id": "q"}, agent=None)
    ask = Ask(request=request, caller=CALLER)
    reply = await house.reply(await house.pipeline.accept(ask, lambda *piece: pieces.append(piece)))
    assert pieces == [(0, "one "), (4, "two "), (8, "three")]
    assert reply["output"] == "one two three"
    known = await house.pipeline.accept(ask, lambda *piece: pieces.append(piece))
    assert known.reply is not None
    assert len(pieces) == 3
    assert not house.pipeline._watchers._listeners


def streamed(caller: Caller = CALLER, address: Address | None = None, **more: Any) -> Ask:
    """A request whose answer waits for the gate, and then comes in pieces."""
    request = request_from_map({"input": "pause, stream", "agent": "house", "stream": True, "id": "q"}, agent=None)
    return Ask(request=request, caller=caller, address=address, **more)


async def test_listener_that_leaves_is_forgotten_and_the_others_hear_on(house: House) -> None:
    """The request goes on: it has an id."""
    door = Requests(house.config, house.pipeline, gate.Gate(Policy(house.config.agents)))
    left: list[int] = []
    stayed: list[int] = []
    leaving = asyncio.create_task(door.answer(streamed(), lambda offset, _: left.append(offset)))
    staying = asyncio.create_task(door.answer(streamed(), lambda offset, _: stayed.append(offset)))
    await until(lambda: sum(map(len, house.pipeline._watchers._listeners.values())) == 2)
    leaving.cancel()
    await until(lambda: sum(map(len, house.pipeline._watchers._listeners.values())) == 1)
    house.engine.open.set()
    await staying
    assert (left, stayed) == ([], [0, 4, 8])
    assert not house.pipeline._watchers._listeners


@pytest.mark.parametrize("turns", range(8))
async def test_listener_that_leaves_while_its_request_is_stored_is_forgotten(house: House, turns: int) -> None:
    """It is heard of only then; some turns of the loop later it has heard that itself, or not yet."""
    door = Requests(house.config, house.pipeline, gate.Gate(Policy(house.config.agents)))
    house.store.held = asyncio.Event()
    leaving = asyncio.create_task(door.answer(streamed(), lambda *_: None))
    await house.store.committed.wait()
    house.store.held.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    await until(lambda: house.pipeline._worker.running)
    await until(lambda: not house.pipeline._watchers._listeners)


async def test_redelivered_request_hears_each_piece_once(house: House) -> None:
    """A broker sends again what it has no PUBACK of; the listener it brings is the one that is there."""
    pieces: list[int] = []

    async def deliver(*, duplicate: bool) -> Accepted:
        ask = streamed(address=Address("r", b"c"), packet=Packet(7, b"digest", duplicate))
        return await house.pipeline.accept(ask, lambda offset, _: pieces.append(offset))

    accepted = await deliver(duplicate=False)
    assert (await deliver(duplicate=True)).rid == accepted.rid
    house.engine.open.set()
    await house.reply(accepted)
    assert pieces == [0, 4, 8]
    assert (await deliver(duplicate=True)).reply is not None
    assert not house.pipeline._watchers._listeners


@pytest.mark.parametrize(("id", "state"), [(None, State.CANCELLED), ("q", State.DONE)])
async def test_client_that_goes_away_while_its_request_is_stored(house: House, id: str | None, state: State) -> None:
    """Without an id it is not worked on for nobody; with one it is, and not only when the next one comes."""
    door = Requests(house.config, house.pipeline, gate.Gate(Policy(house.config.agents)))
    request = request_from_map({"input": "pause", "agent": "house", **({"id": id} if id else {})}, agent=None)
    gone = asyncio.Event()
    house.store.held = asyncio.Event()
    answering = asyncio.create_task(door.answer(Ask(request=request, caller=CALLER), gone=gone))
    await house.store.committed.wait()
    gone.set()
    answering.cancel()
    await asyncio.wait([answering])
    house.store.held.set()
    [row] = await house.pipeline.latest(1)
    if id:
        house.engine.open.set()
    await until_state(house, Accepted(row.rid), state)


async def test_caller_that_leaves_before_it_hears_that_it_is_stored_is_worked_for_and_counted(house: House) -> None:
    """As somebody who asks for 202 and hangs up: the rate of its role is spent, and nobody has to come by."""
    limited = msgspec.structs.replace(CALLER, rate=Rate(1.0, 1))
    house.store.held = asyncio.Event()
    taking = asyncio.create_task(house.take("hello", caller=limited))
    await house.store.committed.wait()
    taking.cancel()
    await asyncio.wait([taking])
    house.store.held.set()
    [row] = await house.pipeline.latest(1)
    await until_state(house, Accepted(row.rid), State.DONE)
    with pytest.raises(Busy, match="which is all"):
        await house.take("hello again", caller=limited)


async def test_known_and_refused_requests_cost_nothing_of_a_rate(house: House) -> None:
    """Known ones are answered also when nothing is left of it."""
    limited = msgspec.structs.replace(CALLER, rate=Rate(1.0, 2))
    first = await house.take("hello", id="q", caller=limited)
    for _ in range(3):
        assert (await house.take("hello", id="q", caller=limited)).rid == first.rid
    with pytest.raises(BadRequest):
        await house.take("other", id="q", caller=limited)
    await house.take("hello", caller=limited)
    with pytest.raises(Busy) as caught:
        await house.take("hello", caller=limited)
    assert caught.value.retry_after_s is not None
    assert (await house.take("hello", id="q", caller=limited)).known
    await house.take("hello", caller=OTHER)


async def test_store_that_refuses_costs_nothing_of_a_rate(house: House) -> None:
    """Nothing was taken in."""
    limited = msgspec.structs.replace(CALLER, rate=Rate(1.0, 1))
    house.store.refuses = apsw.FullError("full")
    for _ in range(3):
        with pytest.raises(Busy, match="cannot be written"):
            await house.take("hello", caller=limited)
    house.store.refuses = None
    await house.take("hello", caller=limited)


async def test_explain_decides_as_the_callers_role_would_be_worked_for(house: House) -> None:
    """A role limited to batch work is that also where nothing is stored."""
    request = request_from_map({"input": "hello", "agent": "house"}, agent=None)
    for highest in (Priority.BATCH, Priority.INTERACTIVE):
        caller = msgspec.structs.replace(CALLER, highest=highest)
        await house.pipeline.explain(Ask(request=request, caller=caller), decide=True)
        assert house.engine.jobs[-1].priority is highest


# -- time --------------------------------------------------------------------------------------------------------------


async def test_times_of_an_answer_add_up_and_hardly_any_is_unaccounted(house: House) -> None:
    """A decision, a write with its two commits, an answer in words that comes slowly."""
    for text in ("write slowly", "write slowly", "slowly"):
        timing = (await house.ask(text))["timing"]
        assert_adds_up(timing)
        assert timing["decode_ms"] >= (80 if text == "slowly" else 0)
        assert bool(timing["tools_ms"]) == ("write" in text)
        assert timing["first_token_ms"] > 0
        assert timing["other_ms"] < 50  # the loop of a busy machine; what it does takes one or two


async def test_times_of_what_was_waited_for_are_queue(house: House) -> None:
    """Behind others until there is a place, or for ever."""
    running = await house.busy()
    behind, late = await house.take("stream"), await house.take("stream", deadline_s=0.05)
    expired = (await house.reply(late))["timing"]
    assert_adds_up(expired)
    assert expired["queue_ms"] >= 50
    assert expired["total_ms"] - expired["queue_ms"] < 50
    cancelled = await house.pipeline.cancel(running[0].rid)
    assert cancelled is not None
    assert cancelled.reply is not None
    broken_off = json.loads(cancelled.reply)["timing"]
    assert_adds_up(broken_off)
    assert broken_off["other_ms"] > 40  # its first token never came, so nobody knows what for it waited
    answered = (await house.reply(behind))["timing"]
    assert_adds_up(answered)
    assert answered["queue_ms"] > 40


async def test_times_of_an_answer_broken_off_amid_are_those_of_its_generation(house: House) -> None:
    """Its deadline came while the words did."""
    timing = (await house.ask("crawling", deadline_s=1.0))["timing"]
    assert_adds_up(timing)
    assert timing["decode_ms"] > 20
    assert 0 < timing["first_token_ms"] < 90


async def test_times_of_a_request_that_a_stop_put_back_know_of_both_attempts(house: House) -> None:
    """What the first has done is not told as a wait."""
    accepted = await house.take("write, pause")
    await until(lambda: house.rows("diary"))
    await house.end()
    before = (await house.pipeline.get(accepted.rid)).spent
    assert before is not None
    assert before.timing.tools_ms > 0
    assert before.usage.prompt_tokens > 0
    house.engine.open.set()
    await house.begin()
    reply = await house.reply(accepted)
    assert_adds_up(reply["timing"])
    assert reply["timing"]["tools_ms"] == before.timing.tools_ms
    assert reply["timing"]["first_token_ms"] == before.timing.first_token_ms
    assert reply["usage"]["prompt_tokens"] > before.usage.prompt_tokens


async def test_estimate_follows_what_the_agents_requests_took(house: House) -> None:
    """Nothing is told before one was answered; then what the running ones have left, and the queue behind them."""
    first = await house.take("wait 0")
    await until(lambda: house.engine.asked)
    assert await house.outlook(first) == (0, None)
    house.engine.open.set()
    await house.reply(first)
    house.engine.open.clear()
    house.engine.asked.clear()
    house.speeds = {"small": Speed(prefill_tokens_s=2.0, decode_tokens_s=1.0, batch_tokens_s=float(MAX_RUNNING))}
    need = house.pipeline._needs.of("house")
    assert need is not None
    assert need.prompt_tokens > 10
    running = await house.busy()
    beside = MAX_RUNNING * need.prompt_tokens / 2.0 + need.steps + need.other_s
    behind = [await house.take("stream") for _ in range(MAX_RUNNING + 1)]
    position, eta_s = await house.outlook(running[3])
    assert position == 0
    assert eta_s == pytest.approx(beside, abs=5)
    outlooks = [await house.outlook(accepted) for accepted in behind]
    assert [position for position, _ in outlooks] == list(range(MAX_RUNNING + 1))
    assert [eta_s for _, eta_s in outlooks] == [
        *[pytest.approx(2 * beside, abs=5)] * MAX_RUNNING, pytest.approx(3 * beside, abs=5),
    ]  # fmt: skip
    house.speeds = {"small": Speed(1e9, 1e9, 1e9)}
    _, eta_s = await house.outlook(running[0])  # longer than all of it should take
    assert eta_s == pytest.approx(OVERTIME * need.other_s, abs=0.1)


@pytest.mark.parametrize("text", ["wait", "queued"])
async def test_deadline_comes_though_the_board_sleeps(house: House, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Of what runs, and of what waits: the loop's own clock stands still meanwhile."""
    if text == "queued":
        await house.busy()
    monkeypatch.setattr(asyncio.BaseEventLoop, "time", lambda loop: 1e6)
    accepted = await house.take(text, deadline_s=0.2)
    reply = json.loads(await house.pipeline.result(accepted.rid))
    assert reply["status"] == "expired"
    monkeypatch.undo()


# -- stopping and starting ---------------------------------------------------------------------------------------------


async def test_stop_puts_running_work_back_and_a_new_start_finishes_it(house: House) -> None:
    """Also what had written already: that is not written again. A stop is no attempt that failed."""
    running = await house.take("write, pause")
    await until(lambda: house.rows("diary"))
    others = [await house.take(f"wait {n}") for n in range(MAX_RUNNING)]
    await house.end()
    with pytest.raises(Busy, match="stopping"):
        await house.take("too late")
    for accepted in (running, *others):
        row = await house.pipeline.get(accepted.rid)
        assert (row.state, row.attempts) == (State.RECEIVED, 0)
    house.engine.open.set()
    await house.begin()
    for accepted in (running, *others):
        assert (await house.reply(accepted))["status"] == "done"
    assert house.rows("diary") == [("written",)]


async def test_stop_waits_for_what_is_nearly_done(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within its grace, replies included."""
    monkeypatch.setattr("edged.requests.worker.GRACE_S", 10.0)
    accepted = await house.take("wait")
    await until(lambda: house.engine.asked)
    stopping = asyncio.create_task(house.end())
    await asyncio.sleep(0)
    house.engine.open.set()
    await asyncio.wait_for(stopping, 3)
    assert await house.state(accepted) is State.DONE


class Away:
    """Implements interfaces.Deliverer: no reply arrives."""

    async def deliver(self, delivery: Delivery) -> None:
        """See interfaces.Deliverer."""
        await asyncio.Event().wait()


async def test_stop_waits_for_no_reply_whose_transport_is_gone(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reload took it out of the configuration. Should it come back, the reply goes out."""
    monkeypatch.setattr("edged.requests.outbox.FLUSH_S", 0.05)
    await house.end()
    house.deliverers = {"mqtt": Away()}
    await house.begin()
    caller = Caller("mqtt:r", "mqtt", frozenset({"house"}))
    request = request_from_map({"input": "hello", "agent": "house"}, agent=None)
    accepted = await house.pipeline.accept(Ask(request=request, caller=caller, address=Address("r", b"c")))
    await house.reply(accepted)
    assert (await house.pipeline.counts())["outbox_waiting"] == 1
    await house.end()
    house.deliverers = {}
    await house.begin()
    monkeypatch.setattr("edged.requests.outbox.FLUSH_S", 60.0)
    assert (await house.pipeline.counts())["outbox_waiting"] == 0
    async with asyncio.timeout(10):
        await house.end()
    house.deliverers = {"mqtt": house.mailbox}
    await house.begin()
    await until(lambda: [delivery.rid for delivery in house.mailbox.got] == [accepted.rid])


class Silent:
    """A broker that is away: it confirms when it is back, and a transport that stops first says so."""

    def __init__(self) -> None:
        self.asked = 0
        self.back: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False) -> None:
        """See interfaces.Publisher."""
        self.asked += 1
        await asyncio.shield(self.back)


@pytest.mark.parametrize("on_uncertain", ["retry", "report"])
async def test_stop_amid_a_publish_without_a_link_leaves_it_to_on_uncertain(
    on_uncertain: OnUncertain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no failure of the tool: what came of it is unknown, as after a crash, and neither dropped nor told as
    final."""
    monkeypatch.setattr("edged.requests.worker.PUT_BACK_S", 0.05)
    monkeypatch.setattr("edged.requests.outbox.FLUSH_S", 0.05)
    tool = PublishTool(
        description="A lamp.", publish=Publish(topic="lamp", payload="on", qos=1), on_uncertain=on_uncertain
    )
    house = House(tmp_path)
    house.script.write_text(entry("lamp", {"name": "lamp", "arguments": {}}, text="it is on"))
    agent = msgspec.structs.replace(house.config.agents["house"], tools=("lamp",))
    house.config = msgspec.structs.replace(house.config, tools={"lamp": tool}, agents={"house": agent})
    house.broker = Silent()
    async with house:
        accepted = await house.take("lamp")
        await until(lambda: house.broker.asked)
        stopping = asyncio.create_task(house.pipeline.stop())
        await until(stopping.done)
        house.broker.back.set_exception(NoLink("the transport was stopped"))
        await until(lambda: not house.pipeline._worker._running)
        assert await house.state(accepted) is State.RECEIVED
        await house.end()
        house.broker = Silent()
        house.broker.back.set_result(None)
        await house.begin()
        reply = await house.reply(accepted)
        if on_uncertain == "retry":
            assert (reply["status"], house.broker.asked) == ("done", 1)
        else:
            assert (reply["status"], house.broker.asked) == ("failed", 0)
            assert "may have happened" in reply["error"]["message"]


async def test_after_a_crash_one_request_runs_at_a_time_until_all_of_it_is_over(house: House) -> None:
    """So the next death is counted against its cause only; then everything is as before."""
    running = await house.busy()
    await crash(house)
    house.engine.asked.clear()
    await house.begin()
    await until(lambda: house.engine.asked)
    assert (await house.pipeline.counts())["running"] == 1
    house.engine.open.set()
    for accepted in running:
        assert (await house.reply(accepted))["status"] == "done"
    house.engine.open.clear()
    house.engine.asked.clear()
    await house.busy()


async def test_crash_too_many_is_quarantined_and_says_so(house: House) -> None:
    """The attempts are counted over restarts."""
    accepted = await house.take("write, pause", id="q")
    for _ in range(house.config.queue.max_attempts):
        await until_state(house, accepted, State.RUNNING)
        await until(lambda: house.rows("diary"))
        await crash(house)
        await house.begin()
    reply = await house.reply(accepted)
    assert (reply["status"], reply["error"]["code"]) == ("failed", "quarantined")
    assert [call["name"] for call in reply["tool_calls"]] == ["note"], "it tells what was done"
    assert house.rows("diary") == [("written",)]
    assert await house.state(accepted) is State.QUARANTINED
    assert (await house.take("write, pause", id="q")).reply is not None, "it stays known under its id"


# -- a store that cannot be written ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [apsw.FullError("full"), apsw.IOError("io"), apsw.ReadOnlyError("ro"), apsw.BusyError("locked")]
)
async def test_store_that_cannot_be_written_refuses_new_work_loses_no_answer_and_recovers(
    house: House, monkeypatch: pytest.MonkeyPatch, error: apsw.Error
) -> None:
    """New requests are busy; one that runs does its work once and tells when the disk takes it."""
    monkeypatch.setattr("edged.requests.storing.RETRY_S", (0.01, 0.02))
    accepted = await house.take("wait")
    await until(lambda: house.engine.asked)
    house.store.refuses = error
    house.engine.open.set()
    await until(lambda: house.store.refused > 2)
    with pytest.raises(Busy, match="cannot be written") as refused:
        await house.take("another", id="q")
    assert refused.value.retry_after_s
    assert not house.task.done(), "the daemon would have died"
    house.store.refuses = None
    assert (await house.reply(accepted))["status"] == "done"
    assert (await house.ask("another", id="q"))["status"] == "done"


async def test_disk_that_refuses_the_journal_delays_a_write_and_never_doubles_or_hides_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its intent is beside its effect; the journal cannot be written at first, and then all goes on."""
    monkeypatch.setattr("edged.requests.storing.RETRY_S", (0.01, 0.02))
    accepted = await house.take("wait, write it")
    await until(lambda: house.engine.asked)
    house.store.refuses = apsw.FullError("full")
    house.engine.open.set()
    await until(lambda: house.store.refused > 2)
    assert house.rows("diary") == [("written",)]
    assert not await house.store.read(lambda c: journal.steps(c, accepted.rid))
    house.store.refuses = None
    reply = await house.reply(accepted)
    assert (reply["status"], [call["ok"] for call in reply["tool_calls"]]) == ("done", [True])
    assert house.rows("diary") == [("written",)]


async def test_disk_that_refuses_a_result_does_not_keep_the_daemon_from_ending(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends while a tool acts, and what came of that cannot be written down; the next start finds it."""
    accepted = await crash_behind_an_effect(house, monkeypatch)
    house.engine.open.set()
    await house.begin()
    assert (await house.reply(accepted))["status"] == "done"
    assert house.rows("diary") == [("written",)]


async def test_write_that_never_got_into_the_journal_is_not_done_again_by_another_decision(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its intent was beside its effect: the request goes on behind it, whatever the model would decide now."""
    accepted = await crash_behind_an_effect(house, monkeypatch)
    assert await house.store.read(lambda c: journal.steps(c, accepted.rid)) == []
    house.script.write_text(entry("write", note("something else"), text="written"))
    await house.engine.load(ModelSpec(name="small", path=str(house.script), context=4096))
    house.engine.open.set()
    await house.begin()
    reply = await house.reply(accepted)
    assert (reply["status"], reply["output"]) == ("done", "written")
    assert [call["arguments"] for call in reply["tool_calls"]] == [{"text": "written"}]
    assert house.rows("diary") == [("written",)]
    log = await house.store.read(lambda c: audit.entries(c, 100))
    assert sum(entry["what"] == "tool.called" for entry in log) == 1


async def test_database_that_cannot_be_read_after_a_crash_fails_the_request_and_nothing_is_done_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the write happened is not known then."""
    accepted = await crash_behind_an_effect(house, monkeypatch)
    house.engine.open.set()
    plant = Path(house.config.databases["plant"].path)
    plant.rename(plant.with_name("elsewhere"))
    plant.mkdir()
    await house.begin()
    reply = await house.reply(accepted)
    assert (reply["status"], reply["error"]["code"]) == ("failed", "tool_failed")
    assert "plant" in reply["error"]["message"]


async def test_disk_that_refuses_a_claim_leaves_the_request_in_the_queue(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker tries again; the daemon lives."""
    monkeypatch.setattr("edged.requests.storing.RETRY_S", (0.01, 0.02))
    original, failing = requests.claim, [apsw.IOError("io"), apsw.FullError("full"), apsw.BusyError("locked")]

    def claim(c: apsw.Connection, places: requests.FreeSlots) -> Any:
        if failing:
            raise failing.pop()
        return original(c, places)

    waiting = await house.busy()
    accepted = await house.take("hello")  # waits for a place: it is claimed by the worker, not where it is taken in
    monkeypatch.setattr(requests, "claim", claim)
    house.engine.open.set()
    assert [(await house.reply(each))["status"] for each in (*waiting, accepted)] == ["done"] * (MAX_RUNNING + 1)
    assert not failing


async def test_real_full_store_refuses_and_takes_again_when_there_is_room(tmp_path: Path) -> None:
    """SQLite itself says that the disk is full (a bound on its pages stands for the disk)."""
    async with House(tmp_path) as house:
        await house.ask("hello")
        pages = await house.store.write(lambda c: c.pragma("page_count"))
        await house.store.write(lambda c: c.pragma("max_page_count", pages))

        async def fill() -> None:
            for number in range(100):
                await house.take("x" * 20_000, id=f"q{number}")

        with pytest.raises(Busy, match="cannot be written"):
            await fill()
        assert not house.task.done()
        await house.store.write(lambda c: c.pragma("max_page_count", 1_000_000))
        assert (await house.ask("after it"))["status"] == "done"


async def test_what_is_older_than_the_retention_is_forgotten_and_its_id_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished requests only: what waits stays."""
    monkeypatch.setattr("edged.requests.tidy.HOUSEKEEPING_S", 0.02)
    async with House(tmp_path, store={"retention_days": 1.0}) as house:
        first = await house.take("hello", id="q")
        await house.reply(first)
        waiting = await house.take("wait")
        real = clock.boot
        monkeypatch.setattr(clock, "boot", lambda: real() + 2 * 86400)

        async def gone() -> bool:
            return await house.pipeline.find(first.rid) is None

        async with asyncio.timeout(10):
            while not await gone():
                await asyncio.sleep(0.01)
        assert await house.state(waiting) is State.RUNNING
        assert (await house.take("something else", id="q")).rid != first.rid


async def until_state(house: House, accepted: Accepted, state: State) -> None:
    """Wait until a request is in a state."""
    async with asyncio.timeout(10):
        while await house.state(accepted) is not state:
            await asyncio.sleep(0.005)


async def crash_behind_an_effect(house: House, monkeypatch: pytest.MonkeyPatch) -> Accepted:
    """A request whose write is done, and whose journal knows nothing of it."""
    loop = asyncio.get_running_loop()

    def strike() -> None:
        house.store.refuses = apsw.IOError("dead")
        loop.call_soon_threadsafe(house.task.cancel)

    monkeypatch.setitem(fault_points._armed, "tool.effect", strike)
    accepted = await house.take("write, pause", id="q")
    await until(lambda: house.task.cancelling() or house.task.done())
    fault_points._armed.clear()
    await crash(house)
    return accepted


async def crash(house: House) -> None:
    """End the pipeline without a word: what runs stays marked as running, as after a kill."""
    house.store.refuses = apsw.IOError("dead")
    house.task.cancel()
    done, _ = await asyncio.wait([house.task], timeout=10)
    assert done, "the pipeline does not end"
    house.store.refuses = None


def _prompt(job: Job) -> str:
    return "".join(segment.text for segment in job.turn)


# -- nothing found -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sql", ["SELECT 1 AS level WHERE :tank = ''", "SELECT nullif(:tank, 'south') AS level, NULL AS at"]
)
@pytest.mark.parametrize(
    ("say_none", "fields", "said"),
    [
        (None, {}, "Nothing was found."),
        (None, {"language": "de-AT"}, "Es wurde nichts gefunden."),
        ("No level of the {tank} tank is known.", {}, "No level of the south tank is known."),
        ("No level.", {"response_schema": {"type": "string"}}, '"It is full."'),  # in a shape the model answers
    ],
)
async def test_what_holds_nothing_is_not_worded_by_the_model(
    tmp_path: Path, sql: str, say_none: str | None, fields: dict[str, Any], said: str
) -> None:
    """No rows, or NULLs only: a model makes something up."""
    async with House(tmp_path) as house:
        tools = house.config.tools
        tool = msgspec.structs.replace(tools["tank_level"], say_none=say_none, sql=sql)
        await house.end()
        house.config = msgspec.structs.replace(house.config, tools={**tools, "tank_level": tool})
        await house.begin()
        reply = await house.ask("how full is the tank?", **fields)
        assert (reply["status"], reply["output"]) == ("done", said)
        assert [call["ok"] for call in reply["tool_calls"]] == [True]


async def test_a_language_that_is_none_is_a_bad_request(house: House) -> None:
    with pytest.raises(BadRequest, match="language"):
        await house.take("how full?", language="<script>")
