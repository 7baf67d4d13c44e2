"""The second look: requests that are like the one in question, with the calls that they mean.

A model that was taught the compact dialect gets no examples: they would take most of its prompt, and one decision in
five needs them. That one gets the few that are nearest to it, behind the fixed prefix, and decides once more.
"""

from __future__ import annotations

import logging
import math
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from msgspec import Struct

from edged.agent.loop import Run
from edged.errors import EdgedError
from edged.interfaces import Embedder
from edged.types import EmbedJob, Message, ToolCall

log = logging.getLogger("edged.agent")

COMPARED = 64  # by their meaning: a hundredth of a second each where their vectors are not known; letters choose these
VECTORS = 512  # that are kept: 1.5 kB each
MOST = 4  # that are shown: 30 to 40 tokens each, a fifth of a second on a small board; the fifth is seldom like it
GRAM = 3  # characters of what is compared where there is no model for it


class Shown(Struct, frozen=True):
    """A request, and the calls that are right for it."""

    text: str
    calls: tuple[ToolCall, ...]

    @property
    def messages(self) -> tuple[Message, ...]:
        """As a dialogue tells it."""
        return Message("user", self.text), Message("assistant", tool_calls=self.calls)


Source = Callable[[Run], Awaitable[Sequence[Shown]]]
Embed = Callable[[tuple[str, ...]], Awaitable[Sequence[bytes]]]


async def configured(run: Run) -> list[Shown]:
    """The owner's own: a Source. One that is the request itself is left out: what is found out with them, as by
    `edged calibrate` and benchmarks, would be told its own answer."""
    asked = run.request.messages[-1].content
    tools = [(name, tool) for name in run.agent.tools if (tool := run.toolbox.get(name)) is not None]
    every = [(each, ToolCall(name, each.arguments)) for name, tool in tools for each in tool.examples]
    return [Shown(each.input, (call,)) for each, call in every if each.input != asked]


class ByMeaning:
    """Vectors of an embedding model."""

    def __init__(self, engine: Embedder, model: str) -> None:
        self._engine, self._model = engine, model

    async def vectors(self, texts: tuple[str, ...]) -> Sequence[bytes]:
        """Of texts, in their order. Raises as Embedder."""
        return (await self._engine.embed(EmbedJob(model=self._model, texts=texts))).vectors


class Examples:
    """Finds the nearest of what its sources have for a run.

    Args:
        embed: gives texts' vectors, of length 1; None: letters are compared.
    """

    def __init__(self, sources: Sequence[Source] = (configured,), embed: Embed | None = None) -> None:
        self._sources, self._embed = tuple(sources), embed
        self._vectors: dict[str, array[float]] = {}  # by text, those that were compared last at the end

    async def nearest(self, run: Run) -> list[Shown]:
        """At most MOST, the nearest last: what stands next to the question counts most. Of two with one text the later
        source's."""
        text = run.request.messages[-1].content
        candidates = {shown.text: shown for source in self._sources for shown in await source(run)}
        if not candidates:
            return []
        texts = tuple(candidates)
        if self._embed is not None and len(texts) > COMPARED:
            alike = dict(zip(texts, by_letters(text, texts), strict=True))
            texts = tuple(sorted(texts, key=lambda each: alike[each])[-COMPARED:])
        nearness = dict(zip(texts, await self._near(text, texts), strict=True))
        return [candidates[each] for each in sorted(texts, key=lambda each: nearness[each])[-MOST:]]

    async def _near(self, text: str, others: tuple[str, ...]) -> list[float]:
        if self._embed is not None:
            try:
                return await self._by_meaning(self._embed, text, others)
            except EdgedError as error:  # no memory for that model now, or a text that is too long for it
                log.info("examples are compared by their letters: %s", error.message)
        return by_letters(text, others)

    async def _by_meaning(self, embed: Embed, text: str, others: tuple[str, ...]) -> list[float]:
        new = tuple(each for each in others if each not in self._vectors)
        asked, *made = [array("f", vector) for vector in await embed((text, *new))]
        known = self._vectors | dict(zip(new, made, strict=True))
        used = {each: known.pop(each) for each in others}
        self._vectors = dict([*known.items(), *used.items()][-VECTORS:])
        return [sum(map(float.__mul__, asked, used[each])) for each in others]


def by_letters(text: str, others: Sequence[str]) -> list[float]:
    """How near texts are to one another, 0 to 1: the cosine of their groups of letters."""
    asked = _grams(text)
    return [_cosine(asked, _grams(each)) for each in others]


def _grams(text: str) -> Counter[str]:
    plain = f" {' '.join(text.casefold().split())} "
    return Counter(plain[i : i + GRAM] for i in range(max(1, len(plain) - GRAM + 1)))


def _cosine(one: Counter[str], other: Counter[str]) -> float:
    common = sum(count * other[gram] for gram, count in one.items() if gram in other)
    return common / math.sqrt(sum(n * n for n in one.values()) * sum(n * n for n in other.values()))
