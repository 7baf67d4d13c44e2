"""The nouns of edged: what is asked, what is answered, what the model is given. Values only, no behaviour."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType, field

JSON = Any  # what json.loads may return; narrowed where it is used


class Status(StrEnum):
    """The outcome of a request."""

    DONE = "done"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    REFUSED = "refused"


class Priority(StrEnum):
    """Interactive work goes before batch work."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


class Preference(StrEnum):
    """Where a request may be answered."""

    AUTO = "auto"
    LOCAL = "local"
    CLOUD = "cloud"


class Privacy(StrEnum):
    """`device`: nothing of the request leaves the board."""

    DEVICE = "device"
    ANY = "any"


class Offline(StrEnum):
    """What a request that needs the cloud does while no upstream can be reached."""

    WAIT = "wait"
    LOCAL = "local"
    FAIL = "fail"


class Format(StrEnum):
    """Encoding of a request, and so of its reply."""

    JSON = "json"
    MSGPACK = "msgpack"
    TEXT = "text"


class ToolCall(Struct, frozen=True):
    """A call the model made; `arguments` fit the tool's schema."""

    name: str
    arguments: dict[str, JSON]


class ToolSpec(Struct, frozen=True):
    """A tool as a model sees it; parameters is a JSON Schema of an object."""

    name: str
    description: str
    parameters: dict[str, JSON]


class Message(Struct, frozen=True, omit_defaults=True):
    """One message of a dialogue; role is system, user, assistant or tool."""

    role: str
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


class PastTurn(Struct, frozen=True):
    """An earlier turn of a conversation. private: its request was; no upstream ever sees it."""

    messages: tuple[Message, ...]
    private: bool = False


class Request(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a client asks, whatever transport brought it. `messages` always ends with the question. priority: None: the
    highest the client may have; a stored one says which."""

    agent: str
    messages: tuple[Message, ...]
    id: str | None = None
    conversation: str | None = None
    priority: Priority | None = None
    deadline_s: float | None = None
    route: Preference | None = None
    privacy: Privacy | None = None
    stream: bool = False
    reply_to: str | None = None
    response_schema: dict[str, JSON] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


class ToolRecord(Struct, frozen=True):
    """A call that was made and what came of it, as the reply shows it."""

    name: str
    arguments: dict[str, JSON]
    result: JSON
    ok: bool


class RouteTaken(Struct, frozen=True):
    """Where the answer came from and why. confidence: see CONTRACT section 3; null where nothing was sampled.
    upstream: its name in the configuration, only where the cloud was asked. variant: which of the model's variants
    answered, only where it has several."""

    where: str
    model: str
    reason: str
    confidence: float | None = None
    upstream: str | UnsetType = UNSET
    variant: str | UnsetType = UNSET


class Usage(Struct, frozen=True):
    """Tokens of all generations of one request, in tokens; decode_steps in model steps."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    decode_steps: int = 0


class Timing(Struct, frozen=True):
    """Where the time went, in milliseconds, from the acceptance until the reply was written. Every millisecond has one
    home: queue + load + prefill + decode + tools + other = total, whatever became of the request and however many
    generations and attempts it took.

    queue_ms: until somebody worked on it (for its turn, for a link, for a daemon that died to come back with what its
        attempt had done), and for a place among the model's sequences or in an upstream's budget.
    load_ms: to bring the model and its template in.
    prefill_ms: to compute prompts; of an upstream, until its first token.
    first_token_ms: a point on the line: when the first token of all came; 0 where none did.
    decode_ms: from a generation's first token to its end.
    tools_ms: of calls, with what the journal needs to know of them.
    other_ms: all else: prompts are rendered, the store is read, a generation was broken off before its first token.
    """

    queue_ms: float = 0.0
    load_ms: float = 0.0
    prefill_ms: float = 0.0
    first_token_ms: float = 0.0
    decode_ms: float = 0.0
    tools_ms: float = 0.0
    other_ms: float = 0.0
    total_ms: float = 0.0


class Spent(Struct, frozen=True):
    """What attempts at a request have taken that did not bring its outcome: it was parked, or put back by a stop."""

    usage: Usage = Usage()
    timing: Timing = Timing()


class Fault(Struct, frozen=True):
    """Why a request has no answer."""

    code: str
    message: str
    retryable: bool = False
    retry_after_s: float | None = None


class Reply(Struct, frozen=True, kw_only=True):
    """The one outcome of a request (CONTRACT section 3). Field order is the order on the wire."""

    id: str | None
    rid: str
    status: Status
    output: str | None = None
    tool_calls: tuple[ToolRecord, ...] = ()
    route: RouteTaken | None = None
    usage: Usage = Usage()
    timing: Timing = Timing()
    degraded: bool = False
    error: Fault | None = None


class Rate(Struct, frozen=True):
    """How much a client may ask: requests a minute in the long run, `burst` at once."""

    per_minute: float
    burst: int


class Caller(Struct, frozen=True):
    """Who asks. `client` owns ids and conversations; what it may use was decided by `access`. admitted: it may use the
    daemon at all, also where no agent is configured; kept_out: why not, where it is not for want of a role. role: by
    which that was decided; empty where no roles are configured.

    tools, models: by hand and by an agent for it, plain ones without an agent; None: all there are.
    manage: models and other clients' requests are its business, too.
    highest: the priority its requests may have. rate: how much it may ask; None: no bound. counted_as: who shares that.
    former: the name under which its requests were stored before; empty: this one.
    """

    client: str
    transport: str
    agents: frozenset[str]
    admitted: bool = True
    role: str = ""
    tools: frozenset[str] | None = None
    models: frozenset[str] | None = None
    manage: bool = True
    highest: Priority = Priority.INTERACTIVE
    rate: Rate | None = None
    counted_as: str = ""
    kept_out: str = ""
    former: str = ""


class AuditEntry(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One entry of the audit log: who did what, and what came of it. When is added by the log.

    what: a dotted word, the object first: `request.accepted`, `request.ended`, `request.refused`, `tool.called`,
        `upstream.asked`, `model.loaded`, ...
    who: the client; "edged" where the daemon did it by itself.
    outcome: "ok", or an error's code.
    about: more of it, by name; no secrets, and of private values only that they were there.
    """

    what: str
    who: str
    role: str = ""
    outcome: str = "ok"
    rid: str = ""
    about: dict[str, JSON] = field(default_factory=dict)


class Packet(Struct, frozen=True):
    """Identity of an MQTT packet in the current session, to know a redelivery of one that was committed."""

    mid: int
    digest: bytes
    duplicate: bool


class Address(Struct, frozen=True):
    """Where a reply is published and how it is written."""

    topic: str
    correlation: bytes | None = None
    format: Format = Format.JSON


class Ask(Struct, frozen=True, kw_only=True):
    """A request as a transport hands it to the pipeline.

    key: identity beside the id (MQTT's Correlation Data); address: where the reply is to be published, None when the
    caller waits for it; expiry_s: bound of the deadline that the transport knows (Message Expiry), in seconds.
    """

    request: Request
    caller: Caller
    key: str | None = None
    packet: Packet | None = None
    address: Address | None = None
    expiry_s: float | None = None


class Delivery(Struct, frozen=True, kw_only=True):
    """A reply on its way out. expires_boot: clock.boot() until which the reply is of use. settled_wall: when its
    outcome was stored, which tells it from the reply that is made when the request is tried again."""

    id: int
    rid: str
    transport: str = "mqtt"  # the one that carries replies to those who do not wait
    request_id: str | None
    status: Status
    address: Address
    body: bytes
    expires_boot: float
    settled_wall: float = 0.0


class Segment(Struct, frozen=True):
    """Part of a prompt. A `literal` one comes from a user, a tool or a model: control tokens in it stay text."""

    text: str
    literal: bool = False


class Sampling(Struct, frozen=True):
    """temperature 0 is greedy; seed None is a fresh one."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


class Job(Struct, frozen=True, kw_only=True):
    """One generation.

    prefix: what is the same for every request of an agent; turn: the rest of the prompt.
    max_tokens: most tokens to generate, forced ones included.
    stop: strings that end the text and are not part of it.
    grammar: an llguidance grammar (Lark or the JSON form) the whole output must match, or None.
    confidence_marker: while the output starts with this text (or is still a prefix of it), log-probabilities of
        sampled tokens are summed; None: never.
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
        asked for; None where none was sampled.
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
    the text's tokens; None where it told none.
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


class EmbedJob(Struct, frozen=True, kw_only=True):
    """Vectors for texts. dimensions: how many the caller wants; None: as many as the model makes."""

    model: str
    texts: tuple[str, ...]
    dimensions: int | None = None


class Embeddings(Struct, frozen=True, kw_only=True):
    """A vector for each text, in their order: float32, little-endian, of length 1. tokens: of all texts, those
    included that the model wants around each."""

    vectors: tuple[bytes, ...]
    tokens: int


# What runs a model (`engine` of [models]) is a key into the table of `engines.registry`, or this one: a server on this
# board that speaks the OpenAI API. It is no engine of edged's.
SERVER_ENGINE = "openai"


class KvType(StrEnum):
    """What keys and values are kept as; llama.cpp's names of the types."""

    F16 = "f16"
    Q8_0 = "q8_0"


class ModelSpec(Struct, frozen=True, kw_only=True):
    """A model as configured: name of the alias, its file, the most tokens one request may use (prompt and answer).

    engine: what runs it, a key into the table of `engines.registry`.
    variant: which of the alias's variants the file is; empty where it has only one.
    """

    name: str
    path: str
    context: int
    pin: bool = False
    threads: int | None = None
    engine: str = "llama.cpp"
    kv_type: KvType = KvType.F16
    variant: str = ""


class MemoryNeed(Struct, frozen=True, kw_only=True):
    """What a model takes in memory, in bytes, by what it is for.

    weights: mapped or copied, and the vocabulary. kv: keys and values, states. compute: buffers of the graph and its
    nodes. output: logits and embeddings that are kept. prefixes: states of sequences that wait in host memory, at most.
    libraries: what comes with the first load of a process and stays. beside: pages of the file that the kernel brings
    in and nobody uses; it takes them back first, so a model fits without them.
    """

    weights: int = 0
    kv: int = 0
    compute: int = 0
    output: int = 0
    prefixes: int = 0
    libraries: int = 0
    beside: int = 0

    @property
    def loaded(self) -> int:
        """After a load and a request. Sequences that wait in host memory come on top, where there are any."""
        return self.weights + self.kv + self.compute + self.output + self.libraries + self.beside

    @property
    def total(self) -> int:
        """What there has to be room for, ever."""
        return self.loaded + self.prefixes - self.beside

    @property
    def returned(self) -> int:
        """What an unload gives back, at most."""
        return self.total + self.beside - self.libraries


class KnownSize(Struct, frozen=True):
    """A model's size on this board. need: as predicted; measured: bytes that its last load took, None: it had none."""

    need: MemoryNeed
    measured: int | None = None


class ModelState(StrEnum):
    """Life of a model on this board."""

    MISSING = "missing"
    UNLOADED = "unloaded"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"


# Events of every request: heard inside the daemon, and not sent to clients, who have asked for changes and alarms.
INSIDE = frozenset({"request_ended"})


class Event(Struct, frozen=True):
    """Something worth telling: `name` is stable, `data` explains it."""

    name: str
    at: float
    data: dict[str, JSON] = field(default_factory=dict)


class Finding(StrEnum):
    """What an attempt on the board showed."""

    CONTEXT = "context"  #: the prompt has more tokens than the context
    ESCALATED = "escalated"  #: the model chose `escalate`
    UNSURE = "unsure"  #: the call it chose is below min_confidence
    FAILED = "failed"  #: a tool failed twice, or the output was cut off or empty
    UNAVAILABLE = "unavailable"  #: the model is missing, damaged, or does not fit the memory


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


class Alias(Struct, frozen=True):
    """What a name stands for: one file, or several, best first. min_context: as many tokens of context are enough where
    memory has no room for the configured ones; None: it is not shortened."""

    variants: tuple[ModelSpec, ...]
    min_context: int | None = None


class Expect(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What an answer has to be like: exactly one of the three.

    contains: a text that is in it, whatever the case of its letters. regex: is found in it. json_schema: the whole
    answer is JSON that fits.
    """

    contains: str | None = None
    regex: str | None = None
    json_schema: dict[str, JSON] | None = None

    def __post_init__(self) -> None:
        if sum(way is not None for way in (self.contains, self.regex, self.json_schema)) != 1:
            raise ValueError("expect has exactly one of contains, regex, json_schema")
        if self.regex is not None:
            try:
                re.compile(self.regex)
            except re.error as error:
                raise ValueError(f"regex: {error}") from None


class SelfTest(Struct, frozen=True, forbid_unknown_fields=True):
    """A question to which a model answers the same every time (greedy), and what is right.

    max_tokens: of the answer, which may be cut off there.
    """

    prompt: Annotated[str, Meta(min_length=1)]
    expect: Expect
    max_tokens: Annotated[int, Meta(ge=1, le=256)] = 32
