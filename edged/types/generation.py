"""What models and servers are given, what they give back, and how fast they are. Values only, no behaviour."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from edged.types.json import JSON
from edged.types.requests import Message, Priority, ToolSpec


class Segment(Struct, frozen=True):
    """Part of a prompt. A `literal` one comes from a user, a tool or a model: control tokens in it stay text."""

    text: str
    literal: bool = False


class Sampling(Struct, frozen=True):
    """How tokens are chosen. The defaults of all but temperature change nothing.

    temperature: 0 is greedy.
    seed: None is a fresh one.
    top_k: only the so many likeliest tokens; 0: all.
    min_p: only tokens at least so likely as this share of the likeliest one.
    repeat_penalty: divides the logits of tokens that the answer has already (multiplies those below 0); 1: none.
    presence_penalty, frequency_penalty: taken from the logit of a token that the answer has already, once, and for each
        time it has it.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    top_k: int = 0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0


class Job(Struct, frozen=True, kw_only=True):
    """One generation.

    prefix: what is the same for every request of an agent; turn: the rest of the prompt.
    max_tokens: most tokens to generate, forced ones included.
    stop: strings that end the text and are not part of it.
    grammar: an llguidance grammar (Lark or the JSON form) the whole output must match, or None.
    confidence_marker: while the output starts with this text (or is still a prefix of it), log-probabilities of
        sampled tokens are summed, and of the ends of values that the grammar forces; None: never.
    listed: values whose end is not weighed, as compact JSON: they are chosen from a list, and so whole. To weigh an end
        of a text costs a step.
    logprobs: how many likeliest tokens to tell beside each token of the text; None: tell no log-probabilities. Asked
        for, every token is sampled, also where the grammar leaves no choice: a token that is forced has no row of
        logits, so nothing could be told of it.
    """

    rid: str
    model: str
    prefix: tuple[Segment, ...]
    turn: tuple[Segment, ...]
    max_tokens: int
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    grammar: str | None = None
    confidence_marker: str | None = None
    listed: frozenset[bytes] = frozenset()
    logprobs: int | None = None
    priority: Priority = Priority.INTERACTIVE


class TokenLogprob(Struct, frozen=True):
    """A token of a text: what it spells, its bytes (of part of a character, too), its log-probability before any mask,
    and the likeliest tokens in its place as (text, bytes, logprob), likeliest first."""

    text: str
    data: bytes
    logprob: float
    top: tuple[tuple[str, bytes, float], ...] = ()


class Finish(StrEnum):
    """Why a generation ended."""

    STOP = "stop"
    LENGTH = "length"


class Completion(Struct, frozen=True, kw_only=True):
    """A finished generation.

    logprob: sum of the log-probabilities, before the grammar's mask, of the sampled tokens that `confidence_marker`
        asked for, and of the ends of values that were forced; None where none was sampled.
    logprobs: of the text's tokens where the job asked for them, in order. A token that a stop string cut in two is not
        among them, nor one that spells nothing.
    decode_steps: model steps in which this sequence took part after its first token.
    variant: of the model, that answered; empty where it has only one.
    Times in milliseconds: queue_ms waits for a place among the sequences, prefill_ms until the prompt was computed,
    first_token_ms from the call to the first token, decode_ms from then to the end.
    """

    text: str
    finish: Finish
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    forced_tokens: int
    decode_steps: int
    logprob: float | None
    logprobs: tuple[TokenLogprob, ...] = ()
    load_ms: float
    queue_ms: float
    prefill_ms: float
    first_token_ms: float
    decode_ms: float
    variant: str = ""


class Chat(Struct, frozen=True, kw_only=True):
    """One completion asked of a server: an upstream, or one on this board.

    key: the idempotency key; asked again with the same key, it is the same question.
    messages: system text first; a message of role tool answers the oldest call before it that has no answer yet.
    may_call: False: the tools are told, for the calls in `messages`, and no new call is wanted.
    must_call: at least one is.
    parallel: whether several at once are wanted; None: as the server likes.
    response_schema: JSON Schema the text has to match.
    max_tokens: most tokens of the answer; None: as many as the server gives.
    logprobs: how many likeliest tokens to tell beside each token of the text; None: tell no log-probabilities.
    """

    key: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    may_call: bool = True
    must_call: bool = False
    parallel: bool | None = None
    response_schema: dict[str, JSON] | None = None
    max_tokens: int | None
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    logprobs: int | None = None


class RawCall(Struct, frozen=True):
    """A call as a server's model wrote it: nothing about it is checked. arguments: JSON text, if it is."""

    name: str
    arguments: str


class ChatAnswer(Struct, frozen=True, kw_only=True):
    """What a server answered: text, or calls, or both. finish: stop | length | tool_calls | content_filter.

    Tokens as the server counted them, estimated where it did not say. Times in milliseconds from the call. logprobs: of
    the text's tokens; None where it told none. reasoning: what was thought before the answer.
    """

    text: str
    calls: tuple[RawCall, ...] = ()
    finish: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    first_token_ms: float
    total_ms: float
    logprobs: tuple[TokenLogprob, ...] | None = None
    reasoning: str = ""


class EmbedJob(Struct, frozen=True, kw_only=True):
    """Vectors for texts. dimensions: how many the caller wants; None: as many as the model makes. truncate: of a text
    that is too long, as much as the model reads; else it is refused. normalise: vectors of length 1."""

    model: str
    texts: tuple[str, ...]
    dimensions: int | None = None
    truncate: bool = False
    normalise: bool = True


class Embeddings(Struct, frozen=True, kw_only=True):
    """A vector for each text, in their order: float32, little-endian. tokens: of all texts, those included that the
    model wants around each."""

    vectors: tuple[bytes, ...]
    tokens: int


class UpstreamFacts(Struct, frozen=True):
    """What is known of an upstream now.

    up: it can be tried; room: fewer requests are with it than it bears; budget_left: today's tokens are not spent.
    """

    name: str
    up: bool = True
    room: bool = True
    budget_left: bool = True


class Speed(Struct, frozen=True):
    """A model's measured speed, in tokens a second: of prompts together, of one sequence beside those that ran with it,
    of these together."""

    prefill_tokens_s: float
    decode_tokens_s: float
    batch_tokens_s: float

    def step_s(self, sequences: int) -> float:
        """Seconds of a step that generates for so many sequences. It was measured with as many as ran of late; each one
        more costs what a token of a prompt does, one less saves as much, but no more than its share."""
        measured_with = self.batch_tokens_s / self.decode_tokens_s
        more_s = (sequences - measured_with) / self.prefill_tokens_s
        return max(1 / self.decode_tokens_s + more_s, sequences / self.batch_tokens_s if more_s < 0 else 0.0)


class Need(Struct, frozen=True):
    """What a request took, or requests of an agent take on average.

    prompt_tokens: computed on the board, cached ones not counted; steps: of its generations, on the board.
    other_s: seconds of work that no model here did: tools, upstreams, the store.
    work_s: seconds from its beginning to its end, a load of the model not counted.
    """

    prompt_tokens: float
    steps: float
    other_s: float
    work_s: float
