"""The engine thread: the only one that touches native objects.

It loads, frees and steps models. Others post commands; results go back to the event loop in one call per round.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from edged import heap
from edged.engine import cpus
from edged.engine.ticket import ModelStats, News, Ticket
from edged.errors import Cancelled, EdgedError, Internal, ModelUnavailable
from edged.mailbox import resolve, run_all
from edged.types import ModelSpec

if TYPE_CHECKING:
    from edged.engine.runner import Runner
    from edged.engine.snapshots import Snapshots

log = logging.getLogger(__name__)

Command = Callable[[], None]


class Worker:
    """The thread, its models and its mailbox.

    `busy`, `progress_at` (time.monotonic()) and `stats` may be read from anywhere: each is replaced as a whole.

    Args:
        loop: where futures and callbacks live.
        on_fatal: called on the loop with the exception that ended the thread.
        threads: threads to compute with where a model names none; None: what the process may use.
        snapshots, checked: see Runner.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_fatal: Callable[[BaseException], None],
        threads: int | None,
        *,
        snapshots: Snapshots | None,
        checked: bool,
    ) -> None:
        self.busy = False
        self.progress_at = time.monotonic()
        self.stats: tuple[ModelStats, ...] = ()
        self._models: dict[str, Runner] = {}
        self._loop = loop
        self._on_fatal = on_fatal
        self._threads = threads
        self._snapshots = snapshots
        self._checked = checked
        self._trimmed = self._batch_paused = False
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._outbox: list[Command] = []
        self._stopping = threading.Event()
        # A daemon thread: if a native call never returns, the process must still be able to end.
        self._thread = threading.Thread(target=self._run, name="edged.engine", daemon=True)

    # Called from the event loop

    def start(self) -> None:
        self._thread.start()

    def submit(self, ticket: Ticket) -> None:
        self._commands.put(partial(self._submit, ticket))

    def cancel(self, ticket: Ticket) -> None:
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

    def stop(self) -> None:
        """End after the step in progress; a load in progress is aborted."""
        self._stopping.set()
        self._commands.put(lambda: None)

    def join(self) -> None:
        """Wait for the thread's end. Blocks."""
        self._thread.join()

    # The thread

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._take_commands()
                self._step()
                self._send()
            self._free_all()
        except BaseException as error:  # whatever it is, the loop has to hear of it
            log.critical("the engine thread died", exc_info=error)
            self._outbox.append(partial(self._on_fatal, error))
        finally:
            self.busy = False
            self._send()

    def _take_commands(self) -> None:
        """Do what was posted; sleep while there is nothing at all to do."""
        if not any(r.has_work for r in self._models.values()) and not self._outbox:
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
        self.stats = tuple(r.stats for r in self._models.values())

    def _send(self) -> None:
        """Hand everything of this round to the loop in one call: one wake-up per step, not one per token."""
        outbox, self._outbox = self._outbox, []
        if not outbox:
            return
        try:
            self._loop.call_soon_threadsafe(run_all, outbox)
        except RuntimeError:  # the loop is closed, so nobody waits any more
            log.debug("%d results came after the event loop was closed", len(outbox))

    # Commands

    def _submit(self, ticket: Ticket) -> None:
        runner = self._models.get(ticket.job.model)
        if runner is None:
            self._tell(ticket, ModelUnavailable(f"model {ticket.job.model} is not loaded"))
            return
        try:
            runner.submit(ticket)
        except EdgedError as error:
            self._tell(ticket, error)

    def _cancel(self, ticket: Ticket) -> None:
        """The outcome tells the waiting task that the cells are free; where there was an outcome before, it is told
        twice and the loop ignores the second."""
        for runner in self._models.values():
            runner.cancel(ticket)
        self._tell(ticket, Cancelled("the request was cancelled"))

    def _load(self, spec: ModelSpec, abort: threading.Event, future: asyncio.Future[None]) -> None:
        loaded = self._models.get(spec.name)
        if loaded is not None:
            same = loaded.spec == spec
            self._resolve(future, None if same else Internal(f"{spec.name} is loaded with other settings"))
            return
        try:
            runner = self._models[spec.name] = self._open(spec, abort)
        except EdgedError as error:
            heap.trim()
            self._resolve(future, error)
            return
        runner.pause_batch(self._batch_paused)
        if self._trimmed:
            runner.trim()
        self._resolve(future, None)

    def _open(self, spec: ModelSpec, abort: threading.Event) -> Runner:
        def on_progress(_fraction: float) -> bool:
            self.progress_at = time.monotonic()
            return not (abort.is_set() or self._stopping.is_set())

        try:
            cpus.before_loading()
            from edged.engine.runner import Runner

            configured = spec.threads if spec.threads is not None else self._threads
            most = cpus.most_threads(configured)
            return Runner(
                spec,
                most,
                on_progress,
                tuned=configured is None,
                snapshots=self._snapshots,
                checked=self._checked,
            )
        except (ImportError, RuntimeError, OSError, MemoryError) as error:  # libraries missing, or built for other CPUs
            raise ModelUnavailable(f"llama.cpp cannot be used: {error}") from error

    def _unload(self, name: str, future: asyncio.Future[None]) -> None:
        runner = self._models.get(name)
        if runner is not None and runner.tickets:
            self._resolve(future, Internal(f"{name} cannot be unloaded: {len(runner.tickets)} requests use it"))
            return
        if runner is not None:
            del self._models[name]
            runner.close()
            del runner
            heap.trim()
        self._resolve(future, None)

    def _trim(self, future: asyncio.Future[int]) -> None:
        self._trimmed = True
        dropped = sum(runner.trim() for runner in self._models.values())
        heap.trim()
        self._outbox.append(partial(resolve, future, dropped))

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
                self._tell(ticket, Cancelled("the engine stops"))
            runner.close()
        self._models.clear()
        heap.trim()

    def _tell(self, ticket: Ticket, outcome: EdgedError) -> None:
        self._outbox.append(partial(tell, News(ticket, outcome=outcome)))

    def _resolve(self, future: asyncio.Future[Any], error: EdgedError | None) -> None:
        self._outbox.append(partial(resolve, future, error))


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
