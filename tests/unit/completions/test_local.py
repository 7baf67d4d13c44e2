"""Completions of plain models: what they may write, what the engine is asked, what comes back."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from edged.agent.dialects import Dialects
from edged.agent.dialects.chat_template import CHATML, GENERIC, HERMES, CallFormat
from edged.agent.grammars import grammar
from edged.agent.grammars.kept import kept
from edged.agent.grammars.precheck import Inexpressible
from edged.completions.calls import CallPiece, WrittenCall
from edged.completions.plain import Completions
from edged.completions.request import ModelAnswer, ModelAsk, ToolChoice
from edged.completions.slots import AT_ONCE
from edged.config import Model
from edged.engines.kind import ChatTemplate
from edged.errors import BadRequest, Busy, ModelUnavailable, NoMemory, ToolFailed
from edged.interfaces import OnPiece
from edged.types import Completion, Finish, Job, Message, ModelSpec, Sampling, Segment, TokenLogprob, ToolCall, ToolSpec

WEATHER = ToolSpec(
    "get.we-ather", "Weather.", {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
)
VALVE = ToolSpec(
    "set", "Valve.", {"type": "object", "properties": {"v": {"enum": ["a", "b"]}}, "required": ["v"]}
)  # fmt: skip
TOOLS = (WEATHER, VALVE)

A = '{"name": "set", "arguments": {"v": "a"}}'
B = A.replace('"a"', '"b"')
LAID_OUT = '{\n  "name": "get.we-ather",\n  "arguments": {\n    "city": "Rome"\n  }\n}'


def marked(*calls: str) -> str:
    return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)


# -- grammars ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bytewise() -> Any:
    """A vocabulary of bytes."""
    return LLTokenizer("byte")


def ends(tokenizer: Any, rules: str, text: str) -> str:
    """What a model may do after this text: "no" such text, only "more", end or go "on", only "end"."""
    matcher = LLMatcher(tokenizer, rules, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = tokenizer.tokenize_bytes(text.encode())
    if matcher.validate_tokens(tokens) < len(tokens):
        return "no"
    matcher.consume_tokens(tokens)
    if not matcher.is_accepting():
        return "more"
    return "end" if matcher.is_stopped() else "on"


FREE: list[tuple[str, str, str, str]] = [  # text, may it end: hermes one call, hermes many, generic one
    ("", "on", "on", "on"),
    ("Hello ü.\n\nIt is {\"name\": \"x\"}", "on", "on", "on"),
    ('{"name": "set', "on", "on", "on"),
    ('{"name": "set"', "more", "more", "more"),
    ('{"name": "setter"}', "on", "on", "on"),
    ('{"name": "set"}', "no", "no", "no"),
    (A, "end", "on", "end"),
    (LAID_OUT, "end", "on", "end"),
    (A + "\n" + B, "no", "on", "no"),
    (A + " and", "no", "no", "no"),
    (f"```json\n{LAID_OUT}", "more", "more", "more"),
    (f"```json\n{LAID_OUT}\n```", "end", "on", "end"),
    (f"```json\n{LAID_OUT}\n{A}\n```", "no", "end", "no"),
    (f"```\n{A}```\n```\n{B}```", "no", "on", "no"),
    ("```json\n[1]\n```", "on", "on", "on"),
    ("Say STOP", "end", "end", "end"),
    ("Say STOP!", "no", "no", "no"),
    ('{"name": "set", "arguments": {"v": "STOP"}}', "no", "no", "no"),
    ("see " + A, "on", "on", "on"),
    ("<tool_call>", "more", "more", "on"),
    ("<tool_call>x", "no", "no", "on"),
    (marked(A), "end", "on", "on"),
    ("I look.\n" + marked(A), "end", "on", "on"),
    (marked(A, B), "no", "on", "on"),
    (marked(A.replace(": ", ":")), "no", "no", "on"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "one", "many", "generic"), FREE, ids=[str(i) for i in range(len(FREE))])
def test_auto_is_text_or_whole_calls(bytewise: Any, text: str, one: str, many: str, generic: str) -> None:
    """What begins as a call becomes one; everything else is text, up to a stop string."""
    stops = ("STOP",)
    assert ends(bytewise, grammar.text_or_calls(TOOLS, HERMES, most=1, stops=stops), text) == one
    assert ends(bytewise, grammar.text_or_calls(TOOLS, HERMES, most=16, stops=stops), text) == many
    assert ends(bytewise, grammar.text_or_calls(TOOLS, GENERIC, most=1, stops=stops), text) == generic


def test_auto_has_no_more_calls_than_it_may(bytewise: Any) -> None:
    """Whatever way they are written in."""
    rules = grammar.text_or_calls(TOOLS, HERMES, most=2)
    for ways in (marked, lambda *c: "\n".join(c), lambda *c: "```\n" + "\n".join(c) + "\n```"):
        write: Callable[..., str] = ways
        assert ends(bytewise, rules, write(A, B)) in ("end", "on")
        assert ends(bytewise, rules, write(A, B, A)) == "no"


def test_auto_forces_the_head_of_a_marked_call(bytewise: Any) -> None:
    """With one tool nothing is left to choose but the arguments."""
    matcher = LLMatcher(bytewise, grammar.text_or_calls((VALVE,), HERMES, most=1), log_level=0)
    matcher.consume_tokens(bytewise.tokenize_bytes(b"<tool_call>"))
    assert matcher.compute_ff_bytes() == b'\n{"name": "set", "arguments": {"v": "'


@pytest.mark.parametrize("calls", [HERMES, GENERIC], ids=["hermes", "generic"])
def test_required_is_one_call_or_as_many_as_it_may(bytewise: Any, calls: CallFormat) -> None:
    """No text, and an end after the last one."""
    a, b = (calls.before + call + calls.after for call in (A, B))
    one, two = (grammar.some_calls(TOOLS, calls, most=most) for most in (1, 2))
    assert one == grammar.one_call(TOOLS, calls)
    assert [ends(bytewise, one, text) for text in ("", "Hi", a, f"{a}\n{b}")] == ["more", "no", "end", "no"]
    assert [ends(bytewise, two, text) for text in (a, f"{a}\n{b}", f"{a}\n{b}\n{a}")] == ["on", "end", "no"]


SHAPE = {"type": "object", "properties": {"name": {"type": "string"}, "n": {"type": "integer"}}}


@pytest.mark.parametrize("calls", [HERMES, GENERIC], ids=["hermes", "generic"])
@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("{}", True),
        ('{"name": "set"}', True),
        ('{"name": "set", "n": 1}', True),
        ('{"n": 1}', True),
        ('{"n": "x"}', False),
        ("Hi", False),
        (A, True),
        (A + "\n" + B, True),
        ('{"name": "set", "arguments": {"v": "c"}}', False),
    ],
)
def test_auto_beside_a_schema_is_the_shape_or_calls(bytewise: Any, calls: CallFormat, text: str, allowed: bool) -> None:
    """Also where both begin alike."""
    shape = {**SHAPE, "additionalProperties": False}
    rules = grammar.answer_or_calls(TOOLS, calls, shape, most=2)
    assert (ends(bytewise, rules, text) in ("on", "end")) is allowed
    assert (ends(bytewise, rules, marked(A)) in ("on", "end")) is (calls is HERMES)


@pytest.mark.parametrize(
    ("text", "allowed"), [("It is 3.", True), ("Ünique", True), ('{"a": 1}', False), ("```", False), (" x", False)]
)
def test_words_do_not_begin_as_json_does(bytewise: Any, text: str, allowed: bool) -> None:
    """Behind a result small models copy what they see."""
    assert (ends(bytewise, grammar.words(), text) == "on") is allowed


@pytest.mark.parametrize("calls", [HERMES, GENERIC], ids=["hermes", "generic"])
def test_arguments_are_closed_unless_their_schema_says_otherwise(bytewise: Any, calls: CallFormat) -> None:
    """A small model fills whatever is left open."""
    opened = ToolSpec("set", "d", {"type": "object", "properties": {}, "additionalProperties": True})
    call = calls.before + '{"name": "set", "arguments": {"x": 1}}' + calls.after
    assert ends(bytewise, grammar.one_call((opened,), calls), call) == "end"
    assert ends(bytewise, grammar.one_call((ToolSpec("set", "d", {"properties": {}}),), calls), call) == "no"


# -- completions -------------------------------------------------------------------------------------------------------


class Writer:
    """An engine that writes what it is told, character by character, each a token that is certain; and waits in the
    middle while it is not `open`."""

    def __init__(self, *texts: str, finish: Finish = Finish.STOP) -> None:
        self.texts = list(texts)
        self.finish = finish
        self.jobs: list[Job] = []
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None
        self.running = 0

    async def warm(self, job: Job) -> None:
        """See interfaces.Engine."""

    async def generate(self, job: Job, on_text: object = None, *, on_piece: OnPiece | None = None) -> Completion:
        """See interfaces.Engine."""
        self.jobs.append(job)
        self.running += 1
        try:
            await self.open.wait()
        finally:
            self.running -= 1
        if self.error:
            raise self.error
        text = self.texts.pop(0)
        tokens = tuple(TokenLogprob(c, c.encode(), -0.5) for c in text) if job.logprobs is not None else ()
        for i, character in enumerate(text):
            if on_piece:
                on_piece(character, tokens[i : i + 1])
        return Completion(
            text=text,
            finish=self.finish,
            prompt_tokens=9,
            cached_tokens=4,
            completion_tokens=len(text),
            forced_tokens=0,
            decode_steps=1,
            logprob=None,
            logprobs=tokens,
            load_ms=0,
            queue_ms=0,
            prefill_ms=0,
            first_token_ms=0,
            decode_ms=0,
        )


NATIVE = "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}" + CHATML.replace(
    "{{ message.content }}",
    "{{ message.content }}{% for c in message.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}',
)


def chats(engine: Writer, template: str | None = NATIVE, max_waiting: int = 2) -> Completions:
    return Completions(
        engine, {"small": Model(context=777)}, Dialects(lambda _: ChatTemplate(template)), max_waiting=max_waiting
    )


def ask(*messages: Message, **more: Any) -> ModelAsk:
    return ModelAsk(**{"model": "small", "messages": messages or (Message("user", "Hi"),), "parallel": False, **more})


async def streamed(engine: Writer, wanted: ModelAsk) -> tuple[ModelAnswer, str, str]:
    """(the answer, the text that was streamed, the text of the tokens told meanwhile)."""
    words: list[str] = []
    tokens: list[TokenLogprob] = []

    def on_piece(text: str, some: tuple[TokenLogprob, ...]) -> None:
        assert text
        words.append(text)
        tokens.extend(some)

    answer = await chats(engine).complete(wanted, on_piece)
    assert answer.logprobs == tuple(tokens)
    return answer, "".join(words), "".join(token.text for token in tokens)


async def called(engine: Writer, wanted: ModelAsk) -> tuple[ModelAnswer, list[CallPiece]]:
    """(the answer, the calls as they were streamed)."""
    pieces: list[CallPiece] = []
    answer = await chats(engine).complete(wanted, None, pieces.extend)
    return answer, pieces


def put_together(pieces: list[CallPiece]) -> list[tuple[str, str]]:
    """(name, arguments) of calls, as a client puts them together."""
    calls: list[tuple[str, str]] = []
    for piece in pieces:
        if piece.name is not None:
            assert piece.index == len(calls)
            calls.append((piece.name, ""))
        calls[piece.index] = (calls[piece.index][0], calls[piece.index][1] + piece.arguments)
    return calls


async def test_complete_of_a_plain_question_is_what_the_model_writes() -> None:
    """No grammar, no tools; as many tokens as the context leaves."""
    engine = Writer("It is so.")
    answer, words, _ = await streamed(engine, ask(sampling=Sampling(0.5, 0.9, 3), stop=("x",)))
    (job,) = engine.jobs
    assert (answer.text, words, answer.calls, answer.finish) == ("It is so.", "It is so.", (), Finish.STOP)
    assert (answer.prompt_tokens, answer.cached_tokens, answer.completion_tokens) == (9, 4, 9)
    assert (job.grammar, job.max_tokens, job.stop, job.sampling) == (None, 777, ("x",), Sampling(0.5, 0.9, 3))
    assert (
        "".join(s.text for s in (*job.prefix, *job.turn)) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("opens", "text"), [("<think>\n", "Hm, <b>?\n</think>\n\nIt is so."), ("", "<think>Hm, <b>?</think>It is so.")]
)
async def test_complete_tells_thoughts_apart_from_the_answer(opens: str, text: str) -> None:
    """As they come, before the answer; also where the template opens the tag."""
    told: list[str] = []
    made = chats(Writer(text), CHATML.replace("assistant\n{% endif %}", f"assistant\n{opens}{{% endif %}}"))
    answer = await made.complete(ask(), lambda text, _: told.append(text), None, lambda text: told.append(text.upper()))
    assert (answer.text, answer.reasoning) == ("It is so.", "Hm, <b>?")
    assert "".join(told).strip().replace("\n", "") == "HM, <B>?It is so."


@pytest.mark.parametrize("failed", ['{"error": true}', "{'success': False}"])
async def test_complete_says_before_a_result_that_its_call_failed(failed: str) -> None:
    """In the prompt; a result that worked, and what a user says, stand there as they are."""
    engine = Writer("It failed.", "It is open.", "Hi.")
    for content in (failed, '{"error": null}'):
        await chats(engine).complete(ask(*CALLED[:2], Message("tool", content), tools=TOOLS))
    await chats(engine).complete(ask(Message("user", failed)))
    marks = ["FAILED" in "".join(s.text for s in (*job.prefix, *job.turn)) for job in engine.jobs]
    assert marks == [True, False, False]
    assert any(s.literal and s.text.endswith(failed) for s in engine.jobs[0].turn)


async def test_complete_gives_every_generation_a_rid_of_its_own() -> None:
    """The engine's log tells them apart."""
    engine = Writer("a", "b")
    made = chats(engine)
    await made.complete(ask())
    await made.complete(ask())
    assert re.fullmatch("[0-9a-f]{22}", engine.jobs[0].rid)
    assert engine.jobs[0].rid != engine.jobs[1].rid


@pytest.mark.parametrize("template", [NATIVE, CHATML], ids=["native", "generic"])
@pytest.mark.parametrize("tools", [(), TOOLS], ids=["no-tools", "tools"])
@pytest.mark.parametrize("system", [(), (Message("system", "Be short."),)], ids=["no-system", "system"])
async def test_complete_shares_what_comes_before_the_dialogue(
    template: str, tools: tuple[ToolSpec, ...], system: tuple[Message, ...]
) -> None:
    """System text and tools are the prefix, whatever is asked; no word of the dialogue is."""
    engine = Writer("a", "b")
    made = chats(engine, template)
    await made.complete(ask(*system, Message("user", "one"), tools=tools))
    await made.complete(
        ask(*system, Message("user", "two"), Message("assistant", "x"), Message("user", "y"), tools=tools)
    )
    first, second = engine.jobs
    assert first.prefix == second.prefix
    shared = "".join(segment.text for segment in first.prefix)
    assert ("Be short." in shared) is bool(system)
    assert ("get.we-ather" in shared) is bool(tools)
    assert first.turn[0] == Segment("one", literal=True)
    assert second.turn[0] == Segment("two", literal=True)


async def test_complete_tells_calls_and_none_of_them_is_text() -> None:
    """Words before them are, up to the last whole token."""
    engine = Writer("I look.\n" + marked(A))
    answer, words, tokens = await streamed(engine, ask(tools=TOOLS, logprobs=0))
    assert answer.calls == (SET_A,)
    assert answer.text == words == tokens == "I look."
    assert engine.jobs[0].grammar == grammar.text_or_calls(TOOLS, HERMES, most=1)


async def test_complete_with_a_stop_string_stops_words_only() -> None:
    """The engine is not given it: it would cut calls."""
    engine = Writer("one STOP", marked(A))
    answer, words, tokens = await streamed(engine, ask(tools=TOOLS, stop=("STOP", "\n"), logprobs=3))
    assert answer.text == words == tokens == "one "
    assert engine.jobs[0].stop == ()
    assert (await chats(engine).complete(ask(tools=TOOLS, stop=("\n",)))).calls == (SET_A,)


async def test_complete_where_a_call_is_required_has_no_text() -> None:
    """Nor a stream."""
    engine = Writer(marked(A, B))
    answer, words, _ = await streamed(engine, ask(tools=TOOLS, choice=ToolChoice.REQUIRED, parallel=True, logprobs=1))
    assert (answer.text, words) == ("", "")
    assert [call.value() for call in answer.calls] == [{"v": "a"}, {"v": "b"}]
    assert engine.jobs[0].grammar == grammar.some_calls(TOOLS, HERMES, most=grammar.MAX_CALLS)


async def test_complete_without_the_required_call_is_an_error() -> None:
    """Of a model that follows no grammar; one that was cut off tells so."""
    for text in ("no", '{"no": 1}'):
        with pytest.raises(ModelUnavailable, match="made no call"):
            await chats(Writer(text)).complete(ask(tools=TOOLS, choice=ToolChoice.REQUIRED))
    with pytest.raises(ModelUnavailable, match="did not end its call"):
        await chats(Writer(A[:-3])).complete(ask(tools=TOOLS, choice=ToolChoice.REQUIRED))


@pytest.mark.parametrize("choice", [ToolChoice.REQUIRED, ToolChoice.AUTO])
@pytest.mark.parametrize("text", [marked(A), A, f"```json\n{A}\n```"], ids=["marked", "bare", "fenced"])
async def test_complete_that_is_cut_off_in_a_call_has_what_was_written_of_it(choice: ToolChoice, text: str) -> None:
    """The same in the stream; only what is whole is JSON."""
    for end in range(text.index('"v"') if choice is ToolChoice.AUTO else 0, len(text)):
        cut = Writer(text[:end], finish=Finish.LENGTH)
        answer, pieces = await called(cut, ask(tools=TOOLS, choice=choice, max_tokens=5))
        assert (answer.finish, answer.text) == (Finish.LENGTH, "")
        assert put_together(pieces) == [(call.name, call.arguments) for call in answer.calls]
        for call in answer.calls:
            assert call.name == "set"
            assert '{"v": "a"}'.startswith(call.arguments)
            assert call.whole == (call.arguments == '{"v": "a"}')
        assert len(answer.calls) == ('": {' in text[:end])


async def test_complete_with_choice_none_shows_no_tools() -> None:
    """And is text whatever it looks like."""
    engine = Writer(A)
    answer, words, _ = await streamed(engine, ask(tools=TOOLS, choice=ToolChoice.NONE))
    assert answer.text == words == A
    assert "get.we-ather" not in str(engine.jobs[0])


SET_A = WrittenCall("set", '{"v": "a"}', whole=True)
CALLED = (
    Message("user", "Open a."),
    Message("assistant", tool_calls=(ToolCall("set", {"v": "a"}),)),
    Message("tool", "ok"),
)


async def test_complete_of_a_call_that_was_answered_gives_words_instead() -> None:
    """A small model would make it for ever."""
    engine = Writer(marked(A), "It is open.", marked(A), "It is open.")
    answer, words, _ = await streamed(engine, ask(*CALLED, tools=TOOLS))
    assert (answer.text, words, answer.calls) == ("It is open.", "It is open.", ())
    assert engine.jobs[1].grammar == grammar.words()
    assert (await called(engine, ask(*CALLED, tools=TOOLS)))[1] == []


@pytest.mark.parametrize(
    ("messages", "text", "more"),
    [
        (CALLED, marked(B), {}),
        (CALLED, marked(A), {"choice": ToolChoice.REQUIRED}),
        ((*CALLED, Message("assistant", "Done."), Message("user", "Again.")), marked(A), {}),
        (CALLED, marked(A, B), {"parallel": True}),
        (CALLED, "So.\n" + marked(A), {}),
    ],
    ids=["another", "required", "another-turn", "among-others", "behind-words"],
)
async def test_complete_of_a_call_that_is_wanted_makes_it(
    messages: tuple[Message, ...], text: str, more: dict[str, Any]
) -> None:
    """Only what is repeated and nothing else is a sign that the model is done."""
    answer, pieces = await called(Writer(text), ask(*messages, tools=TOOLS, **more))
    assert answer.calls
    assert put_together(pieces) == [(call.name, call.arguments) for call in answer.calls]


async def test_complete_tells_a_call_as_it_is_written() -> None:
    """Each piece of the arguments at once, also where a call was answered: until it can be that one no more."""
    said: list[tuple[str, CallPiece]] = []

    class Slow(Writer):
        """Says how far it is."""

        async def generate(self, job: Job, on_text: object = None, *, on_piece: OnPiece | None = None) -> Completion:
            assert on_piece is not None
            written = ""

            def spy(text: str, tokens: tuple[TokenLogprob, ...]) -> None:
                nonlocal written
                written += text
                on_piece(text, tokens)
                said.extend((written, piece) for piece in pieces[len(said) :])

            return await super().generate(job, on_text, on_piece=spy)

    pieces: list[CallPiece] = []
    call = '{"name": "set", "arguments": {"v": "a", "w": "x"}}'
    wanted = ask(tools=TOOLS)
    await chats(Slow(call)).complete(wanted, None, pieces.extend)
    for i, (written, _) in enumerate(said[1:], 2):
        told = "".join(piece.arguments for piece in pieces[:i])
        assert written.partition('"arguments": ')[2].replace(" ", "") == told.replace(" ", "")
    assert len(pieces) > len('{"v":"a","w":"x"}')
    said.clear()
    pieces.clear()
    await chats(Slow(call)).complete(ask(*CALLED, tools=TOOLS), None, pieces.extend)
    assert said[0][0] == '{"name": "set", "arguments": {"v": "a",'
    assert put_together(pieces) == [("set", '{"v": "a", "w": "x"}')]


@pytest.mark.parametrize("tools", [(), TOOLS], ids=["no-tools", "none-allowed"])
async def test_complete_behind_a_result_without_calls_is_in_words(tools: tuple[ToolSpec, ...]) -> None:
    """Where a schema is asked for, in its shape."""
    engine = Writer("Open.", "{}")
    made = chats(engine)
    await made.complete(ask(*CALLED, tools=tools, choice=ToolChoice.NONE))
    await made.complete(ask(*CALLED, tools=tools, choice=ToolChoice.NONE, response_schema=SHAPE))
    assert [job.grammar for job in engine.jobs] == [grammar.words(), grammar.answer(kept(SHAPE).schema)]


async def test_complete_with_a_schema_beside_tools_is_either() -> None:
    """JSON of the shape is text, a call is a call."""
    for text, words, calls in (('{"name": "set"}', '{"name": "set"}', 0), (A, "", 1)):
        answer, streamed_words, _ = await streamed(Writer(text), ask(tools=TOOLS, response_schema=SHAPE))
        assert (answer.text, streamed_words, len(answer.calls)) == (words, words, calls)


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ({"messages": ()}, "at least one"),
        ({"messages": (Message("user", "a"), Message("assistant", "b"))}, "is not continued"),
        ({"choice": ToolChoice.REQUIRED}, "there is no tool"),
        ({"logprobs": 21}, "outside 0 to 20"),
        ({"model": "large"}, "no model 'large'; configured are small"),
        ({"tools": TOOLS, "response_schema": {}, "stop": ("x",)}, "stop: not beside"),
    ],
)
async def test_complete_of_what_does_not_go_together_is_refused(wanted: dict[str, Any], problem: str) -> None:
    """Before anything is loaded."""
    engine = Writer()
    with pytest.raises(BadRequest, match=problem):
        await chats(engine).complete(ask(**wanted))
    assert engine.jobs == []


ELSEWHERE = {"$ref": "https://schemas.example/valve"}


@pytest.mark.parametrize(
    ("more", "tool"),
    [
        ({"response_schema": ELSEWHERE}, None),
        ({"tools": (VALVE, ToolSpec("t", "d", {"properties": {"a": ELSEWHERE}}))}, "t"),
        ({"tools": (ToolSpec("t", "d", {"properties": {"a": ELSEWHERE}}),), "choice": ToolChoice.NONE,
          "response_schema": ELSEWHERE}, None),
    ],
)  # fmt: skip
async def test_complete_with_a_schema_nobody_can_keep_names_it(more: dict[str, Any], tool: str | None) -> None:
    """With the reason, in the caller's terms, before a model is loaded."""
    engine = Writer()
    with pytest.raises(Inexpressible, match=r"cannot be made into a grammar: ") as caught:
        await chats(engine).complete(ask(**more))
    assert caught.value.tool == tool
    assert engine.jobs == []


async def test_complete_with_tools_that_are_too_much_together_is_refused() -> None:
    """Each of them would do."""
    engine = Writer()
    many = {"properties": {f"p{i}": {"type": "string"} for i in range(900)}}
    tools = tuple(ToolSpec(f"t{i}", "d", {"type": "object", **many}) for i in range(9))
    with pytest.raises(BadRequest, match="tools: too much for one grammar"):
        await chats(engine).complete(ask(tools=tools))
    assert engine.jobs == []


async def test_complete_with_another_refusal_of_the_engine_passes_it_on() -> None:
    """A grammar that is too costly has a reason of its own."""
    engine = Writer()
    engine.error = BadRequest("the grammar cannot be followed: too large")
    with pytest.raises(BadRequest, match="too large"):
        await chats(engine).complete(ask(tools=TOOLS))


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{% if %}"])
async def test_complete_with_a_template_that_refuses_makes_the_model_unavailable(template: str) -> None:
    """It is the model's file that cannot do it."""
    with pytest.raises(ModelUnavailable, match="chat template"):
        await chats(Writer("x"), template).complete(ask())


async def test_complete_reads_a_template_once() -> None:
    """It takes tens of milliseconds."""
    read: list[str] = []

    def template_of(spec: ModelSpec) -> ChatTemplate:
        read.append(spec.name)
        return ChatTemplate()

    made = Completions(Writer("a", "b"), {"small": Model()}, Dialects(template_of), max_waiting=1)
    await made.complete(ask())
    await made.complete(ask())
    assert read == ["small"]


async def test_complete_begins_nothing_while_it_is_to_refuse() -> None:
    """What runs goes on."""
    engine = Writer("x", "y")
    engine.open.clear()
    made = chats(engine)
    running = asyncio.create_task(made.complete(ask()))
    while not engine.running:
        await asyncio.sleep(0)
    made.refuse(NoMemory("the board is full", retry_after_s=15.0))
    with pytest.raises(NoMemory, match="the board is full") as refused:
        await made.complete(ask())
    assert refused.value.retry_after_s == 15.0
    engine.open.set()
    assert (await running).text == "x"
    made.refuse(None)
    assert (await made.complete(ask())).text == "y"


async def test_complete_of_more_than_may_wait_is_refused_and_places_come_free() -> None:
    """Eight at once, so many waiting, one more is told when to ask again."""
    engine = Writer(*["x"] * (AT_ONCE + 3))
    engine.open.clear()
    made = chats(engine, max_waiting=2)
    tasks = [asyncio.create_task(made.complete(ask())) for _ in range(AT_ONCE + 2)]
    while engine.running < AT_ONCE:
        await asyncio.sleep(0)
    with pytest.raises(Busy) as caught:
        await made.complete(ask())
    assert caught.value.retry_after_s
    assert engine.running == AT_ONCE
    tasks[0].cancel()  # one that runs
    tasks[-1].cancel()  # one that waits
    await asyncio.wait([tasks[0], tasks[-1]])
    tasks.append(asyncio.create_task(made.complete(ask())))
    engine.open.set()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    kinds = [type(outcome) for outcome in done]
    assert (kinds.count(ModelAnswer), kinds.count(asyncio.CancelledError)) == (AT_ONCE + 1, 2)


# What a grammar keeps in part only

UNIQUE = {
    "type": "object",
    "properties": {"rooms": {"type": "array", "items": {"type": "string"}, "uniqueItems": True}},
}
TWICE, ONCE = '{"rooms": ["a", "a"]}', '{"rooms": ["a", "b"]}'


def listed(arguments: str) -> str:
    """A call as a model writes it."""
    return f'{{"name": "list", "arguments": {arguments}}}'


@pytest.mark.parametrize("of", ["call", "answer"])
async def test_complete_checks_afterwards_what_a_grammar_does_not_keep(of: str) -> None:
    """And asks once more, with the reason; a client sees nothing of what was wrong, streamed or whole."""
    wrong, right = (listed(TWICE), listed(ONCE)) if of == "call" else (TWICE, ONCE)
    more: dict[str, Any] = {"tools": (ToolSpec("list", "d", UNIQUE),)} if of == "call" else {"response_schema": UNIQUE}
    engine, pieces, calls = Writer(wrong, right), list[str](), list[str]()
    answer = await chats(engine).complete(
        ask(**more),
        on_piece=lambda text, tokens: pieces.append(text),
        on_call=lambda each: calls.extend(piece.arguments for piece in each),
    )
    assert ([call.arguments for call in answer.calls], answer.text) == (([ONCE], "") if of == "call" else ([], ONCE))
    assert ("".join(calls), "".join(pieces)) == ((ONCE, "") if of == "call" else ("", ONCE))
    assert "non-unique" in "".join(segment.text for segment in engine.jobs[1].turn)


@pytest.mark.parametrize("of", ["call", "answer"])
async def test_complete_that_stays_wrong_fails(of: str) -> None:
    """With what the validator says; the wrong call is nobody's."""
    wrong = listed(TWICE) if of == "call" else TWICE
    more: dict[str, Any] = {"tools": (ToolSpec("list", "d", UNIQUE),)} if of == "call" else {"response_schema": UNIQUE}
    with pytest.raises(ToolFailed, match="non-unique"):
        await chats(Writer(wrong, wrong)).complete(ask(**more))
