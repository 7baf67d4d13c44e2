"""The two prompts of an agent: what is shared between requests, what the model sees, what it does not see."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from llguidance import LLMatcher, LLTokenizer

from edged.agent import times
from edged.agent.dialects import Dialects
from edged.agent.dialects.chat_template import Dialect
from edged.agent.prompts import PromptBook, Prompts, as_messages
from edged.agent.times import Moment
from edged.config import Agent, Example, Publish, PublishTool, SqlTool
from edged.engines.kind import ChatTemplate
from edged.errors import ModelUnavailable
from edged.types import JSON, Message, ModelSpec, ToolRecord

LEVEL_TOOL = SqlTool(
    description="Level of a tank.",
    database="plant",
    sql="SELECT 1",
    parameters={"tank": {"enum": ["north", "south"]}},
    examples=(Example(input="how full?", arguments={"tank": "north"}),),
)
LAMP_TOOL = PublishTool(description="Switch a lamp.", publish=Publish(topic="t", payload="ON"))
ASKED = (Message("user", "unique question"),)
RECORD = ToolRecord("level", {"tank": "north"}, {"rows": [{"level": 40}], "truncated": False}, True)


def prompts(system: str = "You run a greenhouse.", tools: tuple[str, ...] = ("level",)) -> Prompts:
    known = {"level": LEVEL_TOOL, "lamp": LAMP_TOOL}
    return Prompts(Agent(model="small", system=system, tools=tools), known, Dialect(None, {}))


def told(prompt: Any) -> str:
    return "".join(s.text for s in (*prompt.prefix, *prompt.turn))


def test_deciding_prompt_shares_everything_but_the_dialogue() -> None:
    """The prefix is the same whatever was asked, said or done, and the examples are in it."""
    made = prompts()
    history = [(Message("user", "before"), Message("assistant", "ok"))]
    seen = [made.deciding([], ASKED, []), made.deciding(history, ASKED, [RECORD])]
    assert seen[0].prefix == seen[1].prefix != ()
    shared = "".join(s.text for s in seen[0].prefix)
    assert "how full?" in shared
    assert "Level of a tank." in shared
    assert "unique question" not in shared
    turn = "".join(s.text for s in seen[1].turn)
    assert turn.index("before") < turn.index("unique question") < turn.index('"level": 40')


@pytest.mark.parametrize(
    ("call", "allowed"),
    [
        ('{"name": "level", "arguments": {"tank": "south"}}', True),
        ('{"name": "reply", "arguments": {}}', True),
        ('{"name": "level", "arguments": {"tank": "west"}}', False),
    ],
)
def test_deciding_grammar_offers_the_tools_and_reply(call: str, allowed: bool) -> None:
    """No tool is a choice like any other."""
    tokenizer = LLTokenizer("byte")
    tokens = tokenizer.tokenize_bytes(call.encode())
    assert (LLMatcher(tokenizer, prompts().grammar).validate_tokens(tokens) == len(tokens)) is allowed


@pytest.mark.parametrize(
    ("result", "ok", "shown"),
    [
        ({"rows": [{"level": 40}], "truncated": False}, True, '[{"level": 40}]'),
        ({"rows": [], "truncated": False}, True, "nothing found"),
        ({"changes": 1, "rows": []}, True, "done"),
        (None, True, "done"),
        ({"minutes": 4}, True, '{"minutes": 4}'),
        ([], True, "[]"),
        (False, True, "false"),
        ({"changes": 1, "rows": [{"id": 7}]}, True, '[{"id": 7}]'),
        ({"error": "locked"}, False, "locked"),
    ],
    ids=["rows", "no-rows", "write", "none", "value", "list", "false", "returning", "failed"],
)
def test_answering_prompt_tells_results_as_data_without_any_tool(result: JSON, ok: bool, shown: str) -> None:
    """Small models that see tool syntax answer in it."""
    text = told(prompts().answering([], ASKED, [ToolRecord("level", {"tank": "north"}, result, ok)]))
    assert "unique question" in text
    assert shown in text
    assert "You act through tools" not in text
    assert '"name"' not in text


def test_answering_prompt_tells_of_a_message_only_that_it_was_sent() -> None:
    """Its topic is of no use to who asked."""
    record = ToolRecord("lamp", {}, {"topic": "t", "published": True}, True)
    assert "Data (Switch a lamp. {}): done<" in told(prompts(tools=("lamp",)).answering([], ASKED, [record]))


def test_answering_prompt_shows_a_result_of_a_tool_that_is_gone_as_it_is() -> None:
    """The configuration may have changed since the call."""
    record = ToolRecord("old", {}, {"minutes": 4}, True)
    assert 'Data (old {}): {"minutes": 4}<' in told(prompts().answering([], ASKED, [record]))


def test_answering_prompt_leaves_calls_of_earlier_turns_out() -> None:
    """Their questions and answers stay."""
    made = prompts().deciding([], ASKED, [RECORD])
    assert '"name"' in told(made)
    history = [(Message("user", "before"), *as_messages(RECORD), Message("assistant", "it was 40"))]
    text = told(prompts().answering(history, ASKED, []))
    assert "before" in text
    assert "it was 40" in text
    assert '"name"' not in text
    assert "Result:" not in text


def test_answering_prompt_without_records_shares_the_system_text() -> None:
    """Agents without tools have a prefix too."""
    prompt = prompts(tools=()).answering([], ASKED, [])
    assert "You run a greenhouse." in "".join(s.text for s in prompt.prefix)
    assert prompts(system="", tools=()).answering([], ASKED, []).prefix == ()


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (prompts(), ["deciding", "from data", "answering"]),
        (prompts(system=""), ["deciding", "from data"]),
        (prompts(tools=()), ["answering"]),
        (prompts(system="", tools=()), []),
    ],
    ids=["both", "no system text", "no tools", "nothing"],
)
def test_fixed_prompts_begin_as_those_of_a_request_do(made: Prompts, expected: list[str]) -> None:
    """With the same prefix and grammar, to the byte: what was computed for them is used."""
    real = {
        "deciding": (made.deciding([], ASKED, []).prefix, made.grammar),
        "from data": (made.answering([], ASKED, [ToolRecord("level", {}, {"rows": []}, True)]).prefix, None),
        "answering": (made.answering([], ASKED, []).prefix, None),
    }
    assert [(prompt.prefix, rules) for prompt, rules in made.fixed()] == [real[name] for name in expected]
    assert all(prompt.prefix and prompt.turn for prompt, _ in made.fixed())


async def test_prompt_book_reads_a_models_template_once_and_not_before_it_is_needed() -> None:
    """Agents of one model share its dialect; a model that cannot be read is tried again."""
    asked: list[str] = []

    def template_of(spec: ModelSpec) -> ChatTemplate:
        asked.append(spec.name)
        if len(asked) == 1:
            raise ModelUnavailable("not installed")
        return ChatTemplate()

    book = PromptBook({"a": Agent(model="m"), "b": Agent(model="m")}, {}, Dialects(template_of))
    assert asked == []
    with pytest.raises(ModelUnavailable):
        await book("a")
    first = await book("a")
    assert await book("a") is first
    assert (await book("b")).dialect is first.dialect
    assert asked == ["m", "m"]


TIMER_TOOL = SqlTool(
    description="Set a timer.", database="plant", sql="SELECT :at", parameters={"at": {"format": "date-time"}}
)


@pytest.mark.parametrize("taught", ["", "compact"])
def test_prefix_is_the_same_at_every_time(taught: str) -> None:
    """What is computed once must not change with the clock; the question alone does."""
    known = {"timer": TIMER_TOOL}
    made = Prompts(Agent(model="small", system="Be kind.", tools=("timer",)), known, Dialect(None, {}, taught))
    assert made.tells_time
    seen = []
    for day in (30, 31):
        moment = Moment(datetime(2026, 12, day, 7, 0, tzinfo=UTC), UTC, "UTC")
        asked = times.with_now(ASKED, moment)
        seen.append((made.deciding([], asked, []), made.answering([], asked, []), made.answering([], asked, [RECORD])))
    for before, after in zip(*seen, strict=True):
        assert before.prefix == after.prefix != ()
        assert before.turn != after.turn
        assert "2026" not in "".join(segment.text for segment in before.prefix)
        assert "Now: Wed 2026-12-30 07:00, UTC\nunique question" in told(before)
    assert next(prompt.prefix for prompt, _ in made.fixed()) == seen[0][0].prefix


@pytest.mark.parametrize("taught", ["", "compact"])
def test_agent_without_times_hears_nothing_of_the_clock(taught: str) -> None:
    agent = Agent(model="small", system="Be kind.", tools=("level",))
    assert not Prompts(agent, {"level": LEVEL_TOOL}, Dialect(None, {}, taught)).tells_time
    wanted = msgspec.structs.replace(agent, clock=True)
    assert Prompts(wanted, {"level": LEVEL_TOOL}, Dialect(None, {}, taught)).tells_time
    unwanted = Agent(model="small", tools=("timer",), clock=False)
    assert not Prompts(unwanted, {"timer": TIMER_TOOL}, Dialect(None, {}, taught)).tells_time


@pytest.mark.parametrize("taught", ["", "compact"])
def test_decision_may_write_relative_times(taught: str) -> None:
    """And knows of them by what it is shown."""
    made = Prompts(Agent(model="small", tools=("timer",)), {"timer": TIMER_TOOL}, Dialect(None, {}, taught))
    assert "fri 18:30" in told(made.deciding([], ASKED, []))
    tokenizer = LLTokenizer("byte")
    for at, allowed in (("fri 18:30", True), ("2026-12-30 07:00", True), ("someday", False)):
        value = f'"{at}"'
        text = f"timer(at={value})" if taught else f'{{"name": "timer", "arguments": {{"at": {value}}}}}'
        matcher = LLMatcher(tokenizer, made.grammar)
        tokens = tokenizer.tokenize_str(text)
        assert (matcher.try_consume_tokens(tokens) == len(tokens)) is allowed, at
