"""What a model writes, taken apart while it comes: words at once, calls whole, however it is cut into pieces."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import pytest

from edged.agent.dialects.chat_template import GENERIC, HERMES, CallFormat
from edged.completions.calls import CallPiece
from edged.completions.output import Output, WaitingLogprobs
from edged.types import TokenLogprob, ToolCall

SET, GET = ToolCall("set", {"v": "a }\n```"}), ToolCall("get", {})


def written(call: ToolCall, indent: int | None = None) -> str:
    return json.dumps({"name": call.name, "arguments": call.arguments}, indent=indent)


def marked(*calls: ToolCall) -> str:
    return "\n".join(f"<tool_call>\n{written(call)}\n</tool_call>" for call in calls)


def cuts(text: str) -> Iterator[list[str]]:
    """Whole, character by character, and in two at every place."""
    yield [text]
    yield list(text)
    for at in range(1, len(text)):
        yield [text[:at], text[at:]]


def read(output: Output, pieces: list[str]) -> tuple[list[str], tuple[ToolCall, ...]]:
    words: list[str] = []
    told: list[CallPiece] = []
    for piece in pieces:
        words.append(output.feed(piece))
        told += output.call_pieces()
    words.append(output.finish())
    assert "".join(words) == output.text
    calls = output.calls()
    assert [p.name for p in told if p.name is not None] == [call.name for call in calls]
    assert "".join(p.arguments for p in told) == "".join(call.arguments for call in calls)
    return words, tuple(ToolCall(call.name, call.value()) for call in calls if call.whole)


LAID_OUT = written(SET, indent=2)
CASES: dict[str, tuple[CallFormat, str, str, tuple[ToolCall, ...]]] = {
    "words": (HERMES, "Hello.", "Hello.", ()),
    "nothing": (HERMES, "", "", ()),
    "spaces": (GENERIC, " \n ", " \n ", ()),
    "marked": (HERMES, marked(SET), "", (SET,)),
    "several": (HERMES, marked(SET, GET), "", (SET, GET)),
    "after-words": (HERMES, "I look.\n" + marked(GET), "I look.", (GET,)),
    "line-break": (HERMES, "\n" + marked(GET), "", (GET,)),
    "almost-marked": (HERMES, "a <tool_cal> b\n<tool", "a <tool_cal> b\n<tool", ()),
    "bare": (HERMES, written(SET), "", (SET,)),
    "laid-out": (GENERIC, LAID_OUT, "", (SET,)),
    "fenced": (GENERIC, f"```json\n{LAID_OUT}\n```", "", (SET,)),
    "two-fenced": (GENERIC, f"```\n{LAID_OUT}\n```\n\n```json\n{written(GET)}\n```", "", (SET, GET)),
    "two-in-a-fence": (GENERIC, f"```json\n{LAID_OUT}\n{written(GET)}\n```", "", (SET, GET)),
    "other-json": (GENERIC, '{"name": "Ada", "arguments": {}}', '{"name": "Ada", "arguments": {}}', ()),
    "other-code": (GENERIC, "```json\n[1]\n```", "```json\n[1]\n```", ()),
    "longer-name": (GENERIC, '{"name": "setter"}', '{"name": "setter"}', ()),
    "space-inside": (GENERIC, '{"na me": "set"}', '{"na me": "set"}', ()),
    "no-mark-in-this-format": (GENERIC, "x" + marked(GET), "x" + marked(GET), ()),
    "cut-in-a-call": (HERMES, marked(SET) + "\n<tool_call>\n" + written(GET)[:-3], "", (SET,)),
    "cut-in-the-only-call": (GENERIC, written(SET)[:-3], "", ()),
}


@pytest.mark.parametrize(("calls", "text", "words", "made"), CASES.values(), ids=CASES)
def test_output_is_the_same_however_it_is_cut(
    calls: CallFormat, text: str, words: str, made: tuple[ToolCall, ...]
) -> None:
    """Words are given once and whole, nothing of a call among them."""
    for pieces in cuts(text):
        given, found = read(Output(["set", "get"], calls, mixed=True), pieces)
        assert ("".join(given), found) == (words, made)


@pytest.mark.parametrize(
    ("text", "words", "made"),
    [
        ("one STOP two", "one ", ()),
        ("STOP", "", ()),
        ("one ST", "one ST", ()),
        (marked(ToolCall("set", {"v": "STOP"})), "", (ToolCall("set", {"v": "STOP"}),)),
        ("I STOP\n" + marked(GET), "I ", ()),
        (f"```json\n{LAID_OUT}\n```", "", (SET,)),
    ],
)
def test_output_stops_words_and_never_a_call(text: str, words: str, made: tuple[ToolCall, ...]) -> None:
    """A line break is a usual stop string, and part of every call."""
    for pieces in cuts(text):
        given, found = read(Output(["set", "get"], HERMES, ("STOP", "\n\n"), mixed=True), pieces)
        assert ("".join(given), found) == (words, made)


@pytest.mark.parametrize("calls", [HERMES, GENERIC], ids=["hermes", "generic"])
@pytest.mark.parametrize(
    "text", ['{"name": "set", "n": 1}', '{"x": "\\n<tool_call>\\n"}', '{"x": "<tool_call>"}', "[]"]
)
def test_output_of_another_shape_is_told_from_calls(calls: CallFormat, text: str) -> None:
    """Where the answer is JSON, too, only the whole head of a call makes one; marks inside it are text."""
    for pieces in cuts(text):
        assert "".join(read(Output(["set"], calls, mixed=False), pieces)[0]) == text
    for pieces in cuts(written(SET)):
        assert read(Output(["set"], calls, mixed=False), pieces)[1] == (SET,)
    if calls is HERMES:
        assert read(Output(["set"], calls, mixed=False), [marked(SET)])[1] == (SET,)


def test_output_holds_words_back_only_while_they_may_be_a_call() -> None:
    """A reader sees text with the piece that decides."""
    output = Output(["set"], HERMES, mixed=True)
    pieces = ["`", "``", "py", "\nx = 1", "\n", "<tool", "s> ", '{"name": "set"']
    assert [output.feed(p) for p in pieces] == ["", "", "```py", "\nx = 1", "", "", "\n<tools> ", '{"name": "set"']


def test_told_gives_tokens_with_the_words_they_end_in() -> None:
    """A token waits for the last of its bytes; one that no word shows is never told."""
    tokens = [
        TokenLogprob(t.decode(errors="replace"), t, -1.0) for t in (b"a", b"\xe2\x82", b"\xac b", b"c\n", b"<tool")
    ]
    told = WaitingLogprobs()
    told.add(tokens[:2])
    assert told.take("a") == (tokens[0],)
    assert told.take("") == ()
    told.add(tokens[2:])
    assert told.take("€ b") == (tokens[1], tokens[2])
    assert told.take("c") == ()
    assert told.taken == tokens[:3]


def test_told_is_the_same_however_the_words_are_cut() -> None:
    """Joined, the tokens told are the longest beginning of the words that ends with a token."""
    tokens = [TokenLogprob(t, t.encode(), -1.0) for t in ("I ", "loo", "k.", "\n", "<tool_call>")]
    for first, second in itertools.combinations(range(len("I look.") + 1), 2):
        told = WaitingLogprobs()
        told.add(tokens)
        words = "I look."
        for part in (words[:first], words[first:second], words[second:]):
            told.take(part)
        assert "".join(t.text for t in told.taken) == words
