"""What OpenAI's APIs answer with over HTTP: documents, and errors with what its clients read of one."""

from __future__ import annotations

import re

import msgspec
from aiohttp import web

from edged.errors import BadRequest, ContextExceeded, ContextRefused, EdgedError, UnknownAgent
from edged.transport.http.core import errors
from edged.transport.http.openai import reply as shapes
from edged.types import JSON, Fault
from edged.wire import fault
from edged.wire.dialogue import BadParameter

PARAM = re.compile(r"([a-z_]+(?:\[\d+\])?(?:\.[a-z_]+)*): ")  # how errors of edged's own checks begin

# OpenAI's words for what its clients handle apart
OPENAI_CODES: dict[type[EdgedError], str] = {
    UnknownAgent: "model_not_found",
    ContextExceeded: "context_length_exceeded",
    ContextRefused: "context_length_exceeded",
}


def of_error(error: EdgedError, code: str | None = None) -> web.Response:
    """The response to a request that failed. code: OpenAI's own word, where the kind of error does not say it."""
    body = shapes.error(
        fault(error), status=errors.status_of(error), param=param_of(error), code=code or code_of(error)
    )
    return errors.response(error, msgspec.json.encode(body), headers=should_retry(error.retryable))


def of_failed(reply: dict[str, JSON]) -> web.Response:
    """The response to a request of an agent that was taken in and has no answer."""
    failure = msgspec.convert(reply["error"], Fault)
    headers = should_retry(failure.retryable)
    if (after := errors.retry_after(failure)) is not None:
        headers["Retry-After"] = after
    body = {**shapes.error(failure), "edged": shapes.ours(reply)}
    return document(body, errors.STATUS_OF[failure.code], headers)


def document(content: JSON, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A document."""
    return web.Response(
        body=msgspec.json.encode(content), status=status, headers=headers, content_type="application/json"
    )


def param_of(error: EdgedError) -> str | None:
    """The parameter an error is about; those of edged begin with it."""
    if isinstance(error, BadParameter):
        return error.param
    if isinstance(error, UnknownAgent):
        return "model"
    named = PARAM.match(error.message) if isinstance(error, BadRequest) else None
    return named[1] if named else None


def code_of(error: EdgedError) -> str | None:
    """OpenAI's own word for an error; None: it has none."""
    return OPENAI_CODES.get(type(error))


def should_retry(retryable: bool) -> dict[str, str]:
    """OpenAI's clients ask again by themselves, by status; what must not be done twice has to say so."""
    return {"x-should-retry": "true" if retryable else "false"}
