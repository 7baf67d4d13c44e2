"""What edged says on Wyoming: who it is, and how a sentence ended. Pure."""

from __future__ import annotations

from msgspec import Struct

from edged import __version__, wire
from edged.errors import BadRequest, EdgedError, Forbidden
from edged.types import JSON, AnswerKind, Status
from edged.wire import MAX_NAME_BYTES

# Lists of an `info` that belong to other kinds of services. A client may read each of them without asking whether it
# is there.
OTHERS = ("asr", "tts", "intent", "wake", "mic", "snd")
BY = {"name": "edged", "url": ""}  # Wyoming wants to know who made a program and a model; there is no page yet


class Sentence(Struct, frozen=True):
    """A `transcript`. conversation: the client's name for it; None: it stands alone. language: as a tag; None: not
    named, or not by a tag."""

    text: str
    conversation: str | None
    language: str | None


def program(node: str, agent: str) -> str:
    """The name of the service. Home Assistant knows it again by that."""
    return f"edged-{node}-{agent}"


def info(node: str, agent: str, *, controls: bool) -> dict[str, JSON]:
    """The data of `info`. controls: whether the agent has a tool that does something."""
    who = {"attribution": BY, "installed": True, "version": __version__}
    model = {"name": agent, "description": f"agent {agent} on {node}", "languages": [], **who}  # none: all of them
    handles = {
        "name": program(node, agent),
        "description": f"edged on {node}",
        "models": [model],
        "supports_handled_streaming": True,
        "supports_home_control": controls,
        **who,
    }
    return {"handle": [handles], **{kind: [] for kind in OTHERS}}


def sentence(data: dict[str, JSON]) -> Sentence:
    """From the data of a `transcript`. Raises BadRequest."""
    text, language, context = data.get("text"), data.get("language"), data.get("context")
    if not isinstance(text, str) or not text.strip():
        raise BadRequest("text: is required in a transcript, the sentence that was said")
    named = context.get("conversation_id") if isinstance(context, dict) else None
    if named is not None and not (isinstance(named, str) and 0 < len(named.encode(errors="replace")) <= MAX_NAME_BYTES):
        raise BadRequest(f"conversation_id: is a text of 1 to {MAX_NAME_BYTES} bytes")
    is_tag = isinstance(language, str) and wire.LANGUAGE.fullmatch(language)
    return Sentence(text, named, language if is_tag else None)


def outcome(reply: dict[str, JSON], conversation: str | None) -> tuple[str, dict[str, JSON]]:
    """The event that ends a sentence, of its reply: (type, data)."""
    if reply["status"] == Status.DONE:
        unable = reply.get("outcome") == AnswerKind.UNABLE
        return "not-handled" if unable else "handled", spoken(reply["output"] or "", conversation)
    fault = reply["error"] or {"code": reply["status"], "message": str(reply["status"])}
    return _ended(fault["code"], fault["message"], conversation)


def refusal(error: EdgedError, conversation: str | None = None) -> tuple[str, dict[str, JSON]]:
    """The event that ends a sentence which was not taken in: (type, data)."""
    return _ended(error.code, error.message, conversation)


def spoken(text: str, conversation: str | None) -> dict[str, JSON]:
    """Data of `handled` and `not-handled`."""
    return {"text": text, **({"context": {"conversation_id": conversation}} if conversation else {})}


def _ended(code: str, message: str, conversation: str | None) -> tuple[str, dict[str, JSON]]:
    """What is not allowed was understood, and is not done; all else is an error."""
    if code == Forbidden.code:
        return "not-handled", spoken(message, conversation)
    return "error", {"text": message, "code": code}
