"""Completions of a model that was taught the compact dialect: what the engine is asked, what comes back."""

from __future__ import annotations

from typing import Any

import pytest

from edged.agent.dialects import Dialects, compact
from edged.agent.dialects.chat_template import CHATML
from edged.agent.prompts import FROM_DATA
from edged.completions.plain import Completions
from edged.completions.request import ModelAnswer, ModelAsk, ToolChoice
from edged.config import Model
from edged.engines.kind import ChatTemplate
from edged.errors import ModelUnavailable, ToolFailed
from edged.types import Finish, Job, Message, Sampling, ToolCall, ToolSpec
from tests.unit.completions.test_local import Writer, put_together

VALVE = ToolSpec(
    "set.valve",
    "Moves it.",
    {"type": "object", "properties": {"v": {"enum": ["a", "b"]}, "note": {"type": "string"}}, "required": ["v"]},
)
OVEN = ToolSpec("oven", "", {"type": "object", "properties": {"c": {"type": "integer", "maximum": 300}}})
ODD = ToolSpec("odd", "Odd.", {"type": "object", "properties": {"x": {"type": "integer", "not": {"const": 2}}}})
TOOLS = (VALVE, OVEN)
SYSTEM = Message("system", "You run a house.")
OPEN_A = ToolCall("set.valve", {"v": "a"})


def asked(*messages: Message, **more: Any) -> ModelAsk:
    given = {"model": "small", "messages": (SYSTEM, *(messages or (Message("user", "Do it."),))), "tools": TOOLS}
    return ModelAsk(**{**given, "parallel": False, **more})


async def complete(engine: Writer, ask: ModelAsk) -> tuple[ModelAnswer, str, list[tuple[str, str]]]:
    """(the answer, the words and the calls that were told meanwhile)."""
    chats = Completions(
        engine, {"small": Model()}, Dialects(lambda _: ChatTemplate(CHATML, taught=compact.NAME)), max_waiting=1
    )
    words: list[str] = []
    pieces: list[Any] = []
    answer = await chats.complete(ask, lambda text, _: words.append(text), pieces.extend)
    calls = put_together(pieces)
    assert calls == [(call.name, call.arguments) for call in answer.calls]
    assert "".join(words) == answer.text
    return answer, answer.text, calls


def text(job: Job) -> str:
    return "".join(segment.text for segment in (*job.prefix, *job.turn))


def after(content: str, *calls: ToolCall) -> tuple[Message, ...]:
    """A question, calls, and the same result of each."""
    made = calls or (OPEN_A,)
    return (
        Message("user", "Open a."),
        Message("assistant", tool_calls=made),
        *(Message("tool", content) for _ in made),
    )


async def test_decision_has_signatures_and_is_greedy() -> None:
    """Whatever is asked for the words, and a hundred times the same."""
    engine = Writer('set.valve(v="a")')
    answer, _, calls = await complete(engine, asked(sampling=Sampling(2.0, 0.5, 7, repeat_penalty=1.5), stop=("v",)))
    assert calls == [("set.valve", '{"v": "a"}')]
    assert (answer.finish, answer.prompt_tokens, answer.cached_tokens) == (Finish.STOP, 9, 4)
    [job] = engine.jobs
    assert (job.sampling, job.stop, job.logprobs) == (Sampling(), (), None)
    assert text(job) == (
        "<|im_start|>system\nYou run a house.\n\nAnswer with calls, one a line:\n"
        "set.valve(v: a|b, note?: text): Moves it.\noven(c?: int ..300): oven.\n"
        f"reply(): {compact.PSEUDO['reply']}\nunable(): {compact.PSEUDO['unable']}<|im_end|>\n"
        "<|im_start|>user\nDo it.<|im_end|>\n<|im_start|>assistant\n"
    )


async def test_words_are_asked_for_without_tools() -> None:
    """With everything that the client wants of words."""
    engine = Writer("reply()", "One two.")
    sampling = Sampling(2.0, seed=7)
    answer, words, _ = await complete(engine, asked(sampling=sampling, stop=("x",), logprobs=2))
    assert (words, len(answer.logprobs)) == ("One two.", 8)
    job = engine.jobs[1]
    assert (job.sampling, job.stop, job.grammar, job.logprobs) == (sampling, ("x",), None, 2)
    assert text(job).startswith("<|im_start|>system\nYou run a house.<|im_end|>\n<|im_start|>user\nDo it.<|im_end|>")


async def test_requests_of_a_client_share_system_text_and_signatures() -> None:
    """With results and without, required or not."""
    engine = Writer("unable()", 'set.valve(v="b")', 'set.valve(v="b")')
    await complete(engine, asked())
    await complete(engine, asked(*after("ok")))
    await complete(engine, asked(Message("user", "More."), choice=ToolChoice.REQUIRED))
    first, *others = (job.prefix for job in engine.jobs)
    assert all(prefix == first for prefix in others)
    assert "set.valve(v: a|b" in "".join(segment.text for segment in first)


async def test_calls_in_one_turn_are_as_many_as_the_client_takes() -> None:
    for more, most in (({}, 4), ({"parallel": True}, 16), ({"single": True}, 1)):
        engine = Writer("unable()")
        await complete(engine, asked(**more))
        tools = tuple(ToolSpec(tool.name, "", tool.parameters) for tool in TOOLS)
        start = compact.grammar(tools, most=most, escalates=False).partition("\n")[0]
        assert (engine.jobs[0].grammar or "").partition("\n")[0] == start


async def test_earlier_calls_stand_in_the_dialect_and_not_before_words() -> None:
    engine = Writer("reply()", "Fine.")
    earlier = (*after("ok"), Message("assistant", "It is open."))
    await complete(engine, asked(*earlier, Message("user", "Thanks.")))
    decision, words = engine.jobs
    assert 'assistant\nset.valve(v="a")<|im_end|>\n<|im_start|>user\nResult: ok<|im_end|>' in text(decision)
    assert text(words).endswith(
        "user\nOpen a.<|im_end|>\n<|im_start|>assistant\nIt is open.<|im_end|>\n"
        "<|im_start|>user\nThanks.<|im_end|>\n<|im_start|>assistant\n"
    )


async def test_result_is_worded_as_data_beside_the_question() -> None:
    engine = Writer("reply()", "It is open.")
    assert (await complete(engine, asked(*after('{"level": 3}'))))[1] == "It is open."
    assert text(engine.jobs[1]) == (
        f"<|im_start|>system\nYou run a house. {FROM_DATA}<|im_end|>\n<|im_start|>user\nOpen a.\n\n"
        'Data (Moves it. {"v": "a"}): {"level": 3}<|im_end|>\n<|im_start|>assistant\n'
    )


FAILED = "set.valve (v: a) failed: no power. "
NO_POWER = '{"error": {"message": "no power."}}'


@pytest.mark.parametrize("tools", [TOOLS, ()], ids=["tools", "none"])
async def test_result_that_failed_is_told_by_edged(tools: tuple[ToolSpec, ...]) -> None:
    """Also where the client shows no tools any more; the decision knows of it."""
    engine = Writer(*(["reply()"] if tools else []))
    assert (await complete(engine, asked(*after(NO_POWER), tools=tools)))[1] == FAILED.strip()
    assert ["Result: This call FAILED" in text(job) for job in engine.jobs] == [True] * bool(tools)


async def test_what_worked_beside_it_is_worded_behind() -> None:
    """And nothing of the failure is said to the model."""
    question, call, _, _ = after("", OPEN_A, ToolCall("oven", {"c": 9}))
    engine = Writer("reply()", "The oven is warm.", "{}")
    both = asked(question, call, Message("tool", NO_POWER), Message("tool", "9 degrees"))
    assert (await complete(engine, both))[1] == f"{FAILED}The oven is warm."
    assert 'Data (oven {"c": 9}): 9 degrees' in text(engine.jobs[1])
    assert "power" not in text(engine.jobs[1])


async def test_call_that_failed_and_then_worked_is_told_by_the_model() -> None:
    engine = Writer("reply()", "It is open.")
    assert (await complete(engine, asked(*after(NO_POWER), *after("ok")[1:])))[1] == "It is open."


async def test_shape_tells_of_a_failure_as_the_model_fills_it() -> None:
    engine = Writer("reply()", "{}")
    assert (await complete(engine, asked(*after(NO_POWER), response_schema={"type": "object"})))[1] == "{}"
    assert f"): failed: {NO_POWER}" in text(engine.jobs[1])


@pytest.mark.parametrize("written", ['set.valve(v="a")', 'set.valve(v="a")\nset.valve(v="a")', "unable()"])
async def test_call_whose_result_is_there_leads_to_words(written: str) -> None:
    engine = Writer(written, "It is open.")
    assert (await complete(engine, asked(*after("ok"))))[1:] == ("It is open.", [])


async def test_among_others_it_is_left_out() -> None:
    """Streams, too."""
    engine = Writer('set.valve(v="a")\nset.valve(v="b")')
    assert (await complete(engine, asked(*after("ok"))))[2] == [("set.valve", '{"v": "b"}')]
    engine = Writer('set.valve(v="a")')
    assert (await complete(engine, asked(*after("ok"), choice=ToolChoice.REQUIRED)))[2] == [("set.valve", '{"v": "a"}')]


async def test_decision_that_is_cut_off_has_what_was_written_of_its_calls() -> None:
    whole = 'set.valve(v="a", note="x")'
    for end in range(whole.index("(") + 2, len(whole)):
        engine = Writer(whole[:end], finish=Finish.LENGTH)
        answer, _, [(name, arguments)] = await complete(engine, asked(tools=(VALVE,), max_tokens=5))
        assert (answer.finish, name) == (Finish.LENGTH, "set.valve")
        assert '{"v": "a", "note": "x"}'.startswith(arguments)
    engine = Writer("set.", "Wo", finish=Finish.LENGTH)  # nothing has begun: there are words as far as they come
    assert (await complete(engine, asked(max_tokens=1)))[1] == "Wo"


async def test_what_edged_says_itself_ends_at_a_stop_string() -> None:
    assert (await complete(Writer("oven(c=301)"), asked(stop=("301",))))[1] == "That is not done: "


async def test_shape_is_filled_by_the_model_and_ranges_are_kept_by_the_grammar() -> None:
    """It holds no sentence of edged's."""
    engine = Writer("unable()", '{"a": 1}')
    shape = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert (await complete(engine, asked(response_schema=shape)))[1] == '{"a": 1}'
    decision, words = engine.jobs
    assert ('"maximum": 300' in str(decision.grammar), "%json" in str(words.grammar)) == (True, True)


async def test_arguments_that_no_grammar_keeps_are_asked_for_once_more() -> None:
    """And no words instead: they would sound as if something had been done."""
    assert (await complete(Writer("odd(x=2)", "odd(x=3)"), asked(tools=(ODD,))))[2] == [("odd", '{"x": 3}')]
    for second in ("odd(x=2)", "reply()"):
        with pytest.raises(ToolFailed, match="the call of odd was not made"):
            await complete(Writer("odd(x=2)", second), asked(tools=(ODD,)))


async def test_model_that_does_not_call_though_it_must_is_an_error() -> None:
    with pytest.raises(ModelUnavailable, match="made no call"):
        await complete(Writer("reply()"), asked(choice=ToolChoice.REQUIRED))


@pytest.mark.parametrize("name", ["reply", "unable"])
async def test_tool_called_as_a_pseudo_call_is_has_the_models_own_template(name: str) -> None:
    engine = Writer(f'{{"name": "{name}", "arguments": {{}}}}')
    tools = (ToolSpec(name, "Its own.", {"type": "object", "properties": {}}),)
    assert (await complete(engine, asked(tools=tools)))[2] == [(name, "{}")]
    assert "You act through tools" in text(engine.jobs[0])
