"""Errors in HTTP: a status, headers, and a body in the shape of the surface that was asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from aiohttp import web

from edged.errors import EdgedError
from edged.types import Fault

# CONTRACT section 6
STATUS_OF = {
    "bad_request": 400,
    "forbidden": 403,
    "unknown_agent": 404,
    "cancelled": 409,
    "too_large": 413,
    "over_budget": 429,
    "internal": 500,
    "tool_failed": 502,
    "busy": 503,
    "no_memory": 503,
    "model_unavailable": 503,
    "no_link": 503,
    "quarantined": 503,
    "expired": 504,
}
BUG = "an error inside edged; its log has the details"  # all that a client hears of one
RETRY_AFTER_S = 5.0  # of a 503 or 429 where edged does not know better: about two answers of a small board


class HttpError(EdgedError):
    """What HTTP has a status of its own for. headers: of its response."""

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


class NotBuilt(HttpError):
    """What others who speak this API can do, and edged does not."""

    status = 501


def status_of(error: EdgedError) -> int:
    """The status of an error."""
    return error.status if isinstance(error, HttpError) else STATUS_OF[error.code]


def retry_after(error: EdgedError | Fault) -> str | None:
    """The Retry-After header of a refusal or a failed reply, in whole seconds; None where the status has none."""
    if STATUS_OF[error.code] not in (429, 503):
        return None
    return str(max(1, round(error.retry_after_s or RETRY_AFTER_S)))


ERROR = web.ResponseKey("edged.error", EdgedError)  # that a response is made of, for the audit log


def response(
    error: EdgedError, body: bytes, *, content_type: str = "application/json", headers: Mapping[str, str] | None = None
) -> web.Response:
    """The response to a request that failed.

    Args:
        body: the error in the shape of a surface.
        headers: of that surface, beside those that every error has.
    """
    made = {"Content-Type": content_type, **(headers or {})}
    if isinstance(error, HttpError):
        made |= error.headers
    if (after := retry_after(error)) is not None:
        made["Retry-After"] = after
    answer = web.Response(body=body, status=status_of(error), headers=made)
    answer[ERROR] = error
    return answer
