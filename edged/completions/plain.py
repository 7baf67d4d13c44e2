"""Completions of plain models, whatever runs them: as the request says, a bounded number at once."""

from __future__ import annotations

from edged.agent.dialects import Dialects
from edged.completions import request, server, text
from edged.completions.local import Local
from edged.completions.request import ModelAnswer, ModelAsk, OnCall, OnThought
from edged.completions.slots import Slots
from edged.completions.text import TextAsk
from edged.config import Model
from edged.errors import BadRequest, NoMemory
from edged.interfaces import Engine, OnPiece
from edged.upstreams import LocalServers


class Completions:
    """The models and their slots.

    Args:
        dialects: how the models are spoken to.
        max_waiting: how many may wait for a slot; one more is refused.
        served: the models among them that servers on this board run.
    """

    def __init__(
        self,
        engine: Engine,
        models: dict[str, Model],
        dialects: Dialects,
        *,
        max_waiting: int,
        served: LocalServers | None = None,
    ) -> None:
        self._models = models
        self._served = served or LocalServers({})
        self._engine, self._dialects = engine, dialects
        self._local = Local(engine, models, dialects)
        self._slots = Slots("completions", max_waiting=max_waiting)

    def refuse(self, error: NoMemory | None) -> None:
        """Begin no completion here, with this error; None: begin them again."""
        self._slots.refusing = error

    async def complete(
        self,
        ask: ModelAsk,
        on_piece: OnPiece | None = None,
        on_call: OnCall | None = None,
        on_thought: OnThought | None = None,
    ) -> ModelAnswer:
        """One completion. Cancelling the task ends the generation within one step of the model.

        Args:
            on_piece: gets text, and the log-probabilities of its tokens where asked for, as they come.
            on_call: gets calls as they come, after all text.
            on_thought: gets what the model thinks before it answers, as it comes.

        Raises:
            BadRequest: what is asked does not go together, or a schema cannot be kept (Inexpressible).
            Busy: too many wait already.
            ContextExceeded: the messages do not fit.
            ModelUnavailable, NoMemory: the model cannot be loaded, or its template refuses these messages; or the board
                is short of memory.
        """
        request.check(ask)
        self._check(ask.model)
        remote = ask.model in self._served
        async with self._slots.one(remote=remote):
            answer = await self._once(ask, on_piece, on_call, on_thought, remote=remote)
            if answer is None:
                answer = await self._once(request.without_tools(ask), on_piece, None, on_thought, remote=remote)
            assert answer is not None, "without tools in sight no call is made again"
            return answer

    async def continue_text(self, ask: TextAsk, on_piece: OnPiece | None = None) -> ModelAnswer:
        """What follows a bare text, or fills its gap. Cancelled as `complete`.

        Args:
            on_piece: as `complete`.

        Raises:
            BadRequest: the model runs in a server, which is only asked for chats; or it fills no gaps.
            Busy, ContextExceeded, ModelUnavailable, NoMemory: as `complete`.
        """
        self._check(ask.model)
        if ask.model in self._served:
            runs = f"runs in the server at {self._served.where(ask.model)}, which is asked for chats only"
            raise BadRequest(f"model: {ask.model!r} {runs}: see POST /v1/chat/completions")
        async with self._slots.one():
            return await text.complete(self._engine, self._dialects, ask, on_piece)

    def _check(self, model: str) -> None:
        if model not in self._models:
            raise BadRequest(f"no model {model!r}; configured are {', '.join(self._models) or 'none'}")

    async def _once(
        self,
        ask: ModelAsk,
        on_piece: OnPiece | None,
        on_call: OnCall | None,
        on_thought: OnThought | None,
        *,
        remote: bool,
    ) -> ModelAnswer | None:
        """The answer; None: it is to be asked for without the tools in sight. Nothing of it was given out then."""
        if remote:
            return await server.complete(self._served, ask, on_piece, on_call, on_thought)
        return await self._local.complete(ask, on_piece, on_call, on_thought)
