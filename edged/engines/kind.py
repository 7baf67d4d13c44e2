"""What the daemon knows of a kind of engine: `EngineKind` before a model runs, `BaseEngine` while it does.

A kind of engine is a subclass of each, and an instance of the first in `registry.KINDS`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar

from msgspec import Struct

from edged.errors import BadRequest
from edged.interfaces import Estimate, OnPiece, Residency
from edged.types import JSON, Completion, Embeddings, EmbedJob, Job, ModelSpec, ModelState, Segment, SelfTest, Speed

TokenCount = Callable[[tuple[Segment, ...]], int]  # of a prompt


class Surroundings(Struct, frozen=True, kw_only=True):
    """What an engine is made with.

    threads: to compute with where a model names none; None: as many as the process may use.
    on_fatal: called on the event loop if the engine dies; the daemon then has to end.
    states_dir, states_bytes: where states of prompts outlive their model, and how much of the disk they may take;
        0: nothing is kept.
    """

    threads: int | None = None
    on_fatal: Callable[[BaseException], None] | None = None
    states_dir: Path | None = None
    states_bytes: int = 0


class Preparation(Struct, frozen=True, kw_only=True):
    """How what a model is loaded from is made faster to compute with, by a process of its own.

    command: its arguments. folder: where it writes. disk_bytes, memory_bytes: what it needs of both.
    """

    command: tuple[str, ...]
    folder: Path
    disk_bytes: int
    memory_bytes: int


class ChatTemplate(Struct, frozen=True):
    """How a model wants dialogues written.

    source: Jinja, as it is in the model's file; None: the file has none. tokens: the texts of bos_token and eos_token,
        where the source names them. taught: the dialect that an adapter has taught the model; empty: none.
    """

    source: str | None = None
    tokens: dict[str, str] = {}
    taught: str = ""


class TextFormat(Struct, frozen=True):
    """How a model wants a bare text that it goes on with.

    begin: what stands before every text; mostly nothing.
    gap: what stands before the text in front of a gap, before the text after it, and at the end, where what fills the
        gap is written; empty: the model fills none.
    """

    begin: str = ""
    gap: tuple[str, str, str] | tuple[()] = ()


class FileFacts(Struct, frozen=True, kw_only=True):
    """What a model's file says of itself, for clients that ask.

    format: of the file. architecture: empty where it names none. parameters: their number in words, as "0.5B";
    quantization: as "Q4_K_M"; empty where it does not say. context: most tokens it was trained for; 0: it does not say.
    embeds: it makes vectors, and no text. thinks: its template has a place for thoughts. fills_gaps: see TextFormat.
    """

    format: str = ""
    architecture: str = ""
    parameters: str = ""
    quantization: str = ""
    context: int = 0
    embeds: bool = False
    thinks: bool = False
    fills_gaps: bool = False


class ModelStats(Struct, frozen=True, kw_only=True):
    """One loaded model for `status`. Each kind of engine adds what it counts.

    load_ms: the load took. threads: compute at the moment.
    """

    name: str
    state: ModelState
    load_ms: float
    threads: int

    @property
    def speed(self) -> Speed | None:
        """As measured; None: not yet, or nobody measures it."""
        return None


class BaseEngine(ABC):
    """An engine as the daemon runs it: implements `interfaces.Engine`, `Embedder`, `Loader` and `Yielding`. A kind
    overrides what its models can do, and what they need.
    """

    _residency: Residency | None = None

    @property
    def residency(self) -> Residency | None:
        """Who decides what is loaded; set before the first request (the governor, in turn, needs the engine)."""
        return self._residency

    @residency.setter
    def residency(self, residency: Residency | None) -> None:
        self._residency = residency

    async def start(self) -> None:
        """Start; loads nothing."""

    async def settle(self) -> None:
        """Called once, when the daemon serves: what makes later requests quicker and must not hold up the start."""

    async def stop(self) -> None:
        """End everything that runs with `Cancelled`, free all models."""

    @abstractmethod
    async def load(self, spec: ModelSpec) -> None:
        """See interfaces.Loader."""

    @abstractmethod
    async def unload(self, name: str) -> None:
        """See interfaces.Loader."""

    async def generate(
        self, job: Job, on_text: Callable[[str], None] | None = None, *, on_piece: OnPiece | None = None
    ) -> Completion:
        """See interfaces.Engine."""
        raise embeds_only(job.model)

    async def warm(self, job: Job) -> None:
        """See interfaces.Engine."""
        raise embeds_only(job.model)

    async def embed(self, job: EmbedJob) -> Embeddings:
        """See interfaces.Embedder."""
        raise generates_only(job.model)

    async def trim(self) -> int:
        """See interfaces.Yielding; what keeps nothing between two requests drops nothing."""
        return 0

    def relax(self) -> None:
        """See interfaces.Yielding."""

    def pause_batch(self, paused: bool) -> None:
        """See interfaces.Yielding."""

    def progress(self) -> tuple[bool, float]:
        """(it is at work, when it last got on: time.monotonic()). For the watchdog: no locks, no I/O."""
        return False, time.monotonic()

    def stats(self) -> Sequence[ModelStats]:
        """The loaded models."""
        return ()

    def lost_s(self, model: str) -> float:
        """Seconds to compute again what a loaded model holds and nobody keeps once it is unloaded."""
        return 0.0

    def status(self) -> dict[str, JSON]:
        """What `status` shows beside the models, by name."""
        return {}


class EngineKind(ABC):
    """A kind of engine: which files it takes, and what can be told of a model before it is loaded.

    name: `engine` in a configuration, a manifest and `ModelSpec`.
    scheme: of sources that are its own, without the colon; empty: its files come by the common ones (`models.catalog`).
    suffix: by which its files are known, with the dot; empty: by none.
    companions: further files that a model of a hub's repository needs, by their names at its top.
    follows_grammars: its models' answers are kept to grammars; else they have to be checked afterwards.
    generates, embeds: what its models can do. One that can do both is told by its file, after the load.
    sizes: how much memory its models take; None: they take none worth counting.
    """

    name: ClassVar[str]
    scheme: ClassVar[str] = ""
    suffix: ClassVar[str] = ""
    companions: ClassVar[tuple[str, ...]] = ()
    follows_grammars: ClassVar[bool] = False
    generates: ClassVar[bool] = True
    embeds: ClassVar[bool] = False
    sizes: ClassVar[Estimate | None] = None

    @abstractmethod
    def make(self, around: Surroundings) -> BaseEngine:
        """An engine, not started. Made once, and only where a model of this kind is configured."""

    def path(self, rest: str) -> Path:
        """The file that a source of the kind's own scheme means. rest: what follows the colon."""
        return Path(rest)

    def is_present(self, path: Path) -> bool:
        """Whether what a model is loaded from is on this board."""
        return path.is_file()

    def check_file(self, path: Path) -> None:
        """Look at a file's beginning before a load is tried; blocks for milliseconds. Raises ModelUnavailable where it
        is no model of this kind."""

    def token_counter(self, path: Path) -> AbstractContextManager[TokenCount] | None:
        """Counts tokens of prompts without the model, for a process that does nothing else; None: nobody counts them.
        Entering it raises ModelUnavailable where the file's vocabulary cannot be read."""
        return None

    def chat_template(self, path: Path) -> ChatTemplate:
        """The template in a model's file; blocks for tens of milliseconds. Raises ModelUnavailable."""
        return ChatTemplate()

    def text_format(self, path: Path) -> TextFormat:
        """How the model in a file goes on with a text. Blocks and raises as `chat_template`."""
        return TextFormat()

    def facts(self, path: Path) -> FileFacts:
        """What a file says of its model. Blocks and raises as `chat_template`."""
        return FileFacts(format=self.name, embeds=not self.generates)

    def dialect_of(self, adapter: Path) -> str:
        """The dialect that an adapter's file says it teaches; empty: none. Blocks and raises as `chat_template`."""
        return ""

    def preparation(self, spec: ModelSpec) -> Preparation | None:
        """What can be made of a model's files so that it computes faster from its next load on; None: nothing, or it is
        made already. Blocks and raises as `chat_template`."""
        return None

    def made_from(self, path: Path) -> list[Path]:
        """The files that `preparation` has had made of a model's file; of no use without it. Blocks for a moment."""
        return []

    def self_tests(self, path: Path) -> tuple[SelfTest, ...]:
        """Questions that the file itself brings along; those of a manifest are the catalog's. Raises ModelUnavailable
        where the file cannot be read."""
        return ()

    def about_bytes(self, file_bytes: int, parameters: int, context: int, kv_bytes_per_token: int = 0) -> int:
        """About how many bytes a model takes in memory, by what its manifest says.

        Args:
            file_bytes: of the model's file.
            context: tokens that one request may use.
            kv_bytes_per_token: of keys and values; 0: not known.
        """
        return file_bytes


def embeds_only(model: str) -> BadRequest:
    """The error for those who want a text of an embedding model."""
    return BadRequest(f"model: {model!r} is an embedding model: it does not generate, see POST /v1/embeddings")


def generates_only(model: str, hint: str = "") -> BadRequest:
    """The error for those who want vectors of a language model."""
    return BadRequest(f"model: {model!r} is a language model and makes no embeddings{hint}")
