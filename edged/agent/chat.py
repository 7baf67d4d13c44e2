"""A plain model as the request says: its messages, its tools, its shape of the answer. Nothing is stored, no tool of
ours is called: what the model wants called goes back to whoever asked."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from msgspec import Struct

from edged.agent.prompt import TemplateOf
from edged.config import Model
from edged.errors import Internal
from edged.interfaces import Engine
from edged.types import JSON, Finish, Message, Sampling, ToolCall, ToolSpec


class ToolChoice(StrEnum):
    """Whether the model calls: as it likes, never, always (or the one tool that `ModelAsk.tools` then holds)."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


class TokenLogprob(Struct, frozen=True):
    """A sampled or forced token: its text, its bytes, its log-probability before any mask, and the likeliest tokens in
    its place as (text, bytes, logprob)."""

    text: str
    data: bytes
    logprob: float
    top: tuple[tuple[str, bytes, float], ...] = ()


class ModelAsk(Struct, frozen=True, kw_only=True):
    """A completion of a plain model. logprobs: None, or how many likeliest tokens to tell for each token (0 to 20)."""

    model: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    choice: ToolChoice = ToolChoice.AUTO
    parallel: bool = True
    response_schema: dict[str, JSON] | None = None
    max_tokens: int | None = None
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    logprobs: int | None = None


class ModelAnswer(Struct, frozen=True, kw_only=True):
    """What the model wrote: text or calls."""

    text: str
    calls: tuple[ToolCall, ...] = ()
    finish: Finish
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()


OnPiece = Callable[[str, tuple[TokenLogprob, ...]], None]


class Chats:
    """Completions of plain models, a bounded number at once."""

    def __init__(self, engine: Engine, models: dict[str, Model], template_of: TemplateOf, *, max_waiting: int) -> None:
        self._engine, self._models, self._template_of, self._max_waiting = engine, models, template_of, max_waiting

    async def complete(self, ask: ModelAsk, on_piece: OnPiece | None = None) -> ModelAnswer:
        """One completion; `on_piece` gets text, and the log-probabilities of its tokens where asked, as they come."""
        raise Internal("completions of plain models are not built")
