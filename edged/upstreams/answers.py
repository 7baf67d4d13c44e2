"""What a server answers, checked and brought into one shape. Pure. Nothing here trusts the other side: what is not the
expected shape is a weak failure of the link, named by what came instead."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Collection, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct, field
from msgspec.structs import replace

from edged.types import RawCall, TokenLogprob
from edged.upstreams import stops, written
from edged.upstreams.failures import ExchangeFailed, NothingStreamed, is_html, of_object
from edged.upstreams.link import Sign
from edged.upstreams.stops import Stops
from edged.upstreams.written import Written
from edged.wire.thinking import UNOPENED

MAX_TOKENS = 10**9  # what a server counts beyond it, or below 0, it has not counted
DONE = "[DONE]"
T = TypeVar("T")
# Words for the reason an answer ended, as other servers have them. What is in neither list is taken for "stop".
FINISH = {
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


class _Function(Struct):
    name: str | None = None
    arguments: Any = None  # text; some servers give the object itself


class _Call(Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Message(Struct):
    content: str | None = None
    tool_calls: list[_Call] | None = None
    reasoning_content: Any = None  # what was thought, by servers that split it off: llama.cpp's and vLLM's word
    reasoning: Any = None  # ... and Ollama's, OpenRouter's, and vLLM's of today
    thinking_blocks: Any = None  # ... and LiteLLM's for Anthropic's models, mostly beside the first
    reasoning_details: Any = None  # ... and OpenRouter's beside the second

    def thoughts(self) -> str:
        """What was thought, if it is told in a shape that is known."""
        texts = [one for one in (self.reasoning_content, self.reasoning) if isinstance(one, str)]
        texts += [_blocks(self.thinking_blocks, "thinking"), _blocks(self.reasoning_details, "text", "summary")]
        return next((one for one in texts if one), "")


class _Likely(Struct):
    token: str
    logprob: float
    data: list[Annotated[int, Meta(ge=0, le=255)]] | None = field(default=None, name="bytes")
    top_logprobs: list[_Likely] = []

    def triple(self) -> tuple[str, bytes, float]:
        """(text, bytes, logprob); the bytes of the text where the server does not tell them."""
        data = self.token.encode(errors="replace") if self.data is None else bytes(self.data)
        return self.token, data, self.logprob


class _Logprobs(Struct):
    content: list[_Likely]


class _Choice(Struct):
    message: _Message
    finish_reason: str | None = None
    logprobs: Any = None  # read only where they were asked for: servers have several shapes of it


class _Details(Struct):
    cached_tokens: int | None = None


class _Usage(Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Body(Struct):
    usage: _Usage | None = None
    error: Any = None  # comes with status 200 too: of gateways, and in streams that have begun
    object: Any = None  # "error": an error object without one around it, vLLM's of 2025 and before
    message: Any = None
    type: Any = None
    code: Any = None

    def refusal(self) -> Any:
        """The error object, if it is one."""
        if self.error or self.object != "error":
            return self.error
        return {"message": self.message, "type": self.type, "code": self.code}


class _Whole(_Body):
    choices: list[_Choice] | None = None


class _Part(Struct):
    delta: _Message | None = None
    finish_reason: str | None = None


class _Chunk(_Body):
    choices: list[_Part] | None = None


class Parsed(Struct, frozen=True, kw_only=True):
    """An answer. Token counts and log-probabilities are None where the server did not say.

    reasoning: what was thought before it. unopened: its text began in a thought that no tag had opened.
    """

    text: str
    calls: tuple[RawCall, ...]
    finish: str
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    reasoning: str = ""
    unopened: bool = False

    @property
    def shows_beginning(self) -> bool:
        """Whether it shows if answers begin in a thought: one that max_tokens cut off may not have come to its end."""
        return self.unopened or bool(self.text and self.finish != "length")


def whole(body: bytes, *, secret: str | None, names: Collection[str] = (), stop: Sequence[str] = ()) -> Parsed:
    """From the body of an answer that was not streamed. names: of the tools that may be called. stop: what ends a text.

    Raises:
        ExchangeFailed: it is no answer.
        Complaint: it is an error object, whatever the status said.
    """
    answer = _decode(body, _Whole)
    if refusal := answer.refusal():
        raise of_object(refusal, status=None, secret=secret)
    if not answer.choices:
        raise ExchangeFailed(Sign.WEAK, "the answer has no choices")
    choice = answer.choices[0]
    calls = _Calls()
    calls.add(choice.message.tool_calls or [], streamed=False)
    content = choice.message.content or ""
    text, read = written.read(content, () if calls else names)
    calls.write(read.calls)
    ended = stops.before(text, stop)
    parsed = _parsed(ended, calls, _finish(choice.finish_reason, cut=ended != text), answer.usage)
    parsed = _thought(parsed, choice.message.thoughts() + read.thoughts(), read)
    tokens = _last(_token_logprobs(choice.logprobs), len(text), cut=text != content)
    return replace(parsed, logprobs=_first(tokens, len(ended), cut=ended != text))


class Events:
    """Bytes of a stream into the data of its server-sent events
    (https://html.spec.whatwg.org/multipage/server-sent-events.html).

    Lines end with LF or CRLF. What is incomplete stays inside, so a character that is split between two pieces is whole
    when it is read."""

    def __init__(self) -> None:
        self._rest = bytearray()  # of the line that has not ended
        self._data: list[str] = []

    def feed(self, piece: bytes) -> list[str]:
        """The data of the events that end in `piece`. ValueError: it is not UTF-8."""
        self._rest += piece
        if b"\n" not in piece:  # a long line may come in thousands of pieces: it is looked through once
            return []
        *lines, self._rest = self._rest.split(b"\n")
        return [data for line in lines if (data := self._line(bytes(line).removesuffix(b"\r"))) is not None]

    def end(self) -> list[str]:
        """The data of a last event without the empty line that should end it: a server that closes right after it has
        said it all the same."""
        return self.feed(b"\n\n")

    def _line(self, line: bytes) -> str | None:
        if not line:
            data, self._data = self._data, []
            return "\n".join(data) if data else None
        line = line.removeprefix(BOM_UTF8)  # the stream's first may have it
        field, _, value = line.partition(b":")  # a comment is a line without a field before the colon
        if field == b"data":
            self._data.append(value.removeprefix(b" ").decode())
        return None


class Assembly:
    """A streamed answer, put together from its chunks.

    Args:
        names: of the tools that may be called.
        stop: what ends a text.
        unopened: see Thinking.
    """

    def __init__(
        self, *, secret: str | None, names: Collection[str] = (), stop: Sequence[str] = (), unopened: bool = False
    ) -> None:
        self._secret, self._names, self._stop = secret, names, stop
        self._stops = Stops(stop)
        self._written = Written(names, unopened=unopened)
        self._contents: list[str] = []  # as they came
        self._text: list[str] = []
        self._thoughts: list[str] = []
        self._told = 0  # of the pieces of thoughts
        self._calls = _Calls()
        self._finish: str | None = None
        self._usage: _Usage | None = None
        self._counted = False  # the usage came by itself, as it does after an answer
        self.begun = False  # something of the answer came
        self.done = False  # the server said that nothing more comes

    @property
    def finished(self) -> bool:
        """Whether the answer itself is complete; its usage may still come. Not every server says why it ended: then
        [DONE] or the usage tells that it did."""
        return self._finish is not None or (self.begun and (self.done or self._counted))

    def take(self, data: str) -> str:
        """The data of one event; returns the text it adds. Raises as `whole` does."""
        if self.done:
            return ""
        if data.strip() == DONE:
            self.done = True
            return ""
        chunk = _decode(data.encode(), _Chunk)
        if refusal := chunk.refusal():
            raise of_object(refusal, status=None, secret=self._secret)
        self._usage = chunk.usage or self._usage
        if not chunk.choices:
            self._counted = self._counted or (self.begun and chunk.usage is not None)
            return ""
        part = chunk.choices[0]
        self._finish = part.finish_reason or self._finish
        delta = part.delta or _Message()
        self._calls.add(delta.tool_calls or [], streamed=True)
        self._contents.append(delta.content or "")
        text = self._words(self._written.feed(delta.content or ""))
        self._thoughts += [piece for piece in (delta.thoughts(), self._written.thoughts()) if piece]
        self.begun = self.begun or bool(delta.content or delta.tool_calls or self._thoughts)
        return text

    def thoughts(self) -> str:
        """What was thought since this was asked last."""
        told, self._told = self._told, len(self._thoughts)
        return "".join(self._thoughts[told:])

    def rest(self) -> str:
        """The text that was held back because it might have become something else; only at the end of the stream."""
        text = self._words(self._written.finish()) + self._words(self._stops.finish(), last=True)
        if self._written.calls and not self._calls:
            self._calls.write(self._written.calls)
        self._thoughts += [piece for piece in (self._written.thoughts(),) if piece]
        return text

    def parsed(self) -> Parsed:
        """The answer. Where its text began in a thought, and only the tag that closes it showed so, it is shorter than
        its pieces. ExchangeFailed: the stream ended before the answer did."""
        if not self.finished:
            if not self.begun:
                raise NothingStreamed
            raise ExchangeFailed(Sign.WEAK, "the stream ended in the middle of the answer: no finish_reason came")
        text, read, thoughts = "".join(self._text), self._written, "".join(self._thoughts)
        if UNOPENED in text:
            again, late = written.read("".join(self._contents), self._names)
            if late.thought_unopened:
                self._calls.write(() if self._calls else late.calls)
                text, read, thoughts = stops.before(again, self._stop), late, thoughts + late.thoughts()
        finish = _finish(self._finish, cut=self._stops.met)
        return _thought(_parsed(text, self._calls, finish, self._usage), thoughts, read)

    def _words(self, text: str, *, last: bool = False) -> str:
        """What of the text belongs to the answer; last: no more is looked for in it."""
        words = text if last else self._stops.feed(text)
        self._text.append(words)
        return words


class _Calls:
    """Calls, put together from pieces."""

    def __init__(self) -> None:
        self._calls: list[_Growing] = []
        self._at: dict[int, _Growing] = {}

    def add(self, pieces: list[_Call], *, streamed: bool) -> None:
        for piece in pieces:
            function = piece.function or _Function()
            call = self._of(piece, function) if streamed else self._new(piece)
            call.name = call.name or function.name or ""
            arguments = function.arguments
            if arguments is not None:
                text = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()
                call.arguments.append(text)

    def _of(self, piece: _Call, function: _Function) -> _Growing:
        """The call a piece belongs to. Some servers leave the index out, or number every call 0: then a new id, or a
        name where there is no id, begins a new one."""
        if piece.index is None:
            known = self._calls[-1] if self._calls else None
            begins = known is None or (piece.id != known.id if piece.id else bool(function.name))
        else:
            known = self._at.get(piece.index)
            begins = known is None or bool(piece.id and known.id and piece.id != known.id)
        return self._new(piece) if begins or known is None else known

    def _new(self, piece: _Call) -> _Growing:
        call = _Growing(piece.id)
        self._calls.append(call)
        if piece.index is not None:
            self._at[piece.index] = call
        return call

    def __bool__(self) -> bool:
        return bool(self._calls)

    def write(self, calls: tuple[RawCall, ...]) -> None:
        """Calls that came as text."""
        for call in calls:
            made = self._new(_Call())
            made.name = call.name
            made.arguments.append(call.arguments)

    def raw(self) -> tuple[RawCall, ...]:
        if any(not call.name for call in self._calls):
            raise ExchangeFailed(Sign.WEAK, "the answer has a tool call without a name")
        return tuple(RawCall(call.name, "".join(call.arguments)) for call in self._calls)


class _Growing:
    def __init__(self, id: str | None) -> None:
        self.id = id
        self.name = ""
        self.arguments: list[str] = []


def _finish(reason: str | None, *, cut: bool) -> str:
    """Why it ended, in the server's word. cut: at a stop string, which a server that took no notice of it wrote on
    after."""
    return "stop" if not reason or (cut and reason in FINISH and FINISH[reason] == "length") else reason


def _blocks(blocks: Any, *names: str) -> str:
    """The texts of a list of thoughts, each under one of these names."""
    blocks = blocks if isinstance(blocks, list) else []
    found = [block.get(name) for block in blocks if isinstance(block, dict) for name in names]
    return "".join(text for text in found if isinstance(text, str))


def _parsed(text: str, calls: _Calls, finish: str, usage: _Usage | None) -> Parsed:
    if finish == "error":  # a gateway whose own upstream failed
        raise ExchangeFailed(Sign.WEAK, "the answer ended with an error (finish_reason)")
    raw = calls.raw()
    reason = FINISH.get(finish, "stop")
    usage = usage or _Usage()
    return Parsed(
        text=text,
        calls=raw,
        finish="tool_calls" if raw and reason == "stop" else reason,  # Ollama says "stop" after a call
        prompt_tokens=_count(usage.prompt_tokens),
        cached_tokens=_count((usage.prompt_tokens_details or _Details()).cached_tokens),
        completion_tokens=_count(usage.completion_tokens),
    )


def _thought(parsed: Parsed, thoughts: str, read: Written) -> Parsed:
    return replace(parsed, reasoning=thoughts.strip(), unopened=read.thought_unopened)


def _token_logprobs(logprobs: Any) -> tuple[TokenLogprob, ...] | None:
    try:
        content = msgspec.convert(logprobs, _Logprobs).content
    except msgspec.ValidationError:
        return None
    return tuple(TokenLogprob(*one.triple(), tuple(likely.triple() for likely in one.top_logprobs)) for one in content)


def _last(tokens: tuple[TokenLogprob, ...] | None, length: int, *, cut: bool) -> tuple[TokenLogprob, ...] | None:
    """Those of the text's last characters, where what came before them is not part of it."""
    if not tokens or not cut:
        return tokens
    begin = len(tokens)
    while begin and len(tokens[begin - 1].text) <= length:
        begin -= 1
        length -= len(tokens[begin].text)
    return tokens[begin:]


def _first(tokens: tuple[TokenLogprob, ...] | None, length: int, *, cut: bool) -> tuple[TokenLogprob, ...] | None:
    """Those of the text's first characters, where what comes after them is not part of it."""
    if not tokens or not cut:
        return tokens
    end = 0
    while end < len(tokens) and len(tokens[end].text) <= length:
        length -= len(tokens[end].text)
        end += 1
    return tokens[:end]


def _count(tokens: int | None) -> int | None:
    return tokens if tokens is not None and 0 <= tokens <= MAX_TOKENS else None


def _decode(body: bytes, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(body.removeprefix(BOM_UTF8), type=shape)
    except msgspec.ValidationError as error:
        raise ExchangeFailed(Sign.WEAK, f"not an answer of the OpenAI API: {error}") from None
    except (ValueError, RecursionError):
        raise ExchangeFailed(Sign.WEAK, f"not an answer of the OpenAI API: {_described(body)}") from None


def _described(body: bytes) -> str:
    if not body.strip():
        return "an empty one"
    return f"{'an HTML page' if is_html(body) else 'no JSON'} ({len(body)} bytes)"


class _List(Struct):
    data: list[Any] | None = None


def listed(body: bytes) -> tuple[str, ...] | None:
    """The names of a list of models; None where it is some other JSON object. ExchangeFailed: it is none."""
    data = _decode(body, _List).data
    if data is None or not all(isinstance(one, dict) and isinstance(one.get("id"), str) for one in data):
        return None
    return tuple(one["id"] for one in data)
