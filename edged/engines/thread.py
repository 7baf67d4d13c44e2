"""The thread of an engine whose models are native objects: it owns them all, everybody else posts commands and awaits
futures (`threaded.ThreadedEngine`).

`ModelRunner` is a loaded model, `EngineThread` the thread that loads, steps and frees models. What a step brought goes
back in one call: one wake-up of the loop for all of it.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from edged.engines.kind import ModelStats
from edged.errors import Cancelled, EdgedError, Internal, ModelUnavailable
from edged.host import malloc
from edged.interfaces import OnPiece
from edged.types import Completion, Embeddings, EmbedJob, Job, ModelSpec, TokenLogprob

log = logging.getLogger("edged.engines.thread")

Command = Callable[[], None]
AnyJob = TypeVar("AnyJob", bound=Job | EmbedJob)
Outcome = Completion | Embeddings


@dataclass(slots=True, eq=False)
class Ticket(Generic[AnyJob]):
    """A job on its way through the thread.

    future, on_piece: belong to the event loop; the thread only names them in what it sends there.
    called_at: time.monotonic() when the caller asked; load_ms: of that, spent to bring the model in.
    warm: only get ready for such jobs: compile the grammar, compute the prompt, generate nothing.
    """

    job: AnyJob
    on_piece: OnPiece | None
    future: asyncio.Future[Any]
    called_at: float
    load_ms: float = 0.0
    warm: bool = False


@dataclass(slots=True)
class News:
    """What one step brought for a ticket: more text (and log-probabilities of its tokens where asked for), and at the
    end the outcome."""

    ticket: Ticket[Any]
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    outcome: Outcome | Exception | None = None


class ModelRunner(ABC, Generic[AnyJob]):
    """A loaded model and its jobs. Synchronous: only the engine's thread calls it.

    stats: as of the last step; replaced as a whole.
    """

    spec: ModelSpec
    stats: ModelStats

    @property
    @abstractmethod
    def has_work(self) -> bool:
        """Whether a step would compute something."""

    @property
    @abstractmethod
    def tickets(self) -> Sequence[Ticket[AnyJob]]:
        """Jobs that have not ended."""

    @abstractmethod
    def submit(self, ticket: Ticket[AnyJob]) -> None:
        """Queue a job. EdgedError: it cannot be done; nothing was computed."""

    @abstractmethod
    def cancel(self, ticket: Ticket[AnyJob]) -> bool:
        """End a job without an outcome and free what it holds; False where it has ended already."""

    @abstractmethod
    def step(self) -> None:
        """Compute some of it. A step is short: whoever comes meanwhile waits for its end."""

    @abstractmethod
    def take_news(self) -> list[News]:
        """What has come since the last call."""

    @abstractmethod
    def close(self) -> None:
        """Free everything native. Jobs that have not ended get no outcome."""

    def rest(self, idle_s: float) -> float | None:
        """What is to be done while nothing else is. idle_s: for how long nothing was to do. Returns after how many
        seconds to come again; None: not before there was work."""
        return None

    def trim(self) -> int:
        """See interfaces.Yielding."""
        return 0

    def relax(self) -> None:
        """See interfaces.Yielding."""

    def pause_batch(self, paused: bool) -> None:
        """See interfaces.Yielding."""


# (spec, goes on) -> the loaded model. `goes on` is to be called now and then: it tells the watchdog that the load gets
# on, and False ends it. Raises ModelUnavailable with the runtime's reason.
Open = Callable[[ModelSpec, Callable[[], bool]], ModelRunner[AnyJob]]


class EngineThread(Generic[AnyJob]):
    """The thread, its mailbox and its models.

    `busy` and `progress_at` (time.monotonic()) may be read from anywhere, and so may `stats`.

    Args:
        loop: where futures and callbacks live.
        on_fatal: called on the loop with the exception that ended the thread.
        name: of the thread.
        open_model: loads one.
        packages: names of the folders of Python packages whose code goes with the last model.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_fatal: Callable[[BaseException], None],
        *,
        name: str,
        open_model: Open[AnyJob],
        packages: frozenset[str],
    ) -> None:
        self.busy = False
        self.progress_at = time.monotonic()
        self.stats: tuple[ModelStats, ...] = ()
        self._loop, self._on_fatal = loop, on_fatal
        self._open_model, self._packages = open_model, packages
        self._models: dict[str, ModelRunner[AnyJob]] = {}
        self._trimmed = self._batch_paused = False
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._outbox: list[Command] = []
        self._stopping = threading.Event()
        # A daemon thread: if a native call never returns, the process must still be able to end.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    # Called from the event loop

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after what is in progress."""
        self._stopping.set()
        self._commands.put(lambda: None)

    def join(self) -> None:
        """Wait for the thread's end. Blocks."""
        self._thread.join()

    def submit(self, ticket: Ticket[AnyJob]) -> None:
        self._commands.put(partial(self._submit, ticket))

    def cancel(self, ticket: Ticket[AnyJob]) -> None:
        self._commands.put(partial(self._cancel, ticket))

    def load(self, spec: ModelSpec, abort: threading.Event, future: asyncio.Future[None]) -> None:
        self._commands.put(partial(self._load, spec, abort, future))

    def unload(self, name: str, future: asyncio.Future[None]) -> None:
        self._commands.put(partial(self._unload, name, future))

    def trim(self, future: asyncio.Future[int]) -> None:
        self._commands.put(partial(self._trim, future))

    def relax(self) -> None:
        self._commands.put(self._relax)

    def pause_batch(self, paused: bool) -> None:
        self._commands.put(partial(self._pause_batch, paused))

    # The thread

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._take_commands()
                self._step()
                self._send()
            self._free_all()
        except BaseException as error:  # whatever it is, the loop has to hear of it
            log.critical("the thread %s died", self._thread.name, exc_info=error, extra={"event": "engine_died"})
            self._outbox.append(partial(self._on_fatal, error))
        finally:
            self.busy = False
            self._send()

    def _take_commands(self) -> None:
        """Do what was posted; sleep while there is nothing at all to do."""
        if not self._outbox and not any(runner.has_work for runner in self._models.values()):
            self.busy = False
            command = self._await_command()
            self.busy, self.progress_at = True, time.monotonic()
            command()
        while not self._stopping.is_set():
            try:
                command = self._commands.get_nowait()
            except queue.Empty:
                return
            self.progress_at = time.monotonic()
            command()

    def _await_command(self) -> Command:
        """The next command; the models do meanwhile what can wait until then."""
        idle_since = time.monotonic()
        while True:
            waits = [runner.rest(time.monotonic() - idle_since) for runner in self._models.values()]
            try:
                return self._commands.get(timeout=min((w for w in waits if w is not None), default=None))
            except queue.Empty:
                continue

    def _step(self) -> None:
        """One step of every model that has work, in turn: none starves beside another."""
        for runner in self._models.values():
            if runner.has_work and not self._stopping.is_set():
                runner.step()
                self.progress_at = time.monotonic()
            self._outbox.extend(partial(tell, news) for news in runner.take_news())
        self.stats = tuple(runner.stats for runner in self._models.values())

    def _send(self) -> None:
        """Hand everything of this round to the loop."""
        outbox, self._outbox = self._outbox, []
        if not outbox:
            return
        try:
            self._loop.call_soon_threadsafe(_run_all, outbox)
        except RuntimeError:  # the loop is closed, so nobody waits any more
            log.debug("%d results came after the event loop was closed", len(outbox))

    def _resolve(self, future: asyncio.Future[Any], value: object) -> None:
        self._outbox.append(partial(resolve, future, value))

    # Commands

    def _submit(self, ticket: Ticket[AnyJob]) -> None:
        runner = self._models.get(ticket.job.model)
        if runner is None:
            self._resolve(ticket.future, ModelUnavailable(f"model {ticket.job.model} is not loaded"))
            return
        try:
            runner.submit(ticket)
        except EdgedError as error:
            self._resolve(ticket.future, error)

    def _cancel(self, ticket: Ticket[AnyJob]) -> None:
        """The outcome tells the waiting task that nothing is computed for it any more; where there was an outcome
        before, the loop ignores this one."""
        for runner in self._models.values():
            runner.cancel(ticket)
        self._resolve(ticket.future, Cancelled("the request was cancelled"))

    def _load(self, spec: ModelSpec, abort: threading.Event, future: asyncio.Future[None]) -> None:
        loaded = self._models.get(spec.name)
        if loaded is not None:
            same = loaded.spec == spec
            self._resolve(future, None if same else Internal(f"{spec.name} is loaded with other settings"))
            return

        def goes_on() -> bool:
            self.progress_at = time.monotonic()
            return not (abort.is_set() or self._stopping.is_set())

        try:
            runner = self._models[spec.name] = self._open_model(spec, goes_on)
        except EdgedError as error:
            malloc.trim()
            self._resolve(future, error)
            return
        runner.pause_batch(self._batch_paused)
        if self._trimmed:
            runner.trim()
        self._resolve(future, None)

    def _unload(self, name: str, future: asyncio.Future[None]) -> None:
        runner = self._models.get(name)
        if runner is not None and runner.tickets:
            self._resolve(future, Internal(f"{name} cannot be unloaded: {len(runner.tickets)} requests use it"))
            return
        if runner is not None:
            del self._models[name]
            runner.close()
            del runner
            malloc.trim()
            if not self._models:
                malloc.give_back_code(self._packages)
        self._resolve(future, None)

    def _trim(self, future: asyncio.Future[int]) -> None:
        self._trimmed = True
        dropped = sum(runner.trim() for runner in self._models.values())
        malloc.trim()
        self._resolve(future, dropped)

    def _relax(self) -> None:
        self._trimmed = False
        for runner in self._models.values():
            runner.relax()

    def _pause_batch(self, paused: bool) -> None:
        self._batch_paused = paused
        for runner in self._models.values():
            runner.pause_batch(paused)

    def _free_all(self) -> None:
        """The end: whoever still waits is told, and the memory is given back."""
        for runner in self._models.values():
            for ticket in runner.tickets:
                self._resolve(ticket.future, Cancelled("the engine stops"))
            runner.close()
        self._models.clear()
        self.stats = ()
        malloc.trim()


# On the event loop


def tell(news: News) -> None:
    """Give a request its text and its outcome. A caller's broken callback is the caller's problem."""
    ticket, outcome = news.ticket, news.outcome
    if ticket.future.done():
        return
    if news.text and ticket.on_piece:
        try:
            ticket.on_piece(news.text, news.logprobs)
        except Exception:
            log.exception("on_text failed; %s goes on without it", ticket.job.rid)
            ticket.on_piece = None
    if outcome is not None:
        resolve(ticket.future, outcome)


def resolve(future: asyncio.Future[Any], value: object) -> None:
    """Set a future's result or exception, unless it has one."""
    if future.done():
        return
    if isinstance(value, Exception):
        future.set_exception(value)
    else:
        future.set_result(value)


def _run_all(calls: Iterable[Command]) -> None:
    for call in calls:
        call()
