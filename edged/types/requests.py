"""What is asked, and what is answered. Values only, no behaviour."""

from __future__ import annotations

from enum import StrEnum

from msgspec import UNSET, Struct, UnsetType

from edged.types.json import JSON


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
    highest the client may have; a stored one says which. language: of what edged says itself, as a tag ("de", "de-AT");
    None: as the agent is configured."""

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
    language: str | None = None


class ToolRecord(Struct, frozen=True):
    """A call that was made and what came of it, as the reply shows it."""

    name: str
    arguments: dict[str, JSON]
    result: JSON
    ok: bool


class RouteTaken(Struct, frozen=True):
    """Where the answer came from and why. confidence, score: how sure the board's model was, see CONTRACT section 3.
    upstream: its name in the configuration, only where the cloud was asked. variant: which of the model's variants
    answered, only where it has several."""

    where: str
    model: str
    reason: str
    confidence: float | None = None
    score: float | None = None
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


class AnswerKind(StrEnum):
    """What an answer is."""

    ANSWERED = "answered"
    ACTED = "acted"  #: something was written
    UNABLE = "unable"  #: no tool of the agent can tell or do it; nothing was done
    ASKED = "asked"  #: the model was not sure enough of a call; it was not made, and edged asks whether to
    NOTHING_FOUND = "nothing_found"  #: what was read holds nothing
    CUT = "cut"  #: max_tokens ended it


class Reply(Struct, frozen=True, kw_only=True):
    """The one outcome of a request (CONTRACT section 3). Field order is the order on the wire.

    finish: of the output: stop, or length where max_tokens cut it off; None where there is none.
    outcome: what the output is; None where there is none.
    """

    id: str | None
    rid: str
    status: Status
    output: str | None = None
    finish: str | None = None
    outcome: AnswerKind | None = None
    tool_calls: tuple[ToolRecord, ...] = ()
    route: RouteTaken | None = None
    usage: Usage = Usage()
    timing: Timing = Timing()
    degraded: bool = False
    error: Fault | None = None


class Finding(StrEnum):
    """What an attempt on the board showed."""

    CONTEXT = "context"  #: the prompt has more tokens than the context
    ESCALATED = "escalated"  #: the model chose `escalate`
    UNSURE = "unsure"  #: the call it chose is below min_confidence
    FAILED = "failed"  #: a tool failed twice, or the output was cut off or empty
    UNAVAILABLE = "unavailable"  #: the model is missing, damaged, or does not fit the memory
