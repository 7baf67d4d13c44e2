"""What can go wrong with a server, and what each thing means for its link or for the request. Pure."""

from __future__ import annotations

import email.utils
import re
from codecs import BOM_UTF8
from typing import Any

import msgspec

from edged.upstreams.link import Seen, Sign

MAX_SAID = 300  # characters of a server's own words that an error quotes; enough for a sentence, too few for a page
MAX_CODE = 40  # and of its code, which is one word

# The server has no use for what we are or ask at this address: key (401, 403), payment (402), address or model (404,
# 405, 410), proxy (407).
REFUSALS = {401, 402, 403, 404, 405, 407, 410}
PAUSES = {503, 529}  # with Retry-After: it is only overloaded. 529 is what some clouds say for that
CHANCES = {408, 409, 425}  # 4xx that another try may find otherwise
ERROR_STATUS = re.compile(r"[45][0-9]{2}")  # as the code of an error object
MODEL_CODES = {"model_not_found", "model_not_available"}  # some servers say with 400 that they lack the model
# How servers say that a prompt is too long: OpenAI and llama-cpp-python, llama-server, then vLLM and others in words
LENGTH_CODES = {"context_length_exceeded", "exceed_context_size_error"}
# ("max_tokens must be at least 1, got -N": vLLM of what is left for the answer; we ask for no such number).
LENGTH_WORDS = (
    "maximum context length",
    "available context size",
    "max_model_len",
    "context window",
    "must be at least 1, got -",
)
LOADING = "loading model"  # llama-server's 503 while it reads its file
NOT_LOADED = "No OpenAIService provider found for modelName"  # Foundry Local's of a model that nobody has loaded
REQUEST_TYPES = {"invalid_request_error", "BadRequestError"}  # error objects without a number, in streams


class ExchangeFailed(Exception):
    """An exchange without an answer; with Sign.GOOD the server is well and refuses this one request.

    Args:
        reason: one sentence for a person, without the key.
        pause_s: what the server asked for, with Sign.BUSY, if it said.
    """

    def __init__(self, sign: Sign, reason: str, pause_s: float | None = None) -> None:
        super().__init__(reason)
        self.sign = sign
        self.reason = reason
        self.pause_s = pause_s

    def seen(self, *, probe: bool = False) -> Seen:
        """As the link takes it."""
        return Seen(sign=self.sign, reason=self.reason, pause_s=self.pause_s, probe=probe)


class NothingStreamed(ExchangeFailed):
    """A stream that was right in form and had nothing in it."""

    def __init__(self) -> None:
        super().__init__(Sign.WEAK, "the stream ended without an answer")


class TooLong(ExchangeFailed):
    """The server is well; the prompt does not fit the model's context."""

    def __init__(self, reason: str) -> None:
        super().__init__(Sign.GOOD, reason)


class Complaint(Exception):
    """The server says itself that something is wrong: by its status, or with an error object.

    Args:
        status: as HTTP has it; None where an error object has no such number.
        words: what it says, whole and with the key taken out.
        code: of the error object: its `code`, else its `type`.
        pause_s: what Retry-After asks for.
    """

    def __init__(self, status: int | None, words: str, code: str = "", pause_s: float | None = None) -> None:
        super().__init__(words)
        self.status = status
        self.words = words
        self.code = code
        self.pause_s = pause_s

    @property
    def loading(self) -> bool:
        """Whether the server is well and about to have its model."""
        return self.status == 503 and self.words.lower().startswith(LOADING)

    def meaning(self) -> ExchangeFailed:
        """What it is to us.

        (1) it wants a pause; (2) it does not take our key, or does not have the model; (3) it does not take this
        request; (4) anything else may be chance.
        """
        reason = self._sentence()
        status = self.status
        if status == 429 or (status in PAUSES and self.pause_s is not None):  # (1)
            return ExchangeFailed(Sign.BUSY, reason, self.pause_s)
        if status in REFUSALS or (status == 400 and self.code in MODEL_CODES) or NOT_LOADED in self.words:  # (2)
            return ExchangeFailed(Sign.REFUSED, reason)
        if status in (None, 400, 413) and self._is_about_length():  # (3)
            return TooLong(reason)
        if status is None and self.code in REQUEST_TYPES:  # (3)
            return ExchangeFailed(Sign.GOOD, reason)
        if status is not None and 400 <= status < 500 and status not in CHANCES:  # (3)
            return ExchangeFailed(Sign.GOOD, reason)
        return ExchangeFailed(Sign.WEAK, reason)  # (4)

    def _is_about_length(self) -> bool:
        words = self.words.lower()
        return self.code in LENGTH_CODES or any(text in words for text in LENGTH_WORDS)

    def _sentence(self) -> str:
        code = printable(self.code)[:MAX_CODE] or "without a code"
        what = f"HTTP {self.status}" if self.status is not None else f"an error ({code})"
        words = printable(self.words)
        words = words if len(words) <= MAX_SAID else f"{words[:MAX_SAID]}..."
        return f"{what}: {words}" if words else what


def complaint(status: int | None, body: bytes, *, secret: str | None, pause_s: float | None = None) -> Complaint:
    """From an answer's status and body, which may be anything."""
    try:
        value = msgspec.json.decode(body.removeprefix(BOM_UTF8))
    except (ValueError, RecursionError):
        return Complaint(status, "an HTML page" if is_html(body) else "", pause_s=pause_s)
    error = value.get("error", value) if isinstance(value, dict) else value
    return of_object(error, status=status, secret=secret, pause_s=pause_s)


def of_object(error: Any, *, status: int | None, secret: str | None, pause_s: float | None = None) -> Complaint:
    """From an error object; its own number counts where HTTP did not give one."""
    words: Any = error
    code = ""
    if isinstance(error, dict):
        words = error.get("message") or error.get("detail") or ""
        code = str(error.get("code") or error.get("type") or "")
        if status is None and ERROR_STATUS.fullmatch(code):
            status = int(code)
            code = str(error.get("type") or "")
    text = words if isinstance(words, str) else msgspec.json.encode(words).decode()
    if secret:  # taken out before anything is shortened, which might leave half of the key
        text, code = text.replace(secret, "[key]"), code.replace(secret, "[key]")
    return Complaint(status, text, code, pause_s)


def printable(text: str) -> str:
    """What another server said, on one line and without what would act on a terminal or could not be encoded."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def is_html(body: bytes) -> bool:
    """Whether it is a page for people."""
    return body.lstrip()[:1] == b"<"


def retry_after_s(value: str | None, date: str | None, wall: float) -> float | None:
    """Seconds a Retry-After asks for, in either form; None: it asks for nothing we understand. A date counts from the
    server's own Date where there is one: a board may not know the time."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])  # 30 years are enough
    until = _seconds(text)
    if until is None:
        return None
    now = _seconds(date) if date else None
    return max(0.0, until - (wall if now is None else now))


def _seconds(date: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None
