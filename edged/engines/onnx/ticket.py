"""What passes between the event loop and the thread of onnxruntime."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from edged.engines.kind import ModelStats
from edged.types import Embeddings, EmbedJob


@dataclass(slots=True, eq=False)
class Ticket:
    """A job on its way through the thread. future: belongs to the event loop; the thread only names it there."""

    job: EmbedJob
    future: asyncio.Future[Embeddings]


class OnnxStats(ModelStats, frozen=True, kw_only=True):
    """See ModelStats. Texts and tokens count since the model was loaded.

    provider: what computes it; offered: what this onnxruntime has; passed_over: why others of them do not.
    context: most tokens of a text. dimensions: of a vector; None: the file does not tell.
    running: jobs it is at.
    """

    provider: str
    offered: tuple[str, ...]
    passed_over: dict[str, str]
    context: int
    dimensions: int | None
    running: int
    texts: int
    prompt_tokens: int
