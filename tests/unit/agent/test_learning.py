"""What is learnt of a run, what is not, and who sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import apsw
import pytest

from edged.agent.learning import LONGEST, Learning
from edged.agent.loop import Run
from edged.config import Agent, Config, Node, Tool
from edged.config.tools import SqlTool
from edged.errors import BadRequest, UnknownAgent
from edged.store import learnt
from edged.store.learnt import Lesson, Source
from edged.types import JSON, AnswerKind, Message, Privacy, Request, ToolCall, ToolRecord
from tests.support.store import store

VALVE = SqlTool(
    description="Open a valve.", database="d", sql="SELECT :valve", effect="write",
    parameters={"valve": {"enum": ["north", "south"]}},
)  # fmt: skip
ALARM = SqlTool(
    description="Set it.", database="d", sql="SELECT :at, :name", effect="write",
    parameters={"at": {"type": "string", "format": "date-time", "optional": True}, "name": {"type": "string"}},
)  # fmt: skip
GUEST = SqlTool(
    description="A guest.", database="d", sql="SELECT :room", private=("name",),
    parameters={"room": {"type": "integer"}},
)  # fmt: skip
SAFE = SqlTool(description="The safe.", database="d", sql="SELECT 1", private=True)
TOOLS: dict[str, Tool] = {"set_valve": VALVE, "set_alarm": ALARM, "guest": GUEST, "safe": SAFE}
NORTH = ToolCall("set_valve", {"valve": "north"})


class World:
    """No values from databases."""

    async def exactly(self, _: SqlTool, call: ToolCall) -> ToolCall:
        """See World."""
        return call


class Tools:
    """What learning asks of a toolbox."""

    tools, world = TOOLS, World()

    def get(self, name: str) -> Tool | None:
        """See Toolbox."""
        return TOOLS.get(name)

    def is_write(self, name: str) -> bool:
        """See Toolbox."""
        return name != "guest"


class Store:
    """See Database."""

    def __init__(self) -> None:
        self.c = store()

    async def read(self, work: Callable[[apsw.Connection], Any]) -> Any:
        """See Database."""
        return work(self.c)


def agent(**fields: Any) -> Agent:
    """One that learns."""
    return Agent(**{"model": "m", "tools": tuple(TOOLS), "privacy": Privacy.ANY, "learn": True, **fields})


def learning(mine: Agent, database: Store | None = None) -> Learning:
    """For one agent."""
    config = Config(node=Node(), agents={"house": mine}, tools=TOOLS)
    return Learning(config, cast("Any", Tools()), cast("Any", database or Store()))


def run(mine: Agent, *records: ToolRecord, text: str = "water the roses", role: str = "", **request: Any) -> Run:
    """One whose only decision, an upstream's, was for these calls."""
    asked = Request(**{"agent": "house", "messages": (Message("user", text),), **request})
    nobody = cast("Any", None)
    tools = cast("Any", Tools())
    made = Run("r1", mine, asked, toolbox=tools, journal=nobody, history=(), steps=(), stream=None, role=role)
    made._records = list(records)
    made.by_upstream, made.last_calls = True, len(records)
    return made


def done(tool: str = "set_valve", result: JSON = None, ok: bool = True, **arguments: JSON) -> ToolRecord:
    """A call that was made."""
    return ToolRecord(tool, arguments or {"valve": "north"}, result or {"changes": 1}, ok)


async def lesson(made: Run, kind: AnswerKind = AnswerKind.ACTED, *, follows: bool = False) -> Lesson | None:
    """What it teaches."""
    return await learning(made.agent).lesson(made, kind, follows=follows)


async def test_calls_of_an_upstream_that_worked_are_learnt() -> None:
    both = done(), done(valve="south")
    found = await lesson(run(agent(), *both, role="viewer"))
    assert found == Lesson(
        agent="house", role="viewer", source=Source.UPSTREAM, text="water the roses",
        calls=(NORTH, ToolCall("set_valve", {"valve": "south"})), rid="r1",
    )  # fmt: skip


def spoilt(change: Callable[[Run], None]) -> Run:
    """A run that would teach something, changed."""
    made = run(agent(), done())
    change(made)
    return made


def set_(name: str, value: Any) -> Callable[[Run], None]:
    """Changes one attribute."""
    return lambda made: setattr(made, name, value)


@pytest.mark.parametrize(
    ("made", "kind", "follows"),
    [
        (run(agent(learn=False), done()), AnswerKind.ACTED, False),
        (spoilt(set_("by_upstream", False)), AnswerKind.ACTED, False),
        (spoilt(set_("last_calls", 0)), AnswerKind.ACTED, False),  # of several decisions
        (run(agent(), done(), done(ok=False)), AnswerKind.ACTED, False),
        (run(agent()), AnswerKind.ANSWERED, False),
        (run(agent(), done()), AnswerKind.NOTHING_FOUND, False),
        (run(agent(), done()), AnswerKind.ACTED, True),
        (run(agent(), done(), privacy=Privacy.DEVICE), AnswerKind.ACTED, False),
        (run(agent(), done(), messages=(Message("user", "a"), Message("user", "b"))), AnswerKind.ACTED, False),
        (run(agent(), done("set_alarm", at="2030-01-01T07:00:00Z", name="x")), AnswerKind.ACTED, False),
        (run(agent(), done(), text="write to anna.k@example.org"), AnswerKind.ACTED, False),
        (run(agent(), done(), text="x" * (LONGEST + 1)), AnswerKind.ACTED, False),
        (run(agent(), done("safe")), AnswerKind.ANSWERED, False),
        # what a result says in a private column is private in the text, too
        (run(agent(), done("guest", {"rows": [{"name": "Novak"}]}, room=4), text="is Novak in 4?"), "answered", False),
    ],
)  # fmt: skip
async def test_what_is_not_learnt(made: Run, kind: AnswerKind, follows: bool) -> None:
    assert await lesson(made, AnswerKind(kind), follows=follows) is None


async def test_neighbours_of_what_is_not_learnt_are() -> None:
    """So none of these is kept out by something else."""
    for made in (
        run(agent(learn="local"), done(), privacy=Privacy.DEVICE),
        run(agent(), done("set_alarm", name="x")),
        run(agent(mask=False), done(), text="write to anna.k@example.org"),
        run(agent(), done("guest", {"rows": [{"name": "Novak"}]}, room=4), text="who is in 4?"),
    ):
        assert await lesson(made, AnswerKind.ANSWERED) is not None


async def test_only_the_same_role_sees_it() -> None:
    database = Store()
    learnt.keep(database.c, Lesson(agent="house", role="operator", source=Source.ADDED, text="a", calls=(NORTH,)))
    mine = agent()
    for role, count in (("operator", 1), ("viewer", 0), ("", 0)):
        assert len(await learning(mine, database).examples(run(mine, role=role))) == count


async def test_agent_that_learns_no_more_sees_nothing() -> None:
    """Nor what came of requests that were not to leave the board, where only others may teach."""
    database = Store()
    secret = Lesson(agent="house", role="", source=Source.CORRECTED, text="a", calls=(NORTH,), private=True)
    learnt.keep(database.c, secret)
    for learns, count in ((False, 0), (True, 0), ("local", 1)):
        mine = agent(learn=learns)
        assert len(await learning(mine, database).examples(run(mine))) == count


async def test_example_of_a_tool_that_is_another_by_now_is_not_shown() -> None:
    database = Store()
    for text, name, arguments in (
        ("a", "gone", {}),
        ("b", "set_valve", {"side": "x"}),
        ("c", "set_valve", {"valve": "north"}),
    ):
        calls = (ToolCall(name, arguments),)
        learnt.keep(database.c, Lesson(agent="house", role="", source=Source.ADDED, text=text, calls=calls))
    shown = await learning(agent(), database).examples(run(agent()))
    assert [each.text for each in shown] == ["c"]
    assert await learning(agent(), database).examples(run(agent(tools=("guest",)))) == []


async def test_owner_writes_relative_times() -> None:
    mine = learning(agent())
    made = await mine.added(
        "house", "", " wake me in twenty minutes ", [ToolCall("set_alarm", {"at": "now+20m", "name": "x"})]
    )
    assert (made.text, made.rid) == ("wake me in twenty minutes", None)


@pytest.mark.parametrize(
    ("text", "calls", "says"),
    [
        (" ", [NORTH], "text: is empty"),
        ("a", [], "1 to 4"),
        ("a", [NORTH] * 5, "1 to 4"),
        ("a", [ToolCall("tank", {})], "is no tool of agent 'house'; it has set_valve, set_alarm, guest, safe"),
        ("a", [ToolCall("set_valve", {"valve": "east"})], "'east' is not one of"),
        ("a", [ToolCall("set_valve", {})], "'valve' is a required property"),
        ("a", [ToolCall("set_valve", {"valve": "north", "by": 3})], "'by' was unexpected"),
        ("a", [ToolCall("set_alarm", {"name": "x", "at": "soonish"})], "is no date-time"),
        ("a", [ToolCall("safe", {})], "no upstream may know"),
        ("mail anna.k@example.org", [NORTH], "no upstream may see"),
    ],
)
async def test_owner_is_told_what_is_no_example(text: str, calls: Sequence[ToolCall], says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        await learning(agent()).added("house", "", text, calls)


async def test_agent_has_to_be_one_that_learns() -> None:
    with pytest.raises(BadRequest, match="does not learn: write learn = true"):
        await learning(agent(learn=False)).added("house", "", "a", [NORTH])
    with pytest.raises(UnknownAgent):
        await learning(agent()).added("barn", "", "a", [NORTH])


async def test_correction_is_of_a_request_alone_that_may_leave() -> None:
    mine = learning(agent())
    asked = Request(agent="house", messages=(Message("user", "water it"),))
    found = await mine.corrected(asked, "r", "viewer", [NORTH], [])
    assert (found.source, found.rid, found.text, found.role) == (Source.CORRECTED, "r", "water it", "viewer")
    before = Request(agent="house", messages=(Message("user", "a"), Message("assistant", "b"), Message("user", "c")))
    with pytest.raises(BadRequest, match="said before"):
        await mine.corrected(before, "r", "", [NORTH], [])
    device = Request(agent="house", messages=(Message("user", "a"),), privacy=Privacy.DEVICE)
    with pytest.raises(BadRequest, match='learn is not "local"'):
        await mine.corrected(device, "r", "", [NORTH], [])
    assert (await learning(agent(learn="local")).corrected(device, "r", "", [NORTH], [])).private


async def test_bug_in_it_costs_no_outcome(caplog: pytest.LogCaptureFixture) -> None:
    made = run(agent(), done())
    broken = learning(made.agent)
    broken._toolbox = cast("Any", None)
    assert await broken.lesson(made, AnswerKind.ACTED, follows=False) is None
    assert "through a bug" in caplog.text
