"""Completions of bare texts, OpenAI's older API: requests as it documents them, answers in its shape. Pure.

https://platform.openai.com/docs/api-reference/completions
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from edged.completions.request import MAX_TOP, ModelAnswer
from edged.completions.text import TextAsk
from edged.transport.http.core.stream import event
from edged.transport.http.openai import lenient
from edged.transport.http.openai import reply as shapes
from edged.transport.http.openai.reply import Head
from edged.transport.http.openai.request import FIXED, Fixed, StreamOptions, check_fixed
from edged.transport.http.openai.stream import DONE, Words
from edged.types import JSON, Fault, Format, TokenLogprob
from edged.wire import BOUNDS, check_numbers, decode, stops
from edged.wire.dialogue import BadParameter, convert
from edged.wire.sampling import UNSET, sampling
from edged.wire.values import checked

KIND = "text_completion"
DEFAULT_TOKENS = 16  # OpenAI's
NUMBERS = {
    **{name: BOUNDS[name] for name in ("max_tokens", "temperature", "top_p", "seed")},
    "max_completion_tokens": BOUNDS["max_tokens"],
    "logprobs": (0, MAX_TOP),
}
FIXED_OF_TEXTS: Fixed = {
    **{name: FIXED[name] for name in ("n", "frequency_penalty", "presence_penalty", "logit_bias")},
    "best_of": ((1,), "one choice is made"),
    "echo": ((False,), "the prompt is not part of the answer"),
}
# What a text cannot have: chats have it.
OF_CHATS = (
    "messages", "system", "images", "tools", "tool_choice", "functions", "response_format", "format", "grammar",
    "json_schema", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
)  # fmt: skip
REFUSED = {**lenient.REFUSED, **dict.fromkeys(OF_CHATS, "ask by POST /v1/chat/completions")}


class Body(Struct, forbid_unknown_fields=True):
    """The whole request."""

    model: str
    prompt: Any
    suffix: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logprobs: int | None = None
    user: str | None = None  # of no effect
    # see FIXED_OF_TEXTS
    n: Any = None
    best_of: Any = None
    echo: Any = None
    frequency_penalty: Any = None
    presence_penalty: Any = None
    logit_bias: Any = None


class TextRequest(Struct, frozen=True):
    """A request that was checked. ignored: names of what has no effect."""

    ask: TextAsk
    stream: bool
    include_usage: bool
    ignored: tuple[str, ...]


def parse(payload: bytes, *, strict: bool = False) -> TextRequest:
    """A request from its bytes. Raises as `request.parse`.

    Args:
        strict: refuse what OpenAI does not document and what has no effect.
    """
    raw = checked(decode(payload, Format.JSON), "a JSON object with model and prompt")
    read = lenient.Read(raw, UNSET, ()) if strict else lenient.read(raw, Body.__struct_fields__, REFUSED)
    body = convert(read.body, Body, "")
    check_fixed(body, FIXED_OF_TEXTS)
    check_numbers(body, NUMBERS)
    limits = [limit for limit in (body.max_tokens, body.max_completion_tokens) if limit is not None]
    ask = TextAsk(
        model=body.model,
        prompt=_prompt(body.prompt),
        suffix=body.suffix or "",
        max_tokens=min(limits, default=DEFAULT_TOKENS),
        sampling=sampling(body.temperature, body.top_p, body.seed, read.samplers),
        stop=stops(body.stop),
        logprobs=body.logprobs,
    )
    usage = bool(body.stream_options and body.stream_options.include_usage)
    return TextRequest(ask, bool(body.stream), usage, read.ignored)


def _prompt(given: JSON) -> str:
    text = given[0] if isinstance(given, list) and len(given) == 1 else given
    if not isinstance(text, str) or not text:
        raise BadParameter("prompt", "is one text that is not empty; several of them, and tokens, are not taken")
    return text


def head(model: str) -> Head:
    """What an answer and all its chunks begin with."""
    return Head(f"cmpl-{secrets.token_hex(12)}", int(time.time()), model)


def answer(head: Head, made: ModelAnswer, *, logprobs: bool) -> JSON:
    """A text_completion."""
    choice = _choice(made.text, _logprobs(made.logprobs, 0) if logprobs else None, shapes.finish_reason(made))
    return {**head.fields(KIND), "choices": [choice], "usage": shapes.model_usage(made), **shapes.of_variant(made)}


class Chunks:
    """The events of one answer, in their order. Arguments: as `stream.Chunks`."""

    def __init__(self, head: Head, *, include_usage: bool, logprobs: bool) -> None:
        self._head, self._logprobs = head, logprobs
        self._no_usage: dict[str, JSON] = {"usage": None} if include_usage else {}
        self._length = 0  # characters so far

    def written(self, pieces: list[Words]) -> bytes:
        """More of the text, in one chunk."""
        text = "".join(words for words, _ in pieces)
        tokens = [token for _, some in pieces for token in some]
        told = _logprobs(tokens, self._length) if self._logprobs else None
        self._length += len(text)
        return self._chunk(_choice(text, told, None))

    def end(self, made: ModelAnswer) -> bytes:
        """The text is whole."""
        last = self._chunk(_choice("", None, shapes.finish_reason(made)), shapes.of_variant(made))
        if not self._no_usage:
            return last + DONE
        usage = {**self._head.fields(KIND), "choices": [], "usage": shapes.model_usage(made)}
        return last + event(msgspec.json.encode(usage)) + DONE

    def failed(self, failure: Fault, code: str | None = None) -> bytes:
        """There will be no more of it. code: OpenAI's own word."""
        return event(msgspec.json.encode(shapes.error(failure, code=code)))

    def _chunk(self, choice: JSON, more: dict[str, JSON] | None = None) -> bytes:
        chunk = {**self._head.fields(KIND), "choices": [choice], **self._no_usage, **(more or {})}
        return event(msgspec.json.encode(chunk))


def _choice(text: str, logprobs: JSON, finish_reason: str | None) -> JSON:
    return {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": finish_reason}


def _logprobs(tokens: Sequence[TokenLogprob], offset: int) -> JSON:
    """In the older API's shape: a list for each property. offset: where the first token begins in the text."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{text: logprob for text, _, logprob in token.top} for token in tokens],
        "text_offset": offsets,
    }
