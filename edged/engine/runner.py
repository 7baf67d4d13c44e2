"""One loaded model and its requests: `step` is schedule, decode, postprocess. Synchronous; the worker calls it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from edged.engine import check, sizes
from edged.engine.constraint import Grammars
from edged.engine.cpus import BoardWatch
from edged.engine.generation import Generation
from edged.engine.llama import DecodeError, Llama, Row
from edged.engine.pace import Pace
from edged.engine.prompt import encode
from edged.engine.sampler import Logits
from edged.engine.scheduler import Scheduler, Step
from edged.engine.sequence import Chunk, Sequence, common_length
from edged.engine.threads import Tuner
from edged.engine.ticket import ModelStats, News, Ticket
from edged.errors import BadRequest, ContextExceeded, EdgedError, ModelUnavailable, NoMemory
from edged.types import ModelSpec, ModelState, Priority

# Sees the logits a token is about to be chosen from; for tests. The row is valid during the call only.
Watch = Callable[[Sequence, Logits], None]


@dataclass(slots=True)
class _Counters:
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    forced_tokens: int = 0
    decode_steps: int = 0


class Runner:
    """A model that is loaded.

    Args:
        spec: the model as configured.
        threads: threads to compute with.
        tuned: fewer threads than that are used where it is faster; False where the count was configured.
        on_progress: called with 0..1 while the model loads; False aborts.
        checked: compare the books with llama.cpp's after every step.

    Raises:
        ModelUnavailable: with llama.cpp's reason.
    """

    def __init__(
        self,
        spec: ModelSpec,
        threads: int,
        on_progress: Callable[[float], bool] | None = None,
        *,
        tuned: bool = False,
        checked: bool = False,
    ) -> None:
        began = time.monotonic()
        self.spec = spec
        self.watch: Watch | None = None
        self._native = Llama(spec.path, sizes.context_cells(spec.context), threads, on_progress)
        try:
            prefixes = sizes.MAX_PREFIXES if self._native.can_share() else 0
        except BaseException:
            self._native.close()
            raise
        self._scheduler = Scheduler(self._native.cells, sizes.MAX_RUNNING, prefixes)
        self._grammars = Grammars(self._native)
        self._pace = Pace(self._native.batch_tokens)
        self._tuner = Tuner(threads, fixed=not tuned)
        self._board = BoardWatch(began)
        self._limit = min(spec.context, self._native.trained_context, self._native.cells)
        self._generations: dict[Sequence, Generation] = {}
        self._news: list[News] = []
        self._order = count()
        self._checked = checked
        self._counters = _Counters()
        self._load_ms = round((time.monotonic() - began) * 1000, 3)
        self.stats = self._take_stats()

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    def submit(self, ticket: Ticket) -> None:
        """Queue a job. The worst case is what `max_tokens` allows, or what the context leaves after the prompt if
        that is less: such an answer then ends with Finish.LENGTH.

        Raises:
            ContextExceeded, BadRequest: nothing was computed.
        """
        job = ticket.job
        prompt = encode(job.prefix + job.turn, self._native)
        self._validate(ticket, len(prompt))
        constraint = self._grammars.constraint(job.grammar) if job.grammar is not None else None
        shared = common_length(prompt, encode(job.prefix, self._native)) if job.prefix else 0
        sequence = Sequence(
            order=next(self._order),
            interactive=job.priority is Priority.INTERACTIVE,
            tokens=prompt,
            n_prompt=len(prompt),
            prefix_tokens=min(shared, len(prompt) - 1),
            max_tokens=min(job.max_tokens, self._limit - len(prompt)),
        )
        generation = Generation(ticket, sequence, self._native, constraint)
        self._generations[sequence] = generation
        if generation.finish is None:
            self._scheduler.add(sequence)
        self._report(generation)
        self.stats = self._take_stats()

    def cancel(self, ticket: Ticket) -> bool:
        """End a job without an outcome and free its cells; False where it has ended already."""
        for sequence, generation in self._generations.items():
            if generation.ticket is ticket:
                self._release(sequence)
                self.stats = self._take_stats()
                return True
        return False

    @property
    def tickets(self) -> list[Ticket]:
        """Jobs that have not ended."""
        return [g.ticket for g in self._generations.values()]

    def step(self) -> None:
        """Compute some tokens of those who are next, and go on from their logits."""
        step = self._scheduler.schedule(self._pace.budget)
        self._prepare(step)
        if step.chunks and self._decode(step.chunks):
            self._postprocess(step.chunks)
        if self._checked:
            check.books(self._scheduler, self._native)
        self.stats = self._take_stats()

    def take_news(self) -> list[News]:
        """What has come since the last call."""
        news, self._news = self._news, []
        return news

    def close(self) -> None:
        """Free everything native. Jobs that have not ended get no outcome."""
        for generation in self._generations.values():
            generation.close()
        self._generations.clear()
        self._grammars.clear()  # before the vocabulary they refer to
        self._native.close()

    # Schedule

    def _validate(self, ticket: Ticket, n_prompt: int) -> None:
        if n_prompt == 0:
            raise BadRequest("the prompt is empty")
        if ticket.job.max_tokens < 1:
            raise BadRequest("max_tokens must be at least 1")
        if n_prompt >= self._limit:
            raise ContextExceeded(n_prompt, self._limit - 1)

    def _prepare(self, step: Step) -> None:
        for seq_id in step.evicted:
            self._native.forget(seq_id)
        for sequence in step.admitted:
            if sequence.prefix:
                self._native.share(sequence.prefix.seq_id, sequence.seq_id, sequence.n_cached)
            self._counters.prompt_tokens += sequence.n_prompt
            self._counters.cached_tokens += sequence.n_cached
            self._generations[sequence].admitted()

    # Decode

    def _decode(self, chunks: list[Chunk]) -> bool:
        """Compute the chunks; False where that failed, and those it concerns were told."""
        rows = [row for chunk in chunks for row in _rows(chunk)]
        self._choose_threads(len(rows))
        began = time.monotonic()
        try:
            self._native.decode(rows)
        except DecodeError as error:
            self._fail_step(chunks, error)
            return False
        self._learn(len(rows), time.monotonic() - began)
        return True

    def _fail_step(self, chunks: list[Chunk], error: DecodeError) -> None:
        """Without room nothing was changed: the youngest makes place and the others try again. After any other
        failure the cells of all who took part are in an unknown state."""
        if error.no_room:
            youngest = max((c.sequence for c in chunks), key=lambda s: s.order)
            self._fail(youngest, NoMemory("the model's context has no room at the moment"))
            return
        for chunk in chunks:
            self._fail(chunk.sequence, ModelUnavailable(f"the model failed to compute: {error}"))

    def _learn(self, tokens: int, seconds: float) -> None:
        self._counters.decode_steps += 1
        self._pace.observe(tokens, seconds)
        self._tuner.observe(tokens, seconds)

    def _choose_threads(self, tokens: int) -> None:
        board = self._board.look(time.monotonic())
        if board:
            self._tuner.adapt(board)
        self._native.set_threads(self._tuner.threads(tokens))

    # Postprocess

    def _postprocess(self, chunks: list[Chunk]) -> None:
        row = -1
        for chunk in chunks:
            row += chunk.count
            sequence = chunk.sequence
            generation = self._generations[sequence]
            sequence.n_computed += chunk.count
            generation.decode_steps += generation.has_begun
            if sequence.n_computed == sequence.prefix_tokens:
                self._publish(sequence)
            if chunk.is_last:
                self._advance(generation, row)

    def _publish(self, sequence: Sequence) -> None:
        step = Step()
        prefix = self._scheduler.publish(sequence, step)
        for seq_id in step.evicted:
            self._native.forget(seq_id)
        if prefix:
            self._native.share(sequence.seq_id, prefix.seq_id, len(prefix.tokens))

    def _advance(self, generation: Generation, row: int) -> None:
        logits = self._native.logits(row)
        if self.watch:
            self.watch(generation.sequence, logits)
        try:
            generation.advance(logits)
        except EdgedError as error:
            self._fail(generation.sequence, error)
            return
        self._report(generation)

    def _report(self, generation: Generation) -> None:
        """Say what is new, and let go of it where it has ended."""
        news = News(generation.ticket, *generation.take_text())
        if generation.finish is not None:
            news.outcome = generation.completion()
            self._counters.generated_tokens += generation.n_completion
            self._counters.forced_tokens += generation.n_forced
            self._release(generation.sequence)
        if news.text or news.outcome:
            self._news.append(news)

    def _fail(self, sequence: Sequence, error: EdgedError) -> None:
        self._news.append(News(self._generations[sequence].ticket, outcome=error))
        self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        """Free what a sequence holds, here, in the books and in llama.cpp."""
        self._generations.pop(sequence).close()
        if self._scheduler.remove(sequence):
            self._native.forget(sequence.seq_id)

    def _take_stats(self) -> ModelStats:
        counters, scheduler = self._counters, self._scheduler
        return ModelStats(
            name=self.spec.name,
            state=ModelState.READY,
            load_ms=self._load_ms,
            cells=scheduler.cells,
            cells_reserved=scheduler.reserved_cells,
            running=len(scheduler.running),
            waiting=sum(1 for _ in scheduler.waiting),
            prefixes=len(scheduler.prefixes),
            threads=self._tuner.count,
            prompt_tokens=counters.prompt_tokens,
            cached_tokens=counters.cached_tokens,
            generated_tokens=counters.generated_tokens,
            forced_tokens=counters.forced_tokens,
            decode_steps=counters.decode_steps,
        )


def _rows(chunk: Chunk) -> list[Row]:
    """A chunk as llama.cpp wants it; only its last token has logits, and only if nothing is left after it."""
    sequence, end = chunk.sequence, chunk.start + chunk.count
    rows = [(sequence.tokens[i], i, sequence.seq_id, False) for i in range(chunk.start, end)]
    token, position, seq_id, _ = rows[-1]
    rows[-1] = (token, position, seq_id, chunk.is_last)
    return rows
