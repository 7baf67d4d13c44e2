"""The seams of edged, on one screen. A Protocol is here only where a second implementation exists (a shipped fake
counts) or where a lower part calls upward through what `app` hands it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from msgspec import Struct

from edged.types import (
    Completion,
    Delivery,
    Embeddings,
    EmbedJob,
    Event,
    Job,
    KnownSize,
    MemoryNeed,
    ModelSpec,
    TokenLogprob,
)

OnPiece = Callable[[str, tuple[TokenLogprob, ...]], None]
Heard = Callable[[Event], Awaitable[None] | None]


class Engine(Protocol):
    """Runs models. Implemented by `engines.registry.Engines` and by every engine in its table."""

    async def generate(
        self, job: Job, on_text: Callable[[str], None] | None = None, *, on_piece: OnPiece | None = None
    ) -> Completion:
        """Generate. Cancelling the task ends the sequence within one model step.

        Args:
            on_text: gets whole characters as they come, on the event loop.
            on_piece: the same with the log-probabilities of the tokens that end in them; instead of `on_text`.

        Raises:
            BadRequest: the grammar cannot be used; the message has the reason.
            ContextExceeded: the prompt does not fit. Nothing was computed.
            ModelUnavailable, NoMemory: the model cannot be loaded.
        """
        ...

    async def warm(self, job: Job) -> None:
        """Bring the model in, compute or restore the job's fixed prefix and compile its grammar; generate nothing.
        A job with this prefix and grammar is then as quick as the second of its kind. Requests go first. Cancelling
        the task ends it within one model step.

        Raises:
            As `generate`.
        """
        ...


class Embedder(Protocol):
    """Turns texts into vectors. Implemented by `engines.registry.Engines`, `OnnxEngine` and `ScriptedEngine`."""

    async def embed(self, job: EmbedJob) -> Embeddings:
        """A vector for each text. Cancelling the task ends it after the batch that is computed.

        Raises:
            BadRequest: the model makes no vectors, or none of so many dimensions.
            ContextExceeded: a text is longer than the model reads. Nothing was computed.
            ModelUnavailable, NoMemory: the model cannot be loaded.
        """
        ...


class Loader(Protocol):
    """What the governor uses of an engine: bring a model in, take it out."""

    async def load(self, spec: ModelSpec) -> None:
        """Load a model; raises ModelUnavailable with the runtime's reason."""
        ...

    async def unload(self, name: str) -> None:
        """Free a model and everything that belongs to it; it must not be in use."""
        ...


class Sizer(Protocol):
    """Tells the governor what models take."""

    async def predict(self, spec: ModelSpec, spare: Callable[[], int]) -> MemoryNeed:
        """Before a load.

        Args:
            spare: gives the bytes that may be taken for a moment.

        Raises:
            ModelUnavailable: there is no such file, or it is no model.
        """
        ...

    async def observe(self, spec: ModelSpec, measured_bytes: int) -> None:
        """What it really took, measured after a load: the next prediction knows."""
        ...


class Estimate(Struct, frozen=True):
    """How the sizes of one kind of models are predicted; every function may block, and raises ModelUnavailable where
    there is no model.

    Attributes:
        identity: all that a prediction depends on, as a text.
        least: bytes that it takes in any case, known in no time.
        ask: the runtime itself; None where it does not say.
        ask_bytes: what asking takes meanwhile, in bytes.
        calculate: from the file's numbers.
        libraries: bytes that the next load brings in beside its model.
    """

    identity: Callable[[ModelSpec], str]
    least: Callable[[ModelSpec], int]
    ask: Callable[[ModelSpec], MemoryNeed | None]
    ask_bytes: Callable[[ModelSpec], int]
    calculate: Callable[[ModelSpec], MemoryNeed]
    libraries: Callable[[], int]


class SizeBook(Protocol):
    """Keeps what models take on this board, by everything that decides it."""

    async def known(self, model: str) -> KnownSize | None:
        """What is known of a model; None: nothing."""
        ...

    async def keep(self, model: str, size: KnownSize) -> None:
        """Know it from now on."""
        ...


class Residency(Protocol):
    """What an engine uses of the governor."""

    def hold(self, model: str) -> AbstractAsyncContextManager[float]:
        """Keep a model resident while the block runs; loads it first if need be. Gives the milliseconds that took.

        Raises:
            NoMemory: it does not fit beside what is busy.
            ModelUnavailable: unknown, not installed, or refused by the runtime.
        """
        ...


class Relief(Protocol):
    """What the governor can give up while memory is short or the board is strained. reason: one phrase, for people."""

    async def relieve(self, reason: str) -> list[str]:
        """Take out every model that nobody uses and that is not pinned, now; returns their names."""
        ...

    async def shrink(self, reason: str) -> list[str]:
        """Go on with smaller variants of models where there are any; returns the names of these models."""
        ...

    def grow(self, reason: str) -> None:
        """The reason to `shrink` is gone."""
        ...

    def pause_loads(self, reason: str) -> None:
        """Bring no model in until `resume_loads`: who wants one that is not there waits."""
        ...

    def resume_loads(self) -> None:
        """Loads go on."""
        ...


class Yielding(Protocol):
    """What an engine gives up while memory is short."""

    async def trim(self) -> int:
        """Drop what can be computed again, hand freed memory back to the kernel, and keep nothing of the kind until
        `relax`. Returns the bytes of what was dropped."""
        ...

    def relax(self) -> None:
        """There is memory again."""
        ...

    def pause_batch(self, paused: bool) -> None:
        """Compute nothing for batch jobs while paused; what they have stays."""
        ...


class Residents(Protocol):
    """What an update uses of the governor: a model beside the configured ones, and another file for one of them."""

    def admit(self, spec: ModelSpec) -> None:
        """From now on there is a model of this name, under the same budget as all others; loads nothing."""
        ...

    async def dismiss(self, name: str) -> None:
        """Take an admitted model out, once nobody uses it, and forget it."""
        ...

    async def load(self, model: str) -> None:
        """Bring a model in now. Raises as `Residency.hold`."""
        ...

    async def switch(self, name: str, spec: ModelSpec) -> None:
        """From the next request on the name means this spec. Returns when it does: requests that run end with the file
        they began with, none fails."""
        ...


class Publisher(Protocol):
    """The broker, as an MQTT tool sees it."""

    async def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False) -> None:
        """Publish and wait for the broker's confirmation; waits for the link while there is none.

        Raises:
            NoLink: no broker is configured.
            ToolFailed: the broker refused it.
        """
        ...


class Ledger(Protocol):
    """Keeps what upstreams have cost, in tokens, by UTC day (YYYY-MM-DD)."""

    async def spent(self, upstream: str, day: str) -> int:
        """Tokens of that day."""
        ...

    async def add(self, upstream: str, day: str, tokens: int) -> None:
        """More of them, or fewer (a reservation that was not used up)."""
        ...


class Bus(Protocol):
    """Where events of the daemon are heard. Implemented by `daemon.events.EventBus`."""

    def subscribe(self, name: str, heard: Heard) -> Callable[[], None]:
        """From now on `heard` gets every event, in order; the returned function ends it.

        Args:
            name: of the subscriber, for the log.
            heard: a plain function is called at once, and must return at once. A coroutine function may take its time;
                it loses the oldest of the events that wait for it where they become too many.
        """
        ...


class Deliverer(Protocol):
    """A transport that carries replies to those who do not wait for them."""

    async def deliver(self, delivery: Delivery) -> None:
        """Return once the reply is confirmed, or can never be; waits for the link while there is none."""
        ...
