"""Errors as HTTP tells them: with the body of CONTRACT section 3, or as the OpenAI API does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import msgspec
from aiohttp import web

from edged import wire
from edged.errors import EdgedError
from edged.transport.http.core.api import STATUS_OF, retry_after
from edged.transport.http.openai import reply
from edged.types import Format


class HttpError(EdgedError):
    """What HTTP has a status of its own for. headers: told with it."""

    code = "bad_request"
    status: ClassVar[int] = 400

    def __init__(self, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.headers = dict(headers or {})


class Malformed(HttpError):
    """The bytes are not HTTP, or not as their own headers say."""


class Unauthorized(HttpError):
    """No key, or none that is known."""

    code = "forbidden"
    status = 401

    def __init__(self, message: str) -> None:
        super().__init__(message, {"WWW-Authenticate": 'Bearer realm="edged"'})


class NotFound(HttpError):
    """There is nothing of that name."""

    status = 404


class MethodNotAllowed(HttpError):
    """The path exists and takes other methods."""

    status = 405


class TooSlow(HttpError):
    """The body did not come in time."""

    status = 408


class UnsupportedMedia(HttpError):
    """A content type that is not taken."""

    status = 415


def status_of(error: EdgedError) -> int:
    """The status of an error."""
    return error.status if isinstance(error, HttpError) else STATUS_OF[error.code]


ERROR = web.ResponseKey("edged.error", EdgedError)  # what a response tells, for who notes refusals down


def refused(error: EdgedError, *, id: str | None = None, fmt: Format = Format.JSON) -> web.Response:
    """The response to a request that was not taken in: a reply (CONTRACT section 3) with status `refused`."""
    body = wire.encode_reply(wire.refusal(error, id=id), fmt)
    response = web.Response(body=body, status=status_of(error), headers=_headers(error, wire.content_type(fmt)))
    response[ERROR] = error
    return response


def openai_error(error: EdgedError, *, param: str | None = None, code: str | None = None) -> web.Response:
    """The response to a failed request of the OpenAI API. param: the parameter that is wrong; code: OpenAI's word."""
    status = status_of(error)
    body = reply.error(wire.fault(error), status=status, param=param, code=code)
    headers = {**_headers(error, "application/json"), **should_retry(error.retryable)}
    response = web.Response(body=msgspec.json.encode(body), status=status, headers=headers)
    response[ERROR] = error
    return response


def should_retry(retryable: bool) -> dict[str, str]:
    """OpenAI's clients ask again by themselves, by status; what must not be done twice has to say so."""
    return {"x-should-retry": "true" if retryable else "false"}


def _headers(error: EdgedError, content_type: str) -> dict[str, str]:
    headers = {"Content-Type": content_type}
    if isinstance(error, HttpError):
        headers |= error.headers
    if (after := retry_after(error)) is not None:
        headers["Retry-After"] = after
    return headers
