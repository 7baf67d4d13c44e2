"""One loaded model and its requests: `step` is schedule, decode, postprocess. Synchronous; the worker calls it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from edged.engines.llama import bindings, check, sizes
from edged.engines.llama.bindings import DecodeError, Llama, Row
from edged.engines.llama.constraint import Grammars
from edged.engines.llama.costs import Costs
from edged.engines.llama.drafts import Drafting
from edged.engines.llama.generation import Generation
from edged.engines.llama.grammar_vocab import Lexicon
from edged.engines.llama.prefixes import Prefixes
from edged.engines.llama.prompt import encode_prompt
from edged.engines.llama.rates import Rates
from edged.engines.llama.sampler import Logits
from edged.engines.llama.scheduler import BringBack, Budget, Forget, Move, Scheduler, SetAside, Share, StepPlan
from edged.engines.llama.sequence import Chunk, Sequence, common_length
from edged.engines.llama.snapshots import Key, Snapshots, model_fingerprint
from edged.engines.llama.step_budget import StepBudget
from edged.engines.llama.swapped import Aside
from edged.engines.llama.threads import Tuner
from edged.engines.llama.ticket import LlamaStats, News, Ticket
from edged.errors import BadRequest, ContextExceeded, EdgedError, ModelUnavailable, NoMemory
from edged.host.cpus import BoardWatch
from edged.types import ModelSpec, ModelState, Priority

# Sees the logits a token is about to be chosen from; for tests. The row is valid during the call only.
Watch = Callable[[Sequence, Logits], None]
# Prefixes are stored when nothing was to do for so long, in seconds: copying a state out takes the engine ten
# milliseconds, which no request should wait for.
SETTLED_S = 1.0
# A step of batch generations alone should not last longer, in seconds: an interactive request that comes meanwhile
# waits for its end. Fewer rows waste what rows of a step share: on two x86 cores four a step are 5 % slower than eight.
BATCH_STEP_S = 0.05
MIN_BATCH_ROWS = 4


@dataclass(slots=True)
class _Counters:
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    forced_tokens: int = 0
    decode_steps: int = 0
    set_aside: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


class Runner:
    """A model that is loaded.

    Args:
        spec: the model as configured.
        threads: threads to compute with.
        tuned: fewer threads than that are used where it is faster; False where the count was configured.
        snapshots: where states of prefixes outlive the model; None: nowhere.
        on_progress: called with 0..1 while the model loads; False aborts.
        checked: compare the books with llama.cpp's after every step, not only when idle.

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
        snapshots: Snapshots | None = None,
        checked: bool = False,
    ) -> None:
        began = time.monotonic()
        self.spec = spec
        self.watch: Watch | None = None
        lexicon = Lexicon(Path(spec.path))  # reads the vocabulary while llama.cpp loads the weights
        try:
            self._native = Llama(
                spec.path, sizes.context_cells(spec.context), threads, on_progress, kv_type=spec.kv_type
            )
        except BaseException:
            lexicon.close()
            raise
        self._grammars = Grammars(self._native, lexicon)
        try:
            self._sharing = self._native.can_share()
            self._scheduler = Scheduler(
                self._native.cells, sizes.MAX_RUNNING, sizes.MAX_SEQUENCES, sharing=self._sharing
            )
            self._prefixes = self._open_prefixes(snapshots) if snapshots and self._sharing else None
        except BaseException:
            self._grammars.clear()
            self._native.close()
            raise
        self._rates = Rates()
        self._pace = StepBudget(self._native.batch_tokens)
        self._tuner = Tuner(threads, fixed=not tuned)
        self._costs = Costs()
        self._drafting = Drafting(self._costs)
        self._aside = Aside(self._native, sizes.ASIDE_BYTES)
        self._board = BoardWatch(began)
        self._limit = min(spec.context, self._native.trained_context, self._native.cells)
        self._generations: dict[Sequence, Generation] = {}
        self._news: list[News] = []
        self._order = count()
        self._checked = checked
        self._trimmed = False
        self._unchecked = False  # something was computed since the books were compared
        self._counters = _Counters()
        self._load_ms = round((time.monotonic() - began) * 1000, 3)
        self.stats = self._take_stats()

    def _open_prefixes(self, snapshots: Snapshots) -> Prefixes:
        key = Key(model_fingerprint(Path(self.spec.path)), bindings.runtime(), self._native.layout)
        return Prefixes(snapshots.open(key), self._native, self._scheduler, self._prepare)

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    def submit(self, ticket: Ticket) -> None:
        """Queue a job. The worst case is what `max_tokens` allows, or what the context leaves after the prompt if
        that is less: such an answer then ends with Finish.LENGTH.

        Raises:
            ContextExceeded, BadRequest: nothing was computed.
        """
        began, job = time.monotonic(), ticket.job
        prompt, shared = encode_prompt(job.prefix, job.turn, self._native)
        self._validate(ticket, len(prompt))
        constraint = self._grammars.constraint(job.grammar) if job.grammar is not None else None
        sequence = Sequence(
            order=next(self._order),
            interactive=job.priority is Priority.INTERACTIVE,
            tokens=prompt,
            n_prompt=len(prompt),
            prefix_tokens=min(shared, len(prompt) - 1),
            max_tokens=min(job.max_tokens, self._limit - len(prompt)),
            repeatable=job.sampling.seed is not None,
        )
        generation = Generation(ticket, sequence, self._native, None if ticket.warm else constraint, self._drafting)
        self._generations[sequence] = generation
        if generation.finish is None:
            if self._prefixes:
                self._prefixes.bring(prompt, self._pace.rate)
            self._scheduler.add(sequence)
        generation.prepared_s = time.monotonic() - began
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
        self._draft()
        batch = max(MIN_BATCH_ROWS, self._costs.rows_within(BATCH_STEP_S, sizes.MAX_RUNNING))
        budget = Budget(self._pace.budget, self._pace.rhythm, sizes.MAX_SEQUENCES, batch)
        began = time.monotonic()
        step = self._scheduler.schedule(budget, began)
        self._prepare(step)
        if step.chunks and self._decode(step.chunks):
            prompt_tokens = sum(c.count for c in step.chunks if not c.sequence.prompt_done)
            generated = self._postprocess(step.chunks)
            self._rates.observe(prompt_tokens, generated, time.monotonic() - began)
        self._unchecked = True
        if self._checked:
            self._check_books()
        self.stats = self._take_stats()

    def rest(self, idle_s: float) -> float | None:
        """What is to be done while nothing else is: compare the books, store prefixes.

        idle_s: for how long nothing was to do. Returns after how many seconds to come again; None: not before there
        was work.
        """
        if self._unchecked:
            self._check_books()
        if self._prefixes is None or not self._prefixes.unsaved:
            return None
        if idle_s < SETTLED_S:
            return SETTLED_S - idle_s
        self._prefixes.save(self._pace.rate)
        return None

    def trim(self) -> int:
        """Drop what takes memory and can be made again: states that were set aside, compiled grammars. Nothing is set
        aside until `relax`. Returns the bytes of the states.

        States that are kept in the context stay: their cells are part of one buffer that the model takes as a whole, so
        dropping them would free nothing, and cost the time to compute them.
        """
        self._trimmed = self._aside.closed = True
        self._grammars.forget()
        return self._aside.empty()

    def relax(self) -> None:
        """There is memory again."""
        self._trimmed = self._aside.closed = False

    def pause_batch(self, paused: bool) -> None:
        """Compute nothing for batch jobs while paused."""
        self._scheduler.batch_paused = paused

    def take_news(self) -> list[News]:
        """What has come since the last call."""
        news, self._news = self._news, []
        return news

    def close(self) -> None:
        """Store prefixes, free everything native. Jobs that have not ended get no outcome."""
        if self._prefixes and not self._trimmed:  # copying them out takes memory, and time that there is none of
            self._prefixes.save(self._pace.rate, wait=True)
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

    def _draft(self) -> None:
        """Guess what comes next, where the guess can be taken back and is expected to pay."""
        if not self._sharing:
            return
        running = self._scheduler.running
        able = (s for s in running if s.prompt_done and s.n_pending == 1 and not s.repeatable)
        ready = [s for s in able if not self._scheduler.is_paused(s)]
        for sequence in running:
            sequence.drafts = ()
        for sequence in ready:
            self._generations[sequence].draft(len(ready))

    def _prepare(self, step: StepPlan) -> None:
        for move in step.moves:
            self._do(move, step)
        for sequence in step.admitted:
            self._on_admitted(sequence)

    def _do(self, move: Move, step: StepPlan) -> None:
        native = self._native
        match move:
            case Forget(seq_id):
                native.forget(seq_id)
            case Share(source, target, length):
                native.share(source, target, length)
            case SetAside(sequence, seq_id, length):
                self._counters.set_aside += 1
                if not length or not self._aside.put(sequence, seq_id, length, self._pace.rate):
                    sequence.n_saved = 0
                native.forget(seq_id)
            case BringBack(sequence, seq_id):
                if not self._aside.take(sequence, seq_id):
                    self._begin_anew(sequence, step)

    def _begin_anew(self, sequence: Sequence, step: StepPlan) -> None:
        """Its state is lost: all its tokens are computed again."""
        step.chunks = [chunk for chunk in step.chunks if chunk.sequence is not sequence]
        sequence.n_computed = 0
        self._scheduler.cut(sequence)

    def _on_admitted(self, sequence: Sequence) -> None:
        generation = self._generations[sequence]
        if not generation.was_admitted:
            generation.admitted()
            sequence.n_cached = min(sequence.n_computed, sequence.n_prompt)  # forced tokens behind it may be there, too
            self._counters.prompt_tokens += sequence.n_prompt
            self._counters.cached_tokens += sequence.n_cached
        if sequence.seq_id >= 0:
            self._publish(sequence)

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
        self._learn(chunks, len(rows), time.monotonic() - began)
        return True

    def _fail_step(self, chunks: list[Chunk], error: DecodeError) -> None:
        """Without room nothing was changed: the youngest makes place and the others try again. After any other
        failure the cells of all who took part are in an unknown state."""
        for chunk in chunks:
            self._scheduler.cut(chunk.sequence)
        if error.no_room:
            youngest = max((c.sequence for c in chunks), key=lambda s: s.order)
            self._fail(youngest, NoMemory("the model's context has no room at the moment"))
            return
        for chunk in chunks:
            self._fail(chunk.sequence, ModelUnavailable(f"the model failed to compute: {error}"))

    def _learn(self, chunks: list[Chunk], rows: int, seconds: float) -> None:
        self._counters.decode_steps += 1
        self._pace.observe(rows, seconds)
        if all(chunk.count == 1 and chunk.is_last for chunk in chunks):
            self._costs.observe(rows, seconds)
        self._tuner.observe(rows, seconds)

    def _choose_threads(self, tokens: int) -> None:
        board = self._board.look(time.monotonic())
        if board:
            self._tuner.adapt(board)
        self._native.set_threads(self._tuner.threads(tokens))

    # Postprocess

    def _postprocess(self, chunks: list[Chunk]) -> int:
        """Go on from what was computed; returns how many tokens behind prompts that was, wrong drafts left out."""
        row, generated = -1, 0
        for chunk in chunks:
            row += chunk.count
            sequence = chunk.sequence
            generation = self._generations[sequence]
            before = sequence.n_computed if sequence.prompt_done else None
            sequence.n_computed += chunk.count
            generation.decode_steps += generation.has_begun
            self._publish(sequence)
            if chunk.is_last:
                self._advance(generation, row, chunk.drafts)
            row += len(chunk.drafts)
            generated += sequence.n_computed - before if before is not None else 0
        return generated

    def _publish(self, sequence: Sequence) -> None:
        """Keep its fixed prefix, once that is computed."""
        if sequence.prefix_tokens and sequence.n_computed >= sequence.prefix_tokens:
            step = StepPlan()
            self._scheduler.publish(sequence, step)
            self._prepare(step)

    def _advance(self, generation: Generation, row: int, drafts: tuple[int, ...]) -> None:
        """Choose the next token from a row of logits, and as many more as the drafts behind it were right about."""
        sequence = generation.sequence
        begin, right = len(sequence.tokens), 0
        try:
            while True:
                logits = self._native.logits(row + right)
                if self.watch:
                    self.watch(sequence, logits)
                generation.advance(logits)
                fresh = tuple(sequence.tokens[begin:])
                right = common_length(fresh, drafts)
                if generation.finish is not None or right < len(fresh) or not drafts:
                    break
        except EdgedError as error:
            self._fail(sequence, error)
            return
        if drafts:
            self._settle_drafts(generation, drafts, right)
        self._report(generation)

    def _settle_drafts(self, generation: Generation, drafts: tuple[int, ...], right: int) -> None:
        """Keep what was right, take back the rest."""
        sequence = generation.sequence
        sequence.n_computed += right
        self._counters.drafted_tokens += len(drafts)
        self._counters.accepted_tokens += right
        if right < len(drafts):
            self._native.cut(sequence.seq_id, sequence.n_computed)
            self._scheduler.cut(sequence)

    def _report(self, generation: Generation) -> None:
        """Say what is new, and let go of it where it has ended."""
        news = News(generation.ticket, *generation.take_text())
        if generation.finish is not None:
            news.outcome = generation.completion()
            self._counters.generated_tokens += generation.n_completion
            self._counters.forced_tokens += generation.n_forced
            self._release(generation.sequence, ended_well=True)
        if news.text or news.outcome:
            self._news.append(news)

    def _fail(self, sequence: Sequence, error: EdgedError) -> None:
        self._news.append(News(self._generations[sequence].ticket, outcome=error))
        self._release(sequence)

    def _release(self, sequence: Sequence, *, ended_well: bool = False) -> None:
        """Let go of a sequence, here, in the books and in llama.cpp. One that ended well leaves its state to others."""
        self._generations.pop(sequence).close()
        self._aside.drop(sequence)
        step = StepPlan()
        if ended_well and sequence in self._scheduler.running:
            self._scheduler.retire(sequence, step)
        else:
            self._scheduler.remove(sequence, step)
        self._prepare(step)

    def _check_books(self) -> None:
        check.books(self._scheduler, self._native)
        self._unchecked = False

    def _take_stats(self) -> LlamaStats:
        counters, scheduler = self._counters, self._scheduler
        return LlamaStats(
            name=self.spec.name,
            state=ModelState.READY,
            load_ms=self._load_ms,
            cells=scheduler.cells.total,
            cells_used=scheduler.cells.total - scheduler.cells.free,
            running=len(scheduler.running),
            waiting=sum(1 for _ in scheduler.waiting),
            prefixes=sum(k.fixed for k in scheduler.kept),
            kept=len(scheduler.kept),
            threads=self._tuner.count,
            prompt_tokens=counters.prompt_tokens,
            cached_tokens=counters.cached_tokens,
            generated_tokens=counters.generated_tokens,
            forced_tokens=counters.forced_tokens,
            drafted_tokens=counters.drafted_tokens,
            accepted_tokens=counters.accepted_tokens,
            decode_steps=counters.decode_steps,
            set_aside=counters.set_aside,
            prefill_tokens_s=self._rates.prefill_tokens_s,
            decode_tokens_s=self._rates.decode_tokens_s,
            batch_tokens_s=self._rates.batch_tokens_s,
        )


def _rows(chunk: Chunk) -> list[Row]:
    """A chunk as llama.cpp wants it; its last token has logits if nothing is left after it, and so have the drafts."""
    sequence, end = chunk.sequence, chunk.start + chunk.count
    tokens = [*sequence.tokens[chunk.start : end], *chunk.drafts]
    wanted = end - 1 if chunk.is_last else end
    return [(t, i, sequence.seq_id, i >= wanted) for i, t in enumerate(tokens, chunk.start)]
