"""The thread of onnxruntime: the only one that touches its objects and the tokenizers.

It loads, frees and computes models, one batch at a time. Others post commands; results go back to the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from edged.engines import thread
from edged.engines.onnx import sizes
from edged.engines.onnx.batches import batches
from edged.engines.onnx.ticket import OnnxStats, Ticket
from edged.errors import BadRequest, Cancelled, ContextExceeded, EdgedError, Internal, ModelUnavailable
from edged.host import malloc
from edged.host.clock import Stopwatch
from edged.types import Embeddings, ModelSpec, ModelState

if TYPE_CHECKING:
    from edged.engines.onnx.model import EmbeddingModel

log = logging.getLogger(__name__)


class _Loaded:
    """A model and what it has done."""

    def __init__(self, model: EmbeddingModel, load_ms: float) -> None:
        self.model = model
        self.load_ms = load_ms
        self.texts = 0
        self.tokens = 0


class _Work:
    """A job: its texts as tokens, and the batches that are left; None: it is not encoded yet."""

    def __init__(self, ticket: Ticket, loaded: _Loaded) -> None:
        self.ticket, self.loaded = ticket, loaded
        self.tokens: list[list[int]] = []
        self.batches: deque[list[int]] | None = None
        self.vectors: dict[int, bytes] = {}


class OnnxThread(thread.NativeThread):
    """The thread and its models.

    Args:
        loop, on_fatal: see native.Worker.
        threads: to compute with where a model names none; None: as many as the process may use.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_fatal: Callable[[BaseException], None], threads: int | None
    ) -> None:
        super().__init__(loop, on_fatal, name="edged.engines.onnx")
        self.stats: tuple[OnnxStats, ...] = ()
        self._threads = threads
        self._models: dict[str, _Loaded] = {}
        self._works: deque[_Work] = deque()

    # Called from the event loop

    def submit(self, ticket: Ticket) -> None:
        self.post(partial(self._submit, ticket))

    def cancel(self, ticket: Ticket) -> None:
        self.post(partial(self._cancel, ticket))

    def load(self, spec: ModelSpec, future: asyncio.Future[None]) -> None:
        self.post(partial(self._load, spec, future))

    def unload(self, name: str, future: asyncio.Future[None]) -> None:
        self.post(partial(self._unload, name, future))

    # The thread

    @property
    def _has_work(self) -> bool:
        return bool(self._works)

    def _step(self) -> None:
        """One batch of the job whose turn it is: a long one does not hold up a short one."""
        if self._works and not self._stopping.is_set():
            work = self._works.popleft()
            try:
                done = self._advance(work)
            except EdgedError as error:
                self._resolve(work.ticket.future, error)
            else:
                if done is None:
                    self._works.append(work)
                else:
                    self._resolve(work.ticket.future, done)
            self.progress_at = time.monotonic()
        self.stats = tuple(self._stats(name, loaded) for name, loaded in self._models.items())

    def _advance(self, work: _Work) -> Embeddings | None:
        """Encode a job, or compute its next batch; what came of it once it is whole."""
        if work.batches is None:
            self._encode(work)
            return None
        model, batch = work.loaded.model, work.batches.popleft()
        for i, vector in zip(batch, model.vectors([work.tokens[i] for i in batch]), strict=True):
            work.vectors[i] = vector.astype("<f4").tobytes()
        work.loaded.texts += len(batch)
        work.loaded.tokens += sum(len(work.tokens[i]) for i in batch)
        if work.batches:
            return None
        _check_dimensions(work.ticket.job.dimensions, len(work.vectors[0]) // 4)  # where the file did not tell
        vectors = tuple(work.vectors[i] for i in range(len(work.tokens)))
        return Embeddings(vectors=vectors, tokens=sum(map(len, work.tokens)))

    def _encode(self, work: _Work) -> None:
        job, model = work.ticket.job, work.loaded.model
        if model.dimensions is not None:
            _check_dimensions(job.dimensions, model.dimensions)
        for i, text in enumerate(job.texts):
            ids = model.encode(text)
            if len(ids) > model.context:
                raise ContextExceeded(len(ids), model.context, f"input[{i}]" if len(job.texts) > 1 else "the input")
            if not ids:
                raise BadRequest(f"input[{i}]: has no token in it")
            work.tokens.append(ids)
            self.progress_at = time.monotonic()
        work.batches = deque(batches([len(ids) for ids in work.tokens], most_tokens=model.batch_tokens))

    def _stats(self, name: str, loaded: _Loaded) -> OnnxStats:
        model = loaded.model
        return OnnxStats(
            name=name,
            state=ModelState.READY,
            load_ms=loaded.load_ms,
            provider=model.provider,
            offered=model.offered,
            passed_over=dict(model.passed_over),
            threads=model.threads,
            context=model.context,
            dimensions=model.dimensions,
            running=sum(work.loaded is loaded for work in self._works),
            texts=loaded.texts,
            prompt_tokens=loaded.tokens,
        )

    # Commands

    def _submit(self, ticket: Ticket) -> None:
        loaded = self._models.get(ticket.job.model)
        if loaded is None:
            self._resolve(ticket.future, ModelUnavailable(f"model {ticket.job.model} is not loaded"))
        else:
            self._works.append(_Work(ticket, loaded))

    def _cancel(self, ticket: Ticket) -> None:
        """The outcome tells the waiting task that nothing of it is computed any more."""
        self._works = deque(work for work in self._works if work.ticket is not ticket)
        self._resolve(ticket.future, Cancelled("the request was cancelled"))

    def _load(self, spec: ModelSpec, future: asyncio.Future[None]) -> None:
        loaded = self._models.get(spec.name)
        if loaded is not None:
            same = loaded.model.spec == spec
            self._resolve(future, None if same else Internal(f"{spec.name} is loaded with other settings"))
            return
        watch = Stopwatch()
        try:
            model = self._open(spec)
        except EdgedError as error:
            malloc.trim()
            self._resolve(future, error)
            return
        self._models[spec.name] = _Loaded(model, watch.ms())
        malloc.trim()  # while a session is made, weights are there several times
        self._resolve(future, None)

    def _open(self, spec: ModelSpec) -> EmbeddingModel:
        malloc.return_at_once()
        try:
            from edged.engines.onnx.model import EmbeddingModel
        except (ImportError, OSError) as error:  # not installed, or built for another machine
            raise ModelUnavailable(f"onnxruntime cannot be used: {error}") from error
        threads = spec.threads or self._threads or len(os.sched_getaffinity(0))
        try:
            return EmbeddingModel(spec, threads)
        except MemoryError:
            raise ModelUnavailable(f"there was no memory to load {spec.name!r}") from None

    def _unload(self, name: str, future: asyncio.Future[None]) -> None:
        loaded = self._models.get(name)
        if loaded is not None and (using := sum(work.loaded is loaded for work in self._works)):
            self._resolve(future, Internal(f"{name} cannot be unloaded: {using} requests use it"))
            return
        if loaded is not None:
            del self._models[name], loaded
            malloc.trim()
            if not self._models:
                malloc.give_back_code(sizes.LIBRARIES)
        self._resolve(future, None)

    def _free_all(self) -> None:
        """The end: whoever still waits is told, and the memory is given back."""
        for work in self._works:
            self._resolve(work.ticket.future, Cancelled("the engine stops"))
        self._works.clear()
        self._models.clear()
        self.stats = ()
        malloc.trim()


def _check_dimensions(wanted: int | None, has: int) -> None:
    if wanted is not None and wanted != has:
        raise BadRequest(f"dimensions: the model makes vectors of {has}, which cannot be cut: leave it out")
