"""Models are there before anybody asks, and nobody suffers where they cannot be."""

from __future__ import annotations

import asyncio

import pytest

from edged.agent.dialects.chat_template import Dialect
from edged.agent.prompts import Prompts
from edged.agent.warm import Warmer
from edged.config import Agent, Example, Model, SqlTool
from edged.errors import ContextExceeded, ModelUnavailable, NoMemory
from edged.types import JSON, SERVER_ENGINE, Completion, Job, Preference, Priority

TOOLS = {
    "level": SqlTool(
        description="Level of a tank.",
        database="plant",
        sql="SELECT 1",
        examples=(Example(input="how full?"),),
    )
}
AGENTS = {
    "house": Agent(model="small", system="You run a greenhouse.", tools=("level",)),
    "porter": Agent(model="small", system="You open the gate."),
    "remote": Agent(model="small", system="You plan.", route=Preference.CLOUD),
    "guest": Agent(model="other", system="You wait."),
}


class Board:
    """An engine and a governor that keep what they were asked, and fail as told: by a model's name when it is loaded,
    by an agent's when its prompts are made or warmed."""

    def __init__(self, **fails: Exception) -> None:
        self.fails = fails
        self.loaded: list[str] = []
        self.jobs: list[Job] = []
        self.events: list[tuple[str, dict[str, JSON]]] = []
        self.holds_up = False

    async def load(self, model: str) -> None:
        self.loaded.append(model)
        if model in self.fails:
            raise self.fails[model]

    async def warm(self, job: Job) -> None:
        """See interfaces.Engine."""
        if self.holds_up:
            await asyncio.Event().wait()
        self.jobs.append(job)

    async def generate(self, job: Job, on_text: object = None, *, on_piece: object = None) -> Completion:
        """See interfaces.Engine."""
        raise AssertionError("nothing is generated")

    async def speak(self, agent: str) -> Prompts:
        if agent in self.fails:
            raise self.fails[agent]
        return prompts(agent)

    def tell(self, name: str, data: dict[str, JSON]) -> None:
        self.events.append((name, data))


def prompts(agent: str) -> Prompts:
    return Prompts(AGENTS[agent], TOOLS, Dialect(None, {}))


def warmer(board: Board, *preloaded: str) -> Warmer:
    models = {name: Model(preload=name in preloaded) for name in ("small", "other")}
    return Warmer(models, AGENTS, board, board.speak, load=board.load, tell=board.tell)


async def test_prefixes_of_a_preloaded_models_agents_are_warmed() -> None:
    """Those that ask it, with their grammars, behind everybody's requests."""
    board = Board()
    await warmer(board, "small").run()
    assert board.loaded == ["small"]
    house, porter = prompts("house"), prompts("porter")
    expected = [*house.fixed(), *porter.fixed()]
    assert [(job.prefix, job.turn, job.grammar) for job in board.jobs] == [(p.prefix, p.turn, g) for p, g in expected]
    assert {(job.model, job.priority) for job in board.jobs} == {("small", Priority.BATCH)}
    assert len({job.rid for job in board.jobs}) == 4
    [(name, data)] = board.events
    assert (name, data["model"], data["prefixes"]) == ("model_warmed", "small", 4)


async def test_model_in_a_server_is_brought_in_and_its_prefixes_are_the_servers() -> None:
    """There is no engine of ours to warm."""
    board = Board()
    models = {"small": Model(preload=True, engine=SERVER_ENGINE)}
    await Warmer(models, AGENTS, board, board.speak, load=board.load, tell=board.tell).run()
    assert (board.loaded, board.jobs) == (["small"], [])
    assert board.events[0][0] == "model_warmed"


async def test_nothing_is_done_where_nothing_is_to_be_preloaded() -> None:
    """The default."""
    board = Board()
    await warmer(board).run()
    assert (board.loaded, board.jobs, board.events) == ([], [], [])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NoMemory("too large"), "no_memory"),
        (ModelUnavailable("not installed"), "model_unavailable"),
        (RuntimeError("a bug"), "internal"),
    ],
)
async def test_a_model_that_cannot_be_loaded_is_told_and_the_next_one_is_not_held_up(
    error: Exception, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With the reason; nothing is raised."""
    board = Board(small=error)
    await warmer(board, "small", "other").run()
    assert board.loaded == ["small", "other"]
    assert [job.model for job in board.jobs] == ["other"]
    failed, warmed = board.events
    assert failed[0] == "preload_failed"
    assert (failed[1]["model"], failed[1]["agent"], failed[1]["code"]) == ("small", None, code)
    assert str(error) in failed[1]["reason"]
    assert warmed[0] == "model_warmed"
    [record] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert str(error) in record.getMessage()
    assert bool(record.exc_info) is (code == "internal")


async def test_an_agent_that_cannot_be_warmed_does_not_hold_up_the_others() -> None:
    """Its prefix is too long, say."""
    board = Board(house=ContextExceeded(5000, 4096))
    await warmer(board, "small").run()
    assert len(board.jobs) == 1
    failed, warmed = board.events
    assert (failed[1]["agent"], failed[1]["code"]) == ("house", "too_large")
    assert warmed[1]["prefixes"] == 1


async def test_a_stop_ends_it_at_once() -> None:
    """It is cancelled, and says nothing of a failure."""
    board = Board()
    board.holds_up = True
    task = asyncio.create_task(warmer(board, "small").run())
    while not board.loaded:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert board.events == []
