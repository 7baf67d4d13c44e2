"""What clients say around their requests: headers, the OpenAI API, MQTT's topics and properties; and what a tool's own
process answers."""

from __future__ import annotations

import asyncio
import json
import textwrap
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from hypothesis import example, given
from hypothesis import strategies as st

from edged import wire
from edged.api import Api
from edged.errors import CallerError, EdgedError, Forbidden
from edged.tools.python import process
from edged.tools.python.child import Answer, Hello
from edged.tools.python.landlock import NONE
from edged.tools.python.process import Died, Module, Process
from edged.transport.base import Readiness
from edged.transport.http.core import headers
from edged.transport.http.core.browsers import Browsers
from edged.transport.http.core.headers import IDEMPOTENCY_KEY, idempotency_key
from edged.transport.http.core.surface import Board
from edged.transport.http.native.surface import Native
from edged.transport.http.openai import embeddings, lenient
from edged.transport.http.openai import request as openai_request
from edged.transport.http.openai.surface import OpenAI
from edged.transport.mqtt import messages, topics
from edged.transport.mqtt.intake import Counters, Handlers, Intake, Unanswerable
from edged.transport.mqtt.messages import Incoming, Outgoing
from edged.transport.mqtt.packets import MAX_PACKET_BYTES, publish_properties
from edged.transport.mqtt.settings import Settings
from edged.transport.mqtt.topics import Topics
from edged.types import Ask, Format
from edged.wire.dialogue import BadParameter
from tests.support.fuzz import anything, damaged, is_finite, json_values, maps, texts, written

# aiohttp reads what is no UTF-8 in a header as halves of surrogate pairs
header = texts | st.text(alphabet="\udcff\udc80ab:", max_size=6)


UNUSED: Any = dict.fromkeys(Api.__struct_fields__)
API: Any = Api(**UNUSED)
BOARD = Board(api=API, ready=lambda: Readiness(True), metrics=lambda: (b"", ""), heartbeat_s=1.0)


def refused(error: EdgedError) -> web.Response:
    """As edged's own surface tells it."""
    return Native(BOARD).error({}, error)  # type: ignore[arg-type]  # a request of which nothing is known


def openai_error(error: EdgedError) -> web.Response:
    """As the OpenAI surface tells it."""
    return OpenAI(BOARD).error({}, error)  # type: ignore[arg-type]


def said(response: web.Response) -> Any:
    """The body of a refusal."""
    assert isinstance(response.body, bytes)
    return json.loads(response.body)


# -- the OpenAI API ----------------------------------------------------------------------------------------------------

functions = maps(("name", "description", "parameters", "strict"), {"name": st.sampled_from(["f", "g.h", "a b", ""])})
openai_calls = st.lists(
    maps(("id", "type", "function"), {
        "id": st.sampled_from(["c1", "c2"]), "type": st.just("function"),
        "function": maps(("name", "arguments"), {"name": texts, "arguments": json_values.map(json.dumps)}),
    }), max_size=2,
)  # fmt: skip
openai_messages = st.lists(
    maps(("role", "content", "tool_calls", "tool_call_id", "name", "refusal"), {
        "role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]),
        "content": texts | st.lists(maps(("type", "text"), {"type": st.just("text"), "text": texts}), max_size=2),
        "tool_calls": openai_calls, "tool_call_id": st.sampled_from(["c1", "c2"]),
    }), max_size=4,
)  # fmt: skip
chats = maps(
    (
        *openai_request.Body.__struct_fields__,
        *lenient.SAMPLERS,
        *lenient.REFUSED,
        "chat_template_kwargs",
        "keep_alive",
        "x\r\ny",
    ),
    {
        "model": st.just("small"),
        "messages": openai_messages | st.just([{"role": "user", "content": "hi"}]),
        "tools": st.lists(maps(("type", "function"), {"type": st.just("function"), "function": functions}), max_size=3),
        "tool_choice": st.sampled_from(["none", "auto", "required", {"type": "function", "function": {"name": "f"}}]),
        "response_format": maps(("type", "json_schema"), {"type": st.sampled_from(["text", "json_schema"])}),
        "temperature": st.floats(0, 2),
        "stop": texts | st.lists(texts, max_size=20),
        "logprobs": st.booleans(),
    },
)
RIGHT = written({"model": "small", "messages": [{"role": "user", "content": "hi"}], "seed": 1})
HUGE = '{"a":' + "9" * 4200 + "}"
TOOLED = {
    "model": "m",
    "messages": [
        {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": HUGE}}]},
        {"role": "tool", "tool_call_id": "c", "content": "x"},
    ],
}


@given(chats.map(written) | anything(RIGHT) | damaged(chats.map(written)), header, st.booleans())
@example(RIGHT, "\udcff", False)
@example(written(TOOLED), "q", False)
@example(written({"model": "m", "messages": [{"role": "user", "content": "x"}], "seed": 10**4000}), "q", True)
@example(written({"model": "m", "messages": [{"role": "user", "content": "x"}], "response_format": {
    "type": "json_schema", "json_schema": {"name": "x", "schema": {"multipleOf": 10**4000}}}}), "q", True)  # fmt: skip
@example(written({"model": "m", "messages": [{"role": "user", "content": "x"}], "n": {"x": [1]}}), "q", True)
def test_chat_completion_is_a_question_or_wrong_by_name(payload: bytes, key: str, strict: bool) -> None:
    """For a model and for an agent, whose id comes from a header. What is ignored fits into one."""
    try:
        chat = openai_request.parse(payload, strict=strict)
        told = headers.names(chat.ignored)
        assert told.isascii()
        assert told.isprintable()
        assert len(told) < 8000
        asked = openai_request.model_ask(chat)
        assert asked.messages
        assert is_finite(msgspec.to_builtins(asked))
        msgspec.json.encode(asked)
        request = openai_request.agent_request(chat, idempotency_key({IDEMPOTENCY_KEY: key}))
        assert request.id in (key, key.strip('"'))
        msgspec.json.encode(request)
    except CallerError as error:
        assert error.message
        refusal = said(openai_error(error))["error"]
        assert refusal["message"]
        assert not isinstance(error, BadParameter) or refusal["param"] == error.param


inputs = texts | st.lists(texts | st.integers(), max_size=3)


@given(
    maps(("model", "input", "encoding_format", "dimensions", "user"), {"model": texts, "input": inputs}).map(written)
)
@example(b'{"model":"m","input":["x"],"dimensions":' + b"9" * 4200 + b"}")
def test_embeddings_are_asked_for_or_wrong_by_name(payload: bytes) -> None:
    """Texts that are none, numbers without end."""
    try:
        job, _ = embeddings.parse(payload)
    except CallerError as error:
        assert said(openai_error(error))["error"]["message"]
    else:
        assert 1 <= len(job.texts) <= embeddings.MAX_INPUTS
        assert all(job.texts)


# -- headers -----------------------------------------------------------------------------------------------------------

names = st.sampled_from(["Host", "Origin", "Sec-Fetch-Site", "Access-Control-Request-Method", "X"])
hosts = header | st.sampled_from(
    ["[::1", "localhost.", "[", "127.0.0.1:80:80", "a.localhost", "[fe80::1%eth0]:1", "\u0661.1.1.1"]
)


@given(st.dictionaries(names, hosts), st.booleans(), st.sampled_from(["OPTIONS", "POST", ""]))
@example({"Origin": "\udcff"}, True, "POST")
@example({"Host": "\udcff"}, True, "POST")
@example({"Origin": "https://evil.example\r\nX: y"}, True, "OPTIONS")
def test_pages_and_names_are_let_in_or_told_why_not(headers: dict[str, str], is_tcp: bool, method: str) -> None:
    """Nothing that a page has not been given is told back to it; every refusal can be sent."""
    browsers = Browsers(["board"], ["https://good.example"])
    try:
        browsers.check(headers, is_tcp=is_tcp)
    except Forbidden as error:
        assert said(refused(error))["error"]["message"]
        assert said(openai_error(error))["error"]["message"]
    told = {**browsers.cors_headers(headers), **(browsers.preflight(method, headers) or {})}
    assert all("\r" not in value and "\n" not in value for value in told.values())
    assert told.get("Access-Control-Allow-Origin", "https://good.example") == "https://good.example"


@given(header | st.just('"quoted"') | st.just("x" * 200))
def test_idempotency_key_is_a_name_or_refused(value: str) -> None:
    """An id that every format can carry."""
    try:
        key = idempotency_key({IDEMPOTENCY_KEY: value})
        assert key
        assert key.encode()
        assert key == idempotency_key({IDEMPOTENCY_KEY: f'"{key}"'})
    except CallerError as error:
        assert said(refused(error))["error"]["message"]


# -- MQTT --------------------------------------------------------------------------------------------------------------

TOPICS = Topics("n1")
known_levels = st.sampled_from(["edged", "n1", "agents", "house", "request", "requests", "cancel", "+", "#", "$SYS"])
levels = st.lists(known_levels | texts, max_size=8).map("/".join)
mqtt_texts = st.none() | texts | levels
payloads = anything(b'{"input":"hi","reply_to":"app/x"}') | json_values.map(written) | st.just(b"hi")


@given(levels | texts)
@example("edged/n1/agents//request")
@example("a/" * 300)
@example("\ufffe")
def test_topics_mean_one_thing_or_nothing(topic: str) -> None:
    """And a reply goes where a broker takes it, or nowhere."""
    agent, target = TOPICS.agent_of(topic), TOPICS.target_of(topic)
    assert agent is None or f"{TOPICS.base}/agents/{agent}/request" == topic
    assert target is None or f"{TOPICS.base}/requests/{target}/cancel" == topic
    for problem in (topics.publish_problem(topic), topics.reply_problem(topic)):
        assert problem is None or problem
    if topics.publish_problem(topic) is None:
        assert 1 <= len(topic.encode()) <= topics.MAX_TOPIC_BYTES


async def taken(incoming: Incoming) -> tuple[list[Ask], list[Outgoing], list[int]]:
    """What an intake makes of a message: questions, refusals, acknowledgements."""
    asked: list[Ask] = []
    told: list[Outgoing] = []
    acked: list[int] = []
    working: set[asyncio.Task[None]] = set()

    async def accept(ask: Ask) -> None:
        asked.append(ask)

    async def send(message: Outgoing) -> str | None:
        told.append(message)
        return None

    async def cancel(target: str, topic: str) -> None:
        raise EdgedError(f"{target} {topic}")

    settings = Settings(url="mqtt://b", node_id="n1", agents=("house",))
    handlers = Handlers(accept, cancel, send)
    intake = Intake(settings, handlers, counters=Counters(), working=working, ack=acked.append, done=lambda: None)
    intake.take(incoming)
    while working:
        await asyncio.gather(*working)
    return asked, told, acked


ASK = "edged/n1/agents/house/request"


@given(
    st.just(ASK) | levels,
    payloads,
    st.fixed_dictionaries(
        {},
        optional={
            "response_topic": mqtt_texts,
            "correlation": st.none() | st.binary(max_size=20),
            "content_type": st.none() | st.sampled_from([*wire.FORMATS]) | texts,
            "expiry_s": st.none() | st.integers(0, 2**32 - 1),
            "from_v5": st.booleans(),
            "retained": st.booleans(),
        },
    ),
)
@example(ASK, b'{"input":"' + b"x" * 1000 + b'","agent":"' + b"\\u0001" * 40_000 + b'"}', {})
@example(ASK, b"\xff\xfe", {"content_type": "msgpack\0"})
@example(ASK, b"hi", {"response_topic": "a/+", "correlation": b""})
@example(ASK, b"hi", {"content_type": "x" * 60_000})
async def test_message_is_asked_refused_or_dropped_and_acknowledged(
    topic: str, payload: bytes, marks: dict[str, Any]
) -> None:
    """Each exactly once, and what is told fits any broker's packets and MQTT's own rules."""
    fields: dict[str, Any] = {"duplicate": False, "retained": False, **marks}
    asked, told, acked = await taken(Incoming(topic=topic, payload=payload, qos=1, mid=7, **fields))
    assert acked == [7]
    assert len(asked) + len(told) <= 1
    for ask in asked:
        assert ask.packet is not None
        assert ask.address is not None
        assert topics.publish_problem(ask.address.topic) is None
    for message in told:
        assert topics.publish_problem(message.topic) is None
        assert message.size() < MAX_PACKET_BYTES / 4
        assert 1 <= (message.expiry_s() or 0) <= messages.MAX_EXPIRY_S
        publish_properties(message).pack()  # type: ignore[no-untyped-call]  # paho left it untyped
        if message.content_type == wire.content_type(Format.JSON):
            assert json.loads(message.payload)["status"] == "refused"


def test_unanswerable_is_no_error_of_a_caller() -> None:
    """It is dropped, and never told to anybody."""
    assert not issubclass(Unanswerable, EdgedError)


# -- a tool's process --------------------------------------------------------------------------------------------------

frames = anything(msgspec.msgpack.encode(Answer(b"{}")), msgspec.msgpack.encode(Hello())) | json_values.map(written)


@given(frames | json_values.map(written).map(lambda result: msgspec.msgpack.encode({"result": result})))
@example(b"\x81\xa5error\xa1\xff")
@example(b"\x91" * 5000)
@example(msgspec.msgpack.encode({"result": b"[" * 5000}))
@example(msgspec.msgpack.encode({"result": b'"\xff"'}))
@example(msgspec.msgpack.encode({"functions": {"f": {"parameters": {"a": 1}}}}))
def test_frame_of_a_child_is_one_or_nonsense(frame: bytes) -> None:
    """It may be written by anything that the tool's author has imported."""
    for kind in (Answer, Hello):
        try:
            told = process.decoded(frame, kind)
        except process.Nonsense:
            continue
        assert isinstance(told, kind)
        if isinstance(told, Answer):
            try:
                process.value_of(told)
            except process.Nonsense:
                continue


WRITES = """
    import os, sys

    def f(x: int) -> int:
        os.write(int(sys.argv[1]), FRAME)
        return 1
"""


@pytest.mark.parametrize(
    "frame",
    [b"\x81\xa5error\xa1\xff", b"\x91" * 5000, msgspec.msgpack.encode({"result": b"[" * 5000}), b"", b"\xc1"],
    ids=["no UTF-8", "deep", "deep result", "empty", "nothing"],
)
async def test_child_that_writes_nonsense_is_killed(tmp_path: Path, frame: bytes) -> None:
    """The call fails with words; nothing is left of the process."""
    written_ = len(frame).to_bytes(4) + frame
    (tmp_path / "m.py").write_text(textwrap.dedent(WRITES).replace("FRAME", repr(written_)))
    child = await Process.start("m", Module(tmp_path, "m", 2**28, 2**28, NONE), ["f"])
    assert not (await child.hello()).problem
    packed = msgspec.msgpack.encode({"function": "f", "arguments": {"x": 1}, "key": "k"})
    with pytest.raises(Died, match="wrote into edged's own channel"):
        await child.call(packed)
    assert child.ended.done()
