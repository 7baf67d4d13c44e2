"""What the HTTP handlers use of the daemon, and how its errors are told in HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from edged.completions.local import ModelAnswer, ModelAsk, OnCall, OnPiece
from edged.errors import EdgedError
from edged.store.lookup import Row
from edged.store.requests import Accepted
from edged.types import JSON, Ask, Caller, Embeddings, EmbedJob, Fault, Request

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
RETRY_AFTER_S = 5.0  # told with a 503 or 429 where edged cannot say better: about two answers of a small board

OnDelta = Callable[[int, str], None]


def retry_after(error: EdgedError | Fault) -> str | None:
    """The Retry-After header of a refusal or a failed reply, in whole seconds; None where the status has none."""
    if STATUS_OF[error.code] not in (429, 503):
        return None
    return str(max(1, round(error.retry_after_s or RETRY_AFTER_S)))


class Api(Protocol):
    """Implemented by `service.Service`, which says what each raises."""

    def request(self, body: object, *, agent: str | None = None) -> Request: ...

    async def submit(self, ask: Ask, on_delta: OnDelta | None = None) -> Accepted: ...

    async def answer(
        self, ask: Ask, on_delta: OnDelta | None = None, *, gone: asyncio.Event | None = None
    ) -> bytes: ...

    async def find(self, caller: Caller, name: str) -> Row: ...

    async def view(self, row: Row) -> JSON: ...

    async def cancel(self, caller: Caller, name: str) -> Row: ...

    async def complete(
        self, caller: Caller, ask: ModelAsk, on_piece: OnPiece | None = None, on_call: OnCall | None = None
    ) -> ModelAnswer: ...

    async def embed(self, caller: Caller, job: EmbedJob) -> Embeddings: ...
