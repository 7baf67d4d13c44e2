"""A response as a stream of events, in the order that OpenAI's clients rely on. Pure.

https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

import msgspec

from edged.completions.calls import CallPiece, joined
from edged.transport.http.core.stream import event
from edged.transport.http.openai.stream import Piece, Thought
from edged.transport.http.responses import reply as shapes
from edged.transport.http.responses.items import Item
from edged.transport.http.responses.reply import Response
from edged.types import JSON, TokenLogprob


class Events:
    """The events of one response. One item after another: what was thought, what is said, the calls.

    Args:
        response: as it begins.
        logprobs: they were asked for.
    """

    def __init__(self, response: Response, *, logprobs: bool = False) -> None:
        self._response, self._logprobs = response, logprobs
        self._id = shapes.bare(response["id"])
        self._sequence = 0
        self._begun = False
        self._open: Item | None = None  # the item that is being written
        self._place = -1  # of that item in the output
        self._done: set[str] = set()  # ids of items that are whole
        self._text = ""  # of the item, so far
        self._tokens: list[TokenLogprob] = []

    def written(self, pieces: list[Piece]) -> bytes:
        """More of the answer, in as few events as possible. What was thought comes before all words, and these before
        the first call."""
        events = self._begin()
        thought = "".join(piece.text for piece in pieces if isinstance(piece, Thought))
        if thought := thought if self._is_open("reasoning") else thought.lstrip():
            if not self._is_open("reasoning"):
                events += self._add(shapes.thought(self._id, ""))
            self._text += thought
            events.append(self._of_item("response.reasoning_summary_text.delta", summary_index=0, delta=thought))
        words = [piece for piece in pieces if isinstance(piece, tuple)]
        if text := "".join(text for text, _ in words):
            if not self._is_open("message"):
                events += [*self._close(None), *self._add(shapes.message(self._id, "", status=shapes.PENDING))]
            tokens = [token for _, some in words for token in some] if self._logprobs else []
            self._text += text
            self._tokens += tokens
            events.append(self._of_text("response.output_text.delta", delta=text, tokens=tokens))
        for piece in joined([piece for piece in pieces if isinstance(piece, CallPiece)]):
            events += self._call(piece)
        return b"".join(events)

    def end(self, response: Response) -> bytes:
        """The response is whole: the rest of its items, and that."""
        events = self._begin()
        if self._open is not None and self._open["id"] not in [item["id"] for item in response["output"]]:
            events += self._close(None)  # said before another attempt that counts
        for item in response["output"]:
            if item["id"] not in self._done:
                events += self._whole(item)
        events.append(self._event(f"response.{response['status']}", response=response))
        return b"".join(events)

    def failed(self, response: Response) -> bytes:
        """There will be no more of it."""
        return b"".join([*self._begin(), self._event("response.failed", response=response)])

    # -- items -----------------------------------------------------------------------------------------------------

    def _call(self, piece: CallPiece) -> list[bytes]:
        """More of a call. The one before it is whole by then."""
        events: list[bytes] = []
        if piece.name is not None:
            events += [*self._close(None), *self._add(shapes.call_head(self._id, piece.index, piece.name))]
        if piece.arguments:
            self._text += piece.arguments
            events.append(self._of_item("response.function_call_arguments.delta", delta=piece.arguments))
        return events

    def _whole(self, item: Item) -> list[bytes]:
        """What is left of an item of the finished response."""
        if self._open is not None and self._open["id"] == item["id"]:
            return self._close(item)
        text = _text_of(item)
        head = {**item, "status": shapes.PENDING}
        if item["type"] == "function_call":
            head["arguments"] = ""
        elif item["type"] == "message":
            head = shapes.message(self._id, "", status=shapes.PENDING)
        else:
            head = shapes.thought(self._id, "")
        events = [*self._close(None), *self._add(head)]
        self._text = text
        if text:
            events.append(self._delta(item, text))
        return [*events, *self._close(item)]

    def _delta(self, item: Item, text: str) -> bytes:
        if item["type"] == "function_call":
            return self._of_item("response.function_call_arguments.delta", delta=text)
        if item["type"] == "reasoning":
            return self._of_item("response.reasoning_summary_text.delta", summary_index=0, delta=text)
        return self._of_text("response.output_text.delta", delta=text, tokens=[])

    def _is_open(self, kind: str) -> bool:
        return self._open is not None and self._open["type"] == kind

    def _add(self, item: Item) -> list[bytes]:
        """An item begins. Parts come after it, so it has none yet."""
        self._open, self._text, self._tokens = item, "", []
        self._place += 1
        kind = item["type"]
        empty: Item = {"message": {"content": []}, "reasoning": {"summary": []}}.get(kind, {})
        events = [self._event("response.output_item.added", output_index=self._place, item={**item, **empty})]
        if kind == "message":
            events.append(self._of_item("response.content_part.added", content_index=0, part=shapes.part("")))
        elif kind == "reasoning":
            part = {"type": "summary_text", "text": ""}
            events.append(self._of_item("response.reasoning_summary_part.added", summary_index=0, part=part))
        return events

    def _close(self, item: Item | None) -> list[bytes]:
        """The open item is whole. item: as the finished response has it; None: as it was written."""
        if self._open is None:
            return []
        kind = self._open["type"]
        done = item or self._as_written()
        events: list[bytes] = []
        if kind == "message":
            events += [
                self._of_text("response.output_text.done", text=_text_of(done), tokens=self._tokens),
                self._of_item("response.content_part.done", content_index=0, part=done["content"][0]),
            ]
        elif kind == "reasoning":
            part = {"type": "summary_text", "text": _text_of(done)}
            events += [
                self._of_item("response.reasoning_summary_text.done", summary_index=0, text=part["text"]),
                self._of_item("response.reasoning_summary_part.done", summary_index=0, part=part),
            ]
        elif done["status"] == "completed":
            more = {"name": done["name"], "arguments": done["arguments"]}
            events.append(self._of_item("response.function_call_arguments.done", **more))
        events.append(self._event("response.output_item.done", output_index=self._place, item=done))
        self._done.add(done["id"])
        self._open = None
        return events

    def _as_written(self) -> Item:
        assert self._open is not None
        if self._open["type"] == "message":
            return shapes.message(self._id, self._text, logprobs=self._tokens)
        if self._open["type"] == "reasoning":
            return shapes.thought(self._id, self._text.strip())
        return {**self._open, "status": "completed", "arguments": self._text}

    # -- events ----------------------------------------------------------------------------------------------------

    def _begin(self) -> list[bytes]:
        """What comes before all else, once."""
        if self._begun:
            return []
        self._begun = True
        return [self._event(f"response.{name}", response=self._response) for name in ("created", "in_progress")]

    def _of_text(self, kind: str, *, tokens: list[TokenLogprob], **more: JSON) -> bytes:
        return self._of_item(kind, content_index=0, **more, logprobs=shapes.logprobs_of(tokens))

    def _of_item(self, kind: str, **more: JSON) -> bytes:
        assert self._open is not None
        return self._event(kind, item_id=self._open["id"], output_index=self._place, **more)

    def _event(self, kind: str, **more: JSON) -> bytes:
        told = {"type": kind, "sequence_number": self._sequence, **more}
        self._sequence += 1
        return event(msgspec.json.encode(told), kind)


def _text_of(item: Item) -> str:
    if item["type"] == "function_call":
        return str(item["arguments"])
    parts = item["summary"] if item["type"] == "reasoning" else item["content"]
    return str(parts[0]["text"])
