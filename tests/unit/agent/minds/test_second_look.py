"""What the board's model does where it is not sure of a call: once more with examples in sight, then not at all."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any, cast
from unittest.mock import patch

import msgspec
import pytest

from edged.agent.calibration import Calibration, Curve
from edged.agent.dialects.chat_template import CHATML, Dialect
from edged.agent.loop import Answered, Decided, Declined, Run
from edged.agent.minds.base import Resources
from edged.agent.minds.local import LocalDecider
from edged.agent.prompts import Prompts
from edged.agent.router import Decision, Go, Reason
from edged.agent.times import Moment
from edged.config import Agent
from edged.config.tools import Example, SqlTool
from edged.errors import ContextExceeded, ToolFailed
from edged.store.journal import Intent, Result, Step
from edged.types import AnswerKind, Completion, Finding, Finish, Job, Message, PastTurn, Request, ToolCall

EXAMPLES = (Example("open the north valve", {"valve": "north"}), Example("let water in", {"valve": "south"}))
VALVE = SqlTool(
    description="Open a valve.", database="d", sql="SELECT :valve", effect="write",
    parameters={"valve": {"enum": ["north", "south"]}}, examples=EXAMPLES,
)  # fmt: skip
LEVEL = SqlTool(description="How full it is.", database="d", sql="SELECT 1")
TOOLS = {"set_valve": VALVE, "level": LEVEL}
NORTH, SOUTH = 'set_valve(valve="north")', 'set_valve(valve="south")'
IDENTITY = Calibration(calls=Curve(1, 1, 0), none=Curve(1, 1, 0), auto=0.8, decisions=100)


class Tools:
    """What a run asks of a toolbox."""

    tools = TOOLS

    def get(self, name: str) -> SqlTool | None:
        """See Toolbox."""
        return TOOLS.get(name)

    def is_write(self, name: str) -> bool:
        """See Toolbox."""
        return name == "set_valve"


class Model:
    """Decides this with that score; with examples in sight, the other."""

    def __init__(self, first: tuple[str, float], then: tuple[str, float] | Exception | None = None) -> None:
        self._first, self._then = first, then
        self.prompts: list[str] = []
        self.prefixes: list[Any] = []

    async def generate(self, job: Job, *_: Any, **__: Any) -> Completion:
        """See interfaces.Engine."""
        text = "".join(segment.text for segment in job.turn)
        self.prompts.append(text)
        self.prefixes.append(job.prefix)
        decided = self._then if self._then is not None and "let water in" in text else self._first
        if isinstance(decided, Exception):
            raise decided
        return Completion(
            text=decided[0], finish=Finish.STOP, prompt_tokens=1, cached_tokens=0, completion_tokens=1, decode_steps=1,
            forced_tokens=0, logprob=math.log(decided[1]), load_ms=0, queue_ms=0, prefill_ms=0, first_token_ms=0,
            decode_ms=0,
        )  # fmt: skip


def deciding(
    model: Model, calibration: Calibration | None, *, reason: Reason = Reason.LOCAL_OK, **decision: Any
) -> LocalDecider:
    """About one request."""
    agent = Agent(model="m", tools=tuple(TOOLS))
    prompts = Prompts(agent, TOOLS, Dialect(CHATML, {}, "compact"))

    async def speak(_: str) -> Prompts:
        return prompts

    async def known(_: str) -> Calibration | None:
        return calibration

    nobody = cast("Any", None)
    resources = Resources(
        config=nobody, tools=TOOLS, engine=cast("Any", model), served=nobody, cloud=nobody, speak=speak,
        calibration=known,
    )  # fmt: skip
    return LocalDecider(resources, "m", Decision(Go.LOCAL, reason, **decision))


def run(text: str = "some water, please", *earlier: Message, least: Any = "auto", **more: Any) -> Run:
    """Of a request."""
    agent = Agent(model="m", tools=tuple(TOOLS), min_confidence=least)
    request = Request(agent="a", messages=(*earlier, Message("user", text)))
    given: dict[str, Any] = {"journal": None, "history": (), "steps": (), "stream": None, **more}
    return Run("r", agent, request, toolbox=cast("Any", Tools()), **given)


async def test_surer_decision_of_both_looks_counts() -> None:
    """And the examples stand behind the prefix, which is not computed again."""
    model = Model((NORTH, 0.4), (SOUTH, 0.9))
    move = await deciding(model, IDENTITY).move(mine := run())
    assert move == Decided((ToolCall("set_valve", {"valve": "south"}),), math.log(0.9))
    assert len(model.prompts) == 2
    assert model.prefixes[0] == model.prefixes[1] != ()
    first, second = model.prompts
    assert "let water in" not in first
    assert second.index("let water in") < second.index(SOUTH) < second.index("some water, please")
    assert mine.sure.second_look is False


@pytest.mark.parametrize("then", [(SOUTH, 0.3), ContextExceeded(5000, 4096)])
async def test_second_look_that_is_no_better_changes_nothing(then: Any) -> None:
    history = [PastTurn((Message("user", "hello"), Message("assistant", "hi")))]
    move = await deciding(Model((NORTH, 0.4), then), IDENTITY).move(mine := run(history=history))
    assert isinstance(move, Answered)
    assert (move.kind, move.text) == (AnswerKind.ASKED, "Do you want me to do this: Open a valve (valve: north)?")
    assert mine.sure.confidence == pytest.approx(0.4)
    assert [turn.messages for turn in mine.history] == [turn.messages for turn in history]


async def test_second_look_may_find_that_nothing_is_to_be_called() -> None:
    move = await deciding(Model((NORTH, 0.4), ("unable()", 0.9)), IDENTITY).move(mine := run())
    assert isinstance(move, Answered)
    assert move.kind is AnswerKind.UNABLE
    assert mine.sure.confidence == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("chosen", "calibration", "least"),
    [
        ((NORTH, 0.81), IDENTITY, "auto"),  # sure enough
        (("level()", 0.1), IDENTITY, "auto"),  # it only reads
        ((NORTH, 0.1), None, "auto"),  # no line was ever drawn
        ((NORTH, 0.1), IDENTITY, 0),
        ((NORTH, 0.5), IDENTITY, 0.49),
    ],
)
async def test_call_above_the_line_is_made_at_once(chosen: Any, calibration: Calibration | None, least: Any) -> None:
    model = Model(chosen)
    move = await deciding(model, calibration).move(run(least=least))
    assert isinstance(move, Decided)
    assert len(model.prompts) == 1


async def test_number_counts_for_reads_and_in_scores_without_a_calibration() -> None:
    move = await deciding(Model(("level()", 0.1)), None).move(run(least=0.5))
    assert isinstance(move, Answered)
    assert move.kind is AnswerKind.ASKED


async def test_unsure_call_is_handed_over_where_that_is_allowed() -> None:
    with pytest.raises(Declined) as declined:
        await deciding(Model((NORTH, 0.4)), IDENTITY, may_leave=True).move(run())
    assert declined.value.finding is Finding.UNSURE
    assert str(declined.value.error) == "set_valve was not called: confidence 0.40 is below min_confidence 0.80"


@pytest.mark.parametrize(("least", "kind"), [("auto", Answered), (0.8, Decided)])
async def test_board_that_has_to_answer_for_the_cloud_asks_unless_a_number_was_chosen(least: Any, kind: type) -> None:
    """With a number and `when_offline = "local"` the call is made, and the reply is degraded."""
    decider = deciding(Model((NORTH, 0.4)), IDENTITY, reason=Reason.OFFLINE, may_leave=True, degraded=True)
    assert isinstance(await decider.move(run(least=least)), kind)


async def test_board_asks_where_no_upstream_took_the_call() -> None:
    move = await deciding(Model((NORTH, 0.4)), IDENTITY, reason=Reason.UNSURE, may_leave=True).move(run())
    assert isinstance(move, Answered)
    assert move.kind is AnswerKind.ASKED


QUESTION = Message("assistant", "Soll ich das tun: Open a valve (valve: north)?")


@pytest.mark.parametrize(
    ("text", "question", "made"),
    [
        ("ja", QUESTION, True),
        ("Yes, please!", QUESTION, True),
        ("no", QUESTION, False),
        ("yes, but the south one", QUESTION, False),
        ("ja", Message("assistant", "Soll ich das tun: Open a valve (valve: south)?"), False),
        ("ja", Message("user", QUESTION.content), False),
    ],
)
async def test_plain_yes_to_the_question_makes_the_call(text: str, question: Message, made: bool) -> None:
    """Of the very call that was asked about, in whatever language; else edged would ask for ever."""
    for mine in (run(text, question), run(text, history=[PastTurn((Message("user", "water"), question))])):
        move = await deciding(Model((NORTH, 0.4)), IDENTITY).move(mine)
        assert isinstance(move, Decided if made else Answered)


ALARM = SqlTool(
    description="Set the alarm.", database="d", sql="SELECT :at", effect="write",
    parameters={"at": {"type": "string", "format": "date-time"}},
)  # fmt: skip


@pytest.mark.parametrize(
    ("said", "asked", "made_later"),
    [("tomorrow 07:00", "2030-03-31T07:00:00+00:00", False), ("now+20m", "now+20m", True)],
)
async def test_question_names_the_day_and_a_yes_is_to_that_day(said: str, asked: str, made_later: bool) -> None:
    """After midnight "tomorrow" is another day than the one that was agreed to: edged asks again."""
    evening, night = (Moment(datetime(2030, 3, day, 12, 0, tzinfo=UTC), UTC, "UTC") for day in (30, 31))
    with patch.dict(TOOLS, set_valve=ALARM):
        model = Model((f'set_valve(at="{said}")', 0.4))
        move = await deciding(model, IDENTITY).move(run(moment=evening))
        assert isinstance(move, Answered)
        assert move.text == f"Do you want me to do this: Set the alarm (at: {asked})?"
        for moment, made in ((evening, True), (night, made_later)):
            again = run("yes", Message("assistant", move.text), moment=moment)
            assert isinstance(await deciding(model, IDENTITY).move(again), Decided) is made
        unset = await deciding(model, IDENTITY).move(run())
        assert isinstance(unset, Answered)
        assert unset.kind is AnswerKind.UNABLE


async def test_plain_yes_is_not_looked_at_a_second_time() -> None:
    """A surer decision with examples in sight would be another call than the one that was agreed to."""
    model = Model((NORTH, 0.4), (SOUTH, 0.9))
    move = await deciding(model, IDENTITY).move(run("ja", QUESTION))
    assert move == Decided((ToolCall("set_valve", {"valve": "north"}),), math.log(0.4))
    assert len(model.prompts) == 1


async def test_call_that_is_not_made_is_told_behind_those_that_were() -> None:
    """Else who reads "that is not done" takes the first for not done, too."""
    step = Step(0, Intent(ToolCall("set_valve", {"valve": "north"}), None), Result({}, True))
    mine = run(steps=[step])
    await mine._replay()
    with patch.dict(TOOLS, set_valve=msgspec.structs.replace(VALVE, say="Valve {valve} is open.")):
        answered = mine.clock_unset()
    assert answered.text.startswith("Valve north is open. That is not done: ")
    assert answered.kind is None  # the reply says `acted`


async def test_shape_holds_no_sentence_that_nothing_can_be_done() -> None:
    """What is answered instead would not be what the client takes apart."""
    mine = run()
    mine.request = msgspec.structs.replace(mine.request, response_schema={"type": "object"})
    shaped = Run(
        "r", mine.agent, mine.request, toolbox=cast("Any", Tools()), journal=cast("Any", None), history=(), steps=(),
        stream=None,
    )  # fmt: skip
    with pytest.raises(ToolFailed, match="some water, please"):
        await deciding(Model(("unable()", 0.9)), IDENTITY).move(shaped)


async def test_choice_not_to_call_has_a_confidence_too() -> None:
    await deciding(Model(("unable()", 0.7)), IDENTITY).move(mine := run())
    assert mine.sure.score == pytest.approx(0.7)
    assert mine.sure.confidence == pytest.approx(0.7)
