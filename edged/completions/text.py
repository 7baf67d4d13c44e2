"""A bare text that a plain model goes on with, or whose gap it fills. There is no dialogue, no template and no tool."""

from __future__ import annotations

from msgspec import Struct

from edged.agent.dialects import Dialects
from edged.completions.request import ModelAnswer, model_answer
from edged.engines.kind import TextFormat
from edged.errors import BadRequest
from edged.interfaces import Engine, OnPiece
from edged.types import Job, Priority, Sampling, Segment
from edged.wire import new_rid


class TextAsk(Struct, frozen=True, kw_only=True):
    """A text to go on with.

    suffix: what follows the gap that is to be filled; empty: there is none.
    logprobs: None, or how many likeliest tokens come with each token of the text (0 to 20).
    """

    model: str
    prompt: str
    suffix: str = ""
    max_tokens: int
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    priority: Priority = Priority.INTERACTIVE


async def complete(engine: Engine, dialects: Dialects, ask: TextAsk, on_piece: OnPiece | None) -> ModelAnswer:
    """What follows. Raises as Completions.complete; BadRequest for a suffix where the model fills no gaps."""
    prompt = _prompt(ask, await dialects.text_format(ask.model))
    job = Job(
        rid=new_rid(),
        model=ask.model,
        prefix=(),
        turn=prompt,
        max_tokens=ask.max_tokens,
        sampling=ask.sampling,
        stop=ask.stop,
        logprobs=ask.logprobs,
        priority=ask.priority,
    )
    done = await engine.generate(job, on_piece=on_piece)
    return model_answer(done, done.text, (), done.finish, done.logprobs, done.variant)


def _prompt(ask: TextAsk, form: TextFormat) -> tuple[Segment, ...]:
    """Around a gap the text is somebody's file, in which marks are text. Else all of it is the client's own, and who
    writes marks means them."""
    if not ask.suffix:
        return (Segment(form.begin + ask.prompt),)
    if not form.gap:
        raise BadRequest(f"suffix: model {ask.model!r} has no marks for a gap: leave it out, or name a model of code")
    before, after, fill = form.gap
    around = (Segment(form.begin + before), Segment(ask.prompt, literal=True))
    return (*around, Segment(after), Segment(ask.suffix, literal=True), Segment(fill))
