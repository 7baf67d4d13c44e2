"""Model files: what they are, what they take, how they are tested. Values only, no behaviour."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

from edged.types.json import JSON

# What runs a model (`engine` of [models]) is a key into the table of `engines.registry`, or this one: a server on this
# board that speaks the OpenAI API. It is no engine of edged's.
SERVER_ENGINE = "openai"


class KvType(StrEnum):
    """What keys and values are kept as; llama.cpp's names of the types."""

    F16 = "f16"
    Q8_0 = "q8_0"


class Reuse(StrEnum):
    """Whether a line of a client's system text that changes is moved, so that what was computed stays good."""

    EXACT = "exact"
    NONE = "none"


class ModelSpec(Struct, frozen=True, kw_only=True):
    """A model as configured: name of the alias, its file, the most tokens one request may use (prompt and answer).

    engine: what runs it, a key into the table of `engines.registry`.
    variant: which of the alias's variants the file is; empty where it has only one.
    adapter: the file of a low-rank adapter that is applied to the weights; empty: none.
    """

    name: str
    path: str
    context: int
    pin: bool = False
    threads: int | None = None
    engine: str = "llama.cpp"
    kv_type: KvType = KvType.F16
    variant: str = ""
    adapter: str = ""


class MemoryNeed(Struct, frozen=True, kw_only=True):
    """What a model takes in memory, in bytes, by what it is for.

    weights: mapped or copied, and the vocabulary. kv: keys and values, states. compute: buffers of the graph and its
    nodes. output: logits and embeddings that are kept. prefixes: states of sequences that wait in host memory, at most.
    libraries: what comes with the first load of a process and stays. beside: pages of the file that the kernel brings
    in and nobody uses; it takes them back first, so a model fits without them.
    """

    weights: int = 0
    kv: int = 0
    compute: int = 0
    output: int = 0
    prefixes: int = 0
    libraries: int = 0
    beside: int = 0

    @property
    def loaded(self) -> int:
        """After a load and a request. Sequences that wait in host memory come on top, where there are any."""
        return self.weights + self.kv + self.compute + self.output + self.libraries + self.beside

    @property
    def total(self) -> int:
        """What there has to be room for, ever."""
        return self.loaded + self.prefixes - self.beside

    @property
    def returned(self) -> int:
        """What an unload gives back, at most."""
        return self.total + self.beside - self.libraries


class KnownSize(Struct, frozen=True):
    """A model's size on this board. need: as predicted; measured: bytes that its last load took, None: it had none."""

    need: MemoryNeed
    measured: int | None = None


class ModelState(StrEnum):
    """Life of a model on this board."""

    MISSING = "missing"
    UNLOADED = "unloaded"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"


class Alias(Struct, frozen=True):
    """What a name stands for: one file, or several, best first. min_context: as many tokens of context are enough where
    memory has no room for the configured ones; None: it is not shortened."""

    variants: tuple[ModelSpec, ...]
    min_context: int | None = None


class Expect(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What an answer has to be like: exactly one of the three.

    contains: a text that is in it, whatever the case of its letters. regex: is found in it. json_schema: the whole
    answer is JSON that fits.
    """

    contains: str | None = None
    regex: str | None = None
    json_schema: dict[str, JSON] | None = None

    def __post_init__(self) -> None:
        if sum(way is not None for way in (self.contains, self.regex, self.json_schema)) != 1:
            raise ValueError("expect has exactly one of contains, regex, json_schema")
        if self.regex is not None:
            try:
                re.compile(self.regex)
            except re.error as error:
                raise ValueError(f"regex: {error}") from None


class SelfTest(Struct, frozen=True, forbid_unknown_fields=True):
    """A question to which a model answers the same every time (greedy), and what is right.

    max_tokens: of the answer, which may be cut off there.
    """

    prompt: Annotated[str, Meta(min_length=1)]
    expect: Expect
    max_tokens: Annotated[int, Meta(ge=1, le=256)] = 32
