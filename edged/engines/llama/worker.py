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
from typing import TYPE_CHECKING

from edged.engines import thread
from edged.engines.llama import predict
from edged.engines.llama.ticket import LlamaStats, News, Ticket
from edged.engines.thread import Command, resolve
from edged.errors import Cancelled, EdgedError, Internal, ModelUnavailable
from edged.host import cpus, malloc
from edged.types import ModelSpec

if TYPE_CHECKING:
    from edged.engines.llama.runner import Runner
    from edged.engines.llama.snapshots import Snapshots

log = logging.getLogger(__name__)


class LlamaThread(thread.NativeThread):
    """The thread and its models.

    Args:
        loop, on_fatal: see native.Worker.
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
        super().__init__(loop, on_fatal, name="edged.engines.llama")
        self.stats: tuple[LlamaStats, ...] = ()
        self._models: dict[str, Runner] = {}
        self._threads = threads
        self._snapshots = snapshots
        self._checked = checked
        self._trimmed = self._batch_paused = False

    # Called from the event loop

    def submit(self, ticket: Ticket) -> None:
        self.post(partial(self._submit, ticket))

    def cancel(self, ticket: Ticket) -> None:
        self.post(partial(self._cancel, ticket))

    def load(self, spec: ModelSpec, abort: threading.Event, future: asyncio.Future[None]) -> None:
        self.post(partial(self._load, spec, abort, future))

    def unload(self, name: str, future: asyncio.Future[None]) -> None:
        self.post(partial(self._unload, name, future))

    def trim(self, future: asyncio.Future[int]) -> None:
        self.post(partial(self._trim, future))

    def relax(self) -> None:
        self.post(self._relax)

    def pause_batch(self, paused: bool) -> None:
        self.post(partial(self._pause_batch, paused))

    # The thread

    @property
    def _has_work(self) -> bool:
        return any(runner.has_work for runner in self._models.values())

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
            malloc.trim()
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
            from edged.engines.llama.runner import Runner

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
            malloc.trim()
            if not self._models:
                malloc.give_back_code(predict.PACKAGES)
        self._resolve(future, None)

    def _trim(self, future: asyncio.Future[int]) -> None:
        self._trimmed = True
        dropped = sum(runner.trim() for runner in self._models.values())
        malloc.trim()
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
        malloc.trim()

    def _tell(self, ticket: Ticket, outcome: EdgedError) -> None:
        self._outbox.append(partial(tell, News(ticket, outcome=outcome)))


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
