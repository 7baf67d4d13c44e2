"""How a request goes from the router to the minds and back, with minds that do as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest

from edged.agent import dispatch, router
from edged.agent.dispatch import Dispatcher, Routing
from edged.agent.loop import Answered, Decided, Decider, Declined, Passed, Run
from edged.agent.minds import MINDS
from edged.agent.minds.base import Resources
from edged.agent.minds.cloud import CloudMind
from edged.agent.router import Decision, Facts, Go, Reason
from edged.config import Agent, Model, Upstream
from edged.errors import EdgedError, ModelUnavailable, NoLink, ToolFailed
from edged.types import (
    Chat,
    ChatAnswer,
    Finding,
    Message,
    Offline,
    Preference,
    Privacy,
    RawCall,
    Request,
    RouteTaken,
    ToolCall,
    UpstreamFacts,
)

Move = Decided | Answered | Passed | Exception


class Cloud:
    """One upstream: what is known of it, and what it answers."""

    def __init__(self) -> None:
        self.known = UpstreamFacts("far")
        self.asked = 0
        self.answers: Callable[[], ChatAnswer] = lambda: answer("from afar")

    def facts(self, names: Collection[str]) -> tuple[UpstreamFacts, ...]:
        """See upstreams.Cloud."""
        return tuple(self.known for name in names)

    def retry_after_s(self, names: Collection[str]) -> float | None:
        """See upstreams.Cloud."""
        return None

    async def chat(self, name: str, chat: Chat, on_text: Any = None, *, on_body: Any = None) -> ChatAnswer:
        """See upstreams.Cloud."""
        self.asked += 1
        assert self.asked < 10, "it is asked without end"
        return self.answers()


def answer(text: str, *calls: RawCall) -> ChatAnswer:
    return ChatAnswer(
        text=text, calls=calls, finish="stop", prompt_tokens=1, cached_tokens=0, completion_tokens=1,
        first_token_ms=1, total_ms=1,
    )  # fmt: skip


class Board:
    """A dispatcher whose local mind makes these moves, one after the other."""

    def __init__(self, *moves: Move, **agent: Any) -> None:
        self.cloud = Cloud()
        self.moves = iter(moves)
        self.kept: list[tuple[Finding, ...]] = []
        settings = Agent(model="m", **{"privacy": Privacy.ANY, "tools": ("t",), **agent})
        config = SimpleNamespace(
            agents={"a": settings},
            models={"m": Model(source="scripted:x")},
            upstreams={"far": Upstream(base_url="http://far/v1", model="large")},
            upstreams_of=lambda agent: ("far",),
        )
        tool = SimpleNamespace(description="d", parameters={}, private=(), examples=(), say="")
        self.dispatcher = Dispatcher(
            Resources(
                config=cast("Any", config), tools={"t": cast("Any", tool)}, engine=cast("Any", self),
                served=cast("Any", {}), cloud=cast("Any", self.cloud), speak=cast("Any", None),
            )
        )  # fmt: skip
        self.toolbox = Toolbox()
        self.agent = settings
        self.routing = Routing((), self._keep)

    async def _keep(self, findings: tuple[Finding, ...]) -> None:
        self.kept.append(findings)

    async def ask(self, decision: Decision | None = None, **request: Any) -> str | None:
        """The answer; None: it is to be parked."""
        asked = Request(agent="a", messages=(Message("user", "hi"),), **request)
        self.routing.decision = decision or self.dispatcher.decide(asked)
        run = Run(
            "r1", self.agent, asked, toolbox=cast("Any", self.toolbox), journal=cast("Any", self.toolbox), history=(),
            steps=(), stream=None,
        )  # fmt: skip
        async with asyncio.timeout(10):
            outcome = await self.dispatcher.answer(run, self.routing)
        return None if outcome is None else outcome.output

    @property
    def route(self) -> tuple[str, str]:
        """(where, why) of the reply."""
        taken = self.dispatcher.route("a", self.routing, None)
        return taken.where, taken.reason


class Toolbox:
    """A toolbox and a journal in one: a call works, or raises."""

    def __init__(self) -> None:
        self.fails: EdgedError | None = None

    def get(self, name: str) -> None:
        """No tool has anything to say."""

    def keeps_intents(self, name: str) -> bool:
        """Nothing is written down here."""
        return True

    def is_write(self, name: str) -> bool:
        """They only read."""
        return False

    def hold(self, step: Any) -> None:
        """See Journal."""

    async def call(self, *arguments: Any) -> Any:
        """See toolbox.Toolbox."""
        if self.fails is not None:
            raise self.fails
        return {}


class Following:
    """A mind for what stays on the board: it makes the moves of the test."""

    where: ClassVar[str] = "local"

    def __init__(self, resources: Resources) -> None:
        self._board = cast("Board", resources.engine)

    def begin(self, run: Run, decision: Decision) -> Decider | None:
        """See Mind."""
        return Scripted(self._board, decision) if decision.go is Go.LOCAL else None


class Scripted(Decider):
    """Implements `Decider`."""

    def __init__(self, board: Board, decision: Decision) -> None:
        self.route = RouteTaken("local", "m", decision.reason)
        self._board = board

    async def move(self, run: Run) -> Decided | Answered | Passed:
        """See Decider."""
        made = next(self._board.moves)
        if isinstance(made, Exception):
            raise made
        return made

    def why_not(self, error: EdgedError) -> Declined | None:
        """See Decider."""
        return Declined(error, finding=Finding.FAILED) if isinstance(error, ToolFailed) else None


@pytest.fixture(autouse=True)
def _minds(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(dispatch, "MINDS", [Following, CloudMind])
    yield
    assert MINDS[-1] is CloudMind  # the real chain is as it was


async def test_decision_of_the_acceptance_is_followed_and_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The router is asked once for a request to which nothing happens."""
    asked: list[Facts] = []
    real = router.decide

    def counted(facts: Facts) -> Decision:
        asked.append(facts)
        return real(facts)

    monkeypatch.setattr(router, "decide", counted)
    board = Board(Answered("here"))
    assert await board.ask() == "here"
    assert (len(asked), board.route) == (1, ("local", Reason.LOCAL_OK))


async def test_mind_that_declines_hands_over_with_its_finding() -> None:
    """What was found out is kept, and the reply has it as the reason."""
    board = Board(Declined(ToolFailed("no"), finding=Finding.ESCALATED))
    assert await board.ask() == "from afar"
    assert (board.kept, board.route) == ([(Finding.ESCALATED,)], ("cloud", Reason.ESCALATED))


async def test_error_of_a_run_is_what_its_mind_says() -> None:
    """A tool's failure is a finding of the board, another error is not."""
    failed = Board(ToolFailed("the tool"))
    assert await failed.ask() == "from afar"
    assert failed.route == ("cloud", Reason.LOCAL_FAILED)
    refused = Board(ModelUnavailable("gone"))
    with pytest.raises(ModelUnavailable, match="gone"):
        await refused.ask()


async def test_request_that_nobody_takes_fails_with_the_last_error_of_the_board() -> None:
    """Not with the router's."""
    board = Board(ToolFailed("the tool"), privacy=Privacy.DEVICE)
    with pytest.raises(ToolFailed, match="the tool"):
        await board.ask()
    assert board.route == ("local", Reason.LOCAL_FAILED)


async def test_request_without_a_link_is_parked_or_fails_as_its_agent_says() -> None:
    """A decision that sent it nowhere is made again when its turn comes."""
    away = UpstreamFacts("far", up=False)
    waits = Board(route=Preference.CLOUD)
    waits.cloud.known = away
    assert await waits.ask() is None
    fails = Board(route=Preference.CLOUD, when_offline=Offline.FAIL)
    fails.cloud.known = away
    with pytest.raises(NoLink, match="no upstream can be reached"):
        await fails.ask()
    fails.cloud.known = UpstreamFacts("far")
    assert await fails.ask(Decision(Go.FAIL, Reason.OFFLINE)) == "from afar"


async def test_link_that_went_meanwhile_is_decided_upon_anew() -> None:
    """The upstream is not asked."""
    board = Board(Answered("here"), route=Preference.CLOUD, when_offline=Offline.LOCAL)
    decision = board.dispatcher.decide(Request(agent="a", messages=(Message("user", "hi"),)))
    board.cloud.known = UpstreamFacts("far", up=False)
    assert await board.ask(decision) == "here"
    assert (board.cloud.asked, board.route, board.routing.degraded) == (0, ("local", Reason.OFFLINE), True)


async def test_upstream_that_refuses_the_request_is_not_asked_again() -> None:
    """Its words are what the request fails with."""
    board = Board(route=Preference.CLOUD)

    def refuses() -> ChatAnswer:
        raise ModelUnavailable("upstream 'far': too rude")

    board.cloud.answers = refuses
    with pytest.raises(ModelUnavailable, match="too rude"):
        await board.ask()
    assert board.cloud.asked == 1


async def test_link_that_a_tool_lacks_is_not_taken_for_the_upstreams() -> None:
    """The run ends; the upstream that decided the call is not asked without end."""
    board = Board(route=Preference.CLOUD)
    board.cloud.answers = lambda: answer("", RawCall("t", "{}"))
    board.toolbox.fails = NoLink("the MQTT transport was stopped")
    with pytest.raises(NoLink, match="MQTT"):
        await board.ask()
    assert board.cloud.asked == 1


async def test_mind_that_passes_after_a_call_leaves_it_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the one that answers is who the reply names."""

    class First(Following):
        where: ClassVar[str] = "first"

        def begin(self, run: Run, decision: Decision) -> Decider | None:
            """See Mind."""
            decider = Scripted(self._board, decision)
            decider.route = RouteTaken("first", "", "known")
            return decider

    monkeypatch.setattr(dispatch, "MINDS", [First, Following, CloudMind])
    board = Board(Decided((ToolCall("t", {}),)), Passed(), Answered("worded"))
    assert await board.ask() == "worded"
    assert board.route == ("local", Reason.LOCAL_OK)
    board = Board(Answered("known"))
    assert await board.ask() == "known"
    assert board.route == ("first", "known")
