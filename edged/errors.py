"""Every failure edged knows, as a tree that says whose fault it is. `code` is the word clients, logs and metrics see.

EdgedError
├── CallerError          the request is wrong; sending it again changes nothing
│   ├── BadRequest           bad_request
│   ├── TooLarge             too_large
│   ├── Forbidden            forbidden
│   └── UnknownAgent         unknown_agent
├── BoardError           the board cannot, now; later it may
│   ├── Busy                 busy
│   └── NoMemory             no_memory
├── ModelError
│   ├── ModelUnavailable     model_unavailable: not installed, damaged, refused by the runtime or by an upstream
│   │   └── ModelAway            the server on this board that runs it does not answer now
│   └── ContextExceeded      too_large: the prompt does not fit the model's context
│       └── ContextRefused       so says the server that runs it
├── ToolFailed               tool_failed
├── LinkError
│   ├── NoLink               no_link
│   └── OverBudget           over_budget: today's tokens of the upstreams are spent
├── Ended                the request was ended on purpose
│   ├── Expired              expired
│   ├── Cancelled            cancelled
│   └── Quarantined          quarantined: it killed the daemon too often
└── Internal                 internal: a bug of ours

ConfigError stands apart: it ends the process with EX_CONFIG before any request exists.
"""

from __future__ import annotations

from typing import ClassVar


class EdgedError(Exception):
    """Base of all failures that have a code of the public contract.

    Args:
        message: one sentence for a person: what was wrong and what is allowed.
        retry_after_s: when asking again makes sense, in seconds; None where edged cannot tell.

    `audited` is whether the audit log has the refusal.
    """

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        message = message.encode(errors="backslashreplace").decode()  # half a surrogate pair fits no reply and no log
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.audited = False


class CallerError(EdgedError):
    """The request itself is wrong."""

    code = "bad_request"


class BadRequest(CallerError):
    """A field is missing, unknown, of the wrong type or out of range."""


class TooLarge(CallerError):
    """More bytes, or deeper nesting, than edged takes."""

    code = "too_large"


class Forbidden(CallerError):
    """The caller's role does not allow it."""

    code = "forbidden"


class UnknownAgent(CallerError):
    """No agent of that name is configured."""

    code = "unknown_agent"


class BoardError(EdgedError):
    """The board has no room at the moment."""

    code = "busy"
    retryable = True


class Busy(BoardError):
    """The queue is full."""


class NoMemory(BoardError):
    """The model does not fit the memory budget beside what is in use."""

    code = "no_memory"


class ModelError(EdgedError):
    """A model cannot do it."""

    code = "model_unavailable"


class ModelUnavailable(ModelError):
    """The model is not installed, damaged, or its runtime refuses it; or an upstream refuses the request."""


class ModelAway(ModelUnavailable):
    """The server on this board that runs the model does not answer now; later it may."""

    retryable = True


class ContextExceeded(ModelError):
    """The prompt has more tokens than the model's context allows.

    Args:
        needed_tokens: tokens of the prompt.
        limit_tokens: tokens there is room for.
        what: has them.
    """

    code = "too_large"

    def __init__(self, needed_tokens: int, limit_tokens: int, what: str = "the prompt") -> None:
        super().__init__(f"{what} has {needed_tokens} tokens and the model's context leaves room for {limit_tokens}")
        self.needed_tokens = needed_tokens
        self.limit_tokens = limit_tokens


class ContextRefused(ContextExceeded):
    """The server that runs the model says that the prompt does not fit, in its own words."""

    def __init__(self, message: str) -> None:
        super().__init__(0, 0)
        self.args = (message,)
        self.message = message


class ToolFailed(EdgedError):
    """A tool did not do what was asked of it."""

    code = "tool_failed"


class LinkError(EdgedError):
    """Something outside the board cannot be reached."""

    code = "no_link"
    retryable = True


class NoLink(LinkError):
    """No link to the broker or upstream that the request needs."""


class OverBudget(LinkError):
    """The daily token budget of every upstream that could answer is spent."""

    code = "over_budget"


class Ended(EdgedError):
    """The request was ended on purpose."""


class Expired(Ended):
    """The deadline passed before there was an answer."""

    code = "expired"


class Cancelled(Ended):
    """The request was cancelled."""

    code = "cancelled"


class Quarantined(Ended):
    """The request killed the daemon too often and is not tried again."""

    code = "quarantined"


class Internal(EdgedError):
    """A bug in edged; the log has the traceback under the request's rid."""


class ConfigError(Exception):
    """The configuration is wrong. The message names the file, the key and what is allowed.

    Args:
        source: the file, or the part of the configuration, that is wrong.
        key: dotted key, empty where the file as a whole is wrong.
        problem: what is wrong and what is allowed.
        line: line in the file where TOML tells one.
        path: the parts of the key, of which each may have dots of its own.

    `others` are errors that were found with it.
    """

    def __init__(
        self, source: str, key: str, problem: str, *, line: int | None = None, path: tuple[str, ...] = ()
    ) -> None:
        where = f"{source}:{line}" if line is not None else source
        super().__init__(f"{where}: {key}: {problem}" if key else f"{where}: {problem}")
        self.source = source
        self.key = key
        self.problem = problem
        self.line = line
        self.path = path
        self.others: tuple[ConfigError, ...] = ()
