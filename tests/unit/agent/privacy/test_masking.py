"""A question on its way out, part by part, and the way back; and what the audit log is told of it."""

from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from edged.agent.loop import Run
from edged.agent.minds.base import Resources
from edged.agent.minds.cloud import CloudDecider
from edged.agent.privacy.masking import CUT, Masking, is_private
from edged.config import Agent, Private, PythonTool, Tool, Upstream
from edged.tools.check import MAX_PROBLEM
from edged.types import AuditEntry, Chat, ChatAnswer, Message, RawCall, Request, ToolCall, ToolSpec
from edged.upstreams import Cloud, request


def tool(private: Private = (), **parameters: dict[str, Any]) -> PythonTool:
    return PythonTool(python="m:f", description="d", parameters=parameters, private=private)


def chat(*messages: Message, **more: Any) -> Chat:
    return Chat(**{"key": "", "messages": messages, "max_tokens": 9, **more})


def asked(name: str, arguments: dict[str, Any], result: Any) -> tuple[Message, Message]:
    return Message("assistant", tool_calls=(ToolCall(name, arguments),)), Message("tool", json.dumps(result))


@pytest.mark.parametrize(
    ("names", "path", "private"),
    [
        (("pin",), ("rows", "pin"), True),
        (("PIN",), ("pin",), True),
        (("pin",), ("pins",), False),
        (("who.pin",), ("a", "who", "pin"), True),
        (("who.pin",), ("pin",), False),
        (("who.pin",), ("who", "x", "pin"), False),
        ((), ("pin",), False),
    ],
)
def test_is_private(names: tuple[str, ...], path: tuple[str, ...], private: bool) -> None:
    """A key at any depth, or keys below each other."""
    assert is_private(names, path) is private


def test_everything_below_a_private_name_is_hidden() -> None:
    """Names of an object's parts too; what is nothing stays nothing."""
    result = {"who": {"Anna": [1234, None, True]}, "town": "Linz", "said": "Anna is in"}
    out = Masking({"t": tool(("who",))}).mask(chat(*asked("t", {}, result)))
    assert json.loads(out.messages[1].content) == {
        "who": {"[PRIVATE_1]": ["[PRIVATE_2]", None, "[PRIVATE_3]"]}, "town": "Linz", "said": "[PRIVATE_1] is in",
    }  # fmt: skip


def test_tool_that_is_private_or_unknown_is_hidden_whole() -> None:
    """Names of columns are no values."""
    tools: dict[str, Tool] = {"t": tool(True)}
    messages = (*asked("t", {"a": "b-c"}, {"rows": [{"n": "x-y"}]}), *asked("gone", {"a": 1}, "text"))
    out = Masking(tools).mask(chat(*messages)).messages
    assert out[0].tool_calls[0].arguments == {"a": "[PRIVATE_1]"}
    assert json.loads(out[1].content) == {"rows": [{"n": "[PRIVATE_2]"}]}
    assert (out[2].tool_calls[0].arguments, out[3].content) == ({"a": "[PRIVATE_3]"}, '"[PRIVATE_4]"')


def test_numbers_stay_the_same_when_more_is_said() -> None:
    """A later question of the same request has the same placeholders for what was in the one before."""
    tools: dict[str, Tool] = {"t": tool(("n",))}
    first = (Message("user", "a@example.com and Anna"), *asked("t", {}, {"n": "Bert"}))
    more = (*asked("t", {}, {"n": "Anna"}), Message("user", "b@example.com"))
    short, long = Masking(tools), Masking(tools)
    before, after = short.mask(chat(*first)).messages, long.mask(chat(*first, *more)).messages
    assert before[0].content == "[EMAIL_1] and Anna"
    assert after[0].content == "[EMAIL_1] and [PRIVATE_2]"
    assert before[1:] == after[1:3]
    assert after[-1].content == "[EMAIL_2]"


def test_private_parameter_takes_placeholders_for_its_values() -> None:
    """The tool gets what the schema says: numbers as numbers, texts as texts."""
    parameters: dict[str, dict[str, Any]] = {
        "who": {"enum": ["Anna", "Bert"]}, "pin": {"type": "integer"}, "code": {"type": "string", "pattern": "^4"},
    }  # fmt: skip
    masking = Masking({"t": tool(("who", "pin", "code"), **parameters)})
    spec = ToolSpec("t", "d", {"type": "object", "properties": parameters, "required": []})
    out = masking.mask(chat(Message("user", "is Bert in?"), *asked("t", {"pin": 4711}, "ok"), tools=(spec,)))
    assert out.tools[0].parameters["properties"] == {
        "who": {"enum": ["[PRIVATE_1]", "[PRIVATE_2]"]},
        "pin": {"type": ["integer", "string"]},
        "code": {"type": "string"},
    }
    assert out.messages[0].content == "is [PRIVATE_2] in?"
    call = RawCall("t", '{"who": "[private_2]", "pin": "[PRIVATE_3]", "code": "[PRIVATE_3]"}')
    back = masking.restore(answer("", call), shaped=False)
    assert json.loads(back.calls[0].arguments) == {"who": "Bert", "pin": 4711, "code": "4711"}


def test_operators_own_words_leave_as_they_are() -> None:
    """And a number in them is not given out again."""
    system = (Message("system", "Orders go to shop@example.com, as [EMAIL_1]."),)
    out = Masking({}).mask(chat(Message("user", "a@example.com")), system)
    assert out.messages == (*system, Message("user", "[EMAIL_2]"))


def test_error_that_was_cut_says_nothing_of_what_was_written() -> None:
    """Half a value would not be known for one."""
    correction = Message("tool", json.dumps({"error": "x" * MAX_PROBLEM}))
    call = Message("assistant", tool_calls=(ToolCall("t", {}),))
    out = Masking({"t": tool()}).mask(chat(Message("user", "hi")), corrections=(call, correction))
    assert json.loads(out.messages[-1].content) == {"error": CUT}


def answer(text: str, *calls: RawCall) -> ChatAnswer:
    return ChatAnswer(
        text=text, calls=calls, finish="stop", prompt_tokens=1, cached_tokens=0, completion_tokens=1,
        first_token_ms=1, total_ms=1,
    )  # fmt: skip


class OneAnswer:
    """Stands for the cloud: takes the body, as it would go out."""

    def __init__(self) -> None:
        self.body = b""

    async def chat(self, name: str, chat: Chat, on_text: Any = None, *, on_body: Any = None) -> ChatAnswer:
        self.body = request.body(chat, "large", request.Spelling(), stream=False)
        on_body(self.body)
        return answer("to [EMAIL_1]")


@pytest.mark.parametrize("shown", [0, 60, 4096])
async def test_audit_log_is_told_what_leaves(shown: int) -> None:
    """Size, digest, placeholders and tools of each question; as much of itself as is wished."""
    told: list[AuditEntry] = []
    cloud = OneAnswer()
    question = Request(agent="house", messages=(Message("user", "a@example.com, b@example.com, +43 664 1234567"),))
    run = Run(
        "r1", Agent(model="m", tools=("t", "hidden")), question, toolbox=cast("Any", None), journal=cast("Any", None),
        history=(), steps=(), stream=None, client="unix:7",
    )  # fmt: skip
    tools: dict[str, Tool] = {"t": tool(), "hidden": tool(True)}
    far = Upstream(base_url="http://far/v1", model="large", audit_bytes=shown)
    resources = Resources(
        config=cast("Any", SimpleNamespace(upstreams={"far": far})), tools=tools, cloud=cast("Cloud", cloud),
        engine=cast("Any", None), served=cast("Any", None), speak=cast("Any", None), audit=told.append,
    )  # fmt: skip
    decider = CloudDecider(resources, run, "far", "cloud_asked")
    assert (await decider.move(run)).text == "to a@example.com"  # type: ignore[union-attr]  # it is an answer
    [entry] = told
    body = entry.about.pop("body", None)
    assert entry == AuditEntry(
        what="upstream.asked",
        who="unix:7",
        rid="r1",
        about={
            "upstream": "far",
            "agent": "house",
            "bytes": len(cloud.body),
            "sha256": hashlib.sha256(cloud.body).hexdigest(),
            "placeholders": {"EMAIL": 2, "PHONE": 1},
            "tools": ["t"],
        },
    )
    assert body == (cloud.body[:shown].decode() if shown else None)
    assert b"example.com" not in cloud.body
