"""The order of events, however an answer ends, as the SDK's own accumulator demands it."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai._models import construct_type
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import ResponseStreamEvent

from edged.completions.calls import CallPiece, WrittenCall
from edged.completions.request import ModelAnswer
from edged.transport.http.openai.stream import Thought
from edged.transport.http.responses import reply, request
from edged.transport.http.responses.stream import Events
from edged.types import Finish

TOKENS: Any = {"prompt_tokens": 1, "cached_tokens": 0, "completion_tokens": 1}
BEGUN = reply.begun("resp_1", 1.0, request.echo(request.parse(b'{"model": "m", "input": "hi"}')))


def events_of(text: bytes) -> list[dict[str, Any]]:
    return [json.loads(block.partition("data: ")[2]) for block in text.decode().split("\n\n") if block]


def accumulated(told: list[dict[str, Any]]) -> Any:
    """What the SDK makes of them; it raises where their order is wrong."""
    state: Any = ResponseStreamState(input_tools=[], text_format=openai.omit)
    final = None
    for one in told:
        event: Any = construct_type(type_=ResponseStreamEvent, value=one)
        state.handle_event(event)
        final = getattr(event, "response", final)
    return final


ANSWERS = {
    "words": ModelAnswer(text="one two", finish=Finish.STOP, **TOKENS),
    "cut": ModelAnswer(text="one", finish=Finish.LENGTH, **TOKENS),
    "nothing": ModelAnswer(text="", finish=Finish.STOP, **TOKENS),
    "calls": ModelAnswer(
        text="So: ",
        calls=(WrittenCall("a", '{"x": 1}', True), WrittenCall("b", "{}", True)),
        finish=Finish.STOP,
        **TOKENS,
    ),
    "cut call": ModelAnswer(text="", calls=(WrittenCall("a", '{"x": ', False),), finish=Finish.LENGTH, **TOKENS),
    "thought": ModelAnswer(text="one", reasoning="hm", finish=Finish.STOP, **TOKENS),
}


def pieces_of(answer: ModelAnswer) -> list[Any]:
    """It in pieces of one character, thoughts with the space that models write around them."""
    pieces: list[Any] = [Thought(character) for character in (f"\n{answer.reasoning}\n" if answer.reasoning else "")]
    pieces += [(character, ()) for character in answer.text]
    for place, call in enumerate(answer.calls):
        pieces.append(CallPiece(place, call.name, ""))
        pieces += [CallPiece(place, None, character) for character in call.arguments]
    return pieces


@pytest.mark.parametrize("batch", [1, 2, 1000, 0])
@pytest.mark.parametrize("name", ANSWERS)
def test_however_an_answer_comes_its_events_add_up_to_the_response(name: str, batch: int) -> None:
    """In single pieces, in many at once, and all at the end."""
    answer = ANSWERS[name]
    response = reply.of_model(BEGUN, answer, logprobs=False, reasoning=True)
    events, pieces = Events(BEGUN), pieces_of(answer)
    written = b""
    for start in range(0, len(pieces), batch) if batch else ():
        written += events.written(pieces[start : start + batch])
    told = events_of(written + events.end(response))
    assert [one["sequence_number"] for one in told] == list(range(len(told)))
    assert [one["type"] for one in told[:2]] == ["response.created", "response.in_progress"]
    assert told[-1] == {
        "type": f"response.{response['status']}",
        "sequence_number": len(told) - 1,
        "response": response,
    }
    done = [one["item"] for one in told if one["type"] == "response.output_item.done"]
    assert done == response["output"]
    added = [(one["output_index"], one["item"]["id"]) for one in told if one["type"] == "response.output_item.added"]
    assert added == [(place, item["id"]) for place, item in enumerate(response["output"])]
    for place, item in enumerate(response["output"]):
        deltas = [one["delta"] for one in told if one.get("output_index") == place and "delta" in one]
        texts = {"message": "content", "reasoning": "summary"}
        whole = item[texts[item["type"]]][0]["text"] if item["type"] in texts else item["arguments"]
        assert "".join(deltas).strip() == whole.strip()
    final = accumulated(told)
    assert final.status == ("incomplete" if answer.finish is Finish.LENGTH else "completed")
    assert final.output_text == answer.text


def test_cut_call_has_no_arguments_that_are_done() -> None:
    """Nobody is to make it."""
    response = reply.of_model(BEGUN, ANSWERS["cut call"], logprobs=False, reasoning=False)
    told = events_of(Events(BEGUN).end(response))
    assert "response.function_call_arguments.done" not in [one["type"] for one in told]
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert response["output"][0]["status"] == "incomplete"


def test_words_before_an_attempt_that_does_not_count_are_closed() -> None:
    """A thought that the answer no longer has stays an item of the stream."""
    events = Events(BEGUN)
    response = reply.of_model(BEGUN, ANSWERS["words"], logprobs=False, reasoning=True)
    told = events_of(events.written([Thought("hm")]) + events.end(response))
    assert [one["item"]["type"] for one in told if one["type"] == "response.output_item.done"] == [
        "reasoning",
        "message",
    ]
    assert [one["output_index"] for one in told if one["type"] == "response.output_item.added"] == [0, 1]


def test_failure_is_the_last_event() -> None:
    """Begun or not."""
    some: list[list[Any]] = [[], [("one", ())]]
    for pieces in some:
        events = Events(BEGUN)
        written = events.written(pieces) if pieces else b""
        told = events_of(written + events.failed(reply.failed(BEGUN, "no_link", "no way")))
        assert told[0]["type"] == "response.created"
        assert (told[-1]["type"], told[-1]["response"]["error"]["code"]) == ("response.failed", "no_link")
        assert "error" not in told[-1]
