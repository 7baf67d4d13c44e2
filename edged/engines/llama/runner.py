"""One loaded model and its requests: `step` is schedule, decode, postprocess. Synchronous; the worker calls it."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

from edged.engines.llama import bindings, check, sizes
from edged.engines.llama.bindings import DecodeError, Llama
from edged.engines.llama.constraint import Grammars
from edged.engines.llama.decoder import Decoder
from edged.engines.llama.drafts import Drafting
from edged.engines.llama.generation import Generation
from edged.engines.llama.grammar_vocab import GrammarVocabulary
from edged.engines.llama.merged import as_loaded
from edged.engines.llama.plan import Budget, StepPlan
from edged.engines.llama.prefixes import Prefixes
from edged.engines.llama.prompt import new_sequence
from edged.engines.llama.sampler import Logits
from edged.engines.llama.scheduler import Scheduler
from edged.engines.llama.sequence import Chunk, Sequence, common_length
from edged.engines.llama.snapshots import Key, Snapshots, model_fingerprint
from edged.engines.llama.speed import ModelSpeed
from edged.engines.llama.stats import Counters, LlamaStats, stats_of
from edged.engines.llama.swapped import Mover, Swapped
from edged.engines.thread import ModelRunner, News, Ticket
from edged.errors import EdgedError, ModelUnavailable, NoMemory
from edged.types import Job, ModelSpec

# Sees the logits a token is about to be chosen from; for tests. The row is valid during the call only.
Watch = Callable[[Sequence, Logits], None]
# Prefixes are stored when nothing was to do for so long, in seconds: copying a state out takes the engine ten
# milliseconds, which no request should wait for.
SETTLED_S = 1.0
# A step of batch generations alone should not last longer, in seconds: an interactive request that comes meanwhile
# waits for its end. Fewer rows waste what rows of a step share: on two x86 cores four a step are 5 % slower than eight.
BATCH_STEP_S = 0.05
MIN_BATCH_ROWS = 4


class Runner(ModelRunner[Job]):
    """A model that is loaded. See ModelRunner.

    Args:
        threads, tuned: see Decoder.
        snapshots: where states of prefixes outlive the model; None: nowhere.
        on_progress: called with 0..1 while the model loads; False aborts.
        checked: compare the books with llama.cpp's after every step, not only when idle.

    Raises:
        ModelUnavailable: with llama.cpp's reason.
    """

    stats: LlamaStats

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
        self._loaded = spec = as_loaded(spec)
        vocabulary = GrammarVocabulary(Path(spec.path))  # reads the vocabulary while llama.cpp loads the weights
        try:
            self._native = Llama(
                spec.path,
                sizes.context_cells(spec.context),
                threads,
                on_progress,
                kv_type=spec.kv_type,
                adapter=spec.adapter,
            )
        except BaseException:
            vocabulary.close()
            raise
        self._grammars = Grammars(self._native, vocabulary)
        try:
            self._sharing = self._native.can_share()
            self._scheduler = Scheduler(
                self._native.cells, sizes.MAX_RUNNING, sizes.MAX_SEQUENCES, sharing=self._sharing
            )
            self._speed = ModelSpeed(self._native.batch_tokens)
            self._swapped = Swapped(self._native, sizes.SWAPPED_BYTES)
            self._mover = Mover(self._native, self._scheduler, self._swapped, self._speed)
            self._prefixes = self._open_prefixes(snapshots) if snapshots and self._sharing else None
        except BaseException:
            self._grammars.clear()
            self._native.close()
            raise
        self._decoder = Decoder(self._native, self._speed, threads, tuned=tuned, now=began)
        self._drafting = Drafting(self._speed.costs)
        self._limit = min(spec.context, self._native.trained_context, self._native.cells)
        self._generations: dict[Sequence, Generation] = {}
        self._news: list[News] = []
        self._order = count()
        self._checked = checked
        self._trimmed = False
        self._unchecked = False  # something was computed since the books were compared
        self._counters = Counters()
        self._load_ms = round((time.monotonic() - began) * 1000, 3)
        self.stats = self._take_stats()

    def _open_prefixes(self, snapshots: Snapshots) -> Prefixes:
        weights = [model_fingerprint(Path(path)) for path in (self._loaded.path, self._loaded.adapter) if path]
        key = Key(" ".join(weights), bindings.runtime(), self._native.layout)
        return Prefixes(snapshots.open(key), self._native, self._scheduler, self._prepare)

    @property
    def has_work(self) -> bool:
        """See ModelRunner."""
        return self._scheduler.has_work

    def submit(self, ticket: Ticket[Job]) -> None:
        """Queue a job. ContextExceeded, BadRequest: nothing was computed."""
        began, job = time.monotonic(), ticket.job
        sequence = new_sequence(job, next(self._order), self._native, self._limit)
        constraint = self._grammars.constraint(job.grammar) if job.grammar is not None else None
        generation = Generation(ticket, sequence, self._native, None if ticket.warm else constraint, self._drafting)
        self._generations[sequence] = generation
        if generation.finish is None:
            if self._prefixes:
                self._prefixes.bring(sequence.tokens, self._speed.prompt_tokens_s)
            self._scheduler.add(sequence)
        generation.prepared_s = time.monotonic() - began
        self._report(generation)
        self.stats = self._take_stats()

    def cancel(self, ticket: Ticket[Job]) -> bool:
        """See ModelRunner."""
        for sequence, generation in self._generations.items():
            if generation.ticket is ticket:
                self._release(sequence)
                self.stats = self._take_stats()
                return True
        return False

    @property
    def tickets(self) -> list[Ticket[Job]]:
        """See ModelRunner."""
        return [g.ticket for g in self._generations.values()]

    def step(self) -> None:
        """Compute some tokens of those who are next, and go on from their logits."""
        self._draft()
        speed, self._unchecked = self._speed, True
        batch = max(MIN_BATCH_ROWS, speed.costs.rows_within(BATCH_STEP_S, sizes.MAX_RUNNING))
        budget = Budget(speed.budget.budget, speed.budget.rhythm, sizes.MAX_SEQUENCES, batch)
        began = time.monotonic()
        step = self._scheduler.schedule(budget, began)
        self._prepare(step)
        if step.chunks and self._decode(step.chunks):
            prompt_tokens = sum(c.count for c in step.chunks if not c.sequence.prompt_done)
            generated = self._postprocess(step.chunks)
            speed.stepped(prompt_tokens, generated, time.monotonic() - began)
        if self._checked:
            self._check_books()
        self.stats = self._take_stats()

    def rest(self, idle_s: float) -> float | None:
        """See ModelRunner: compare the books, store prefixes."""
        if self._unchecked:
            self._check_books()
        if self._prefixes is None or not self._prefixes.unsaved:
            return None
        if idle_s < SETTLED_S:
            return SETTLED_S - idle_s
        self._prefixes.save(self._speed.prompt_tokens_s)
        return None

    def trim(self) -> int:
        """Drop what takes memory and can be made again: states that were swapped out, compiled grammars. Nothing is
        swapped out until `relax`. Returns the bytes of the states.

        States that are kept in the context stay: their cells are part of one buffer that the model takes as a whole, so
        dropping them would free nothing, and cost the time to compute them.
        """
        self._trimmed = self._swapped.closed = True
        self._grammars.forget()
        return self._swapped.empty()

    def relax(self) -> None:
        """See ModelRunner."""
        self._trimmed = self._swapped.closed = False

    def pause_batch(self, paused: bool) -> None:
        """See ModelRunner."""
        self._scheduler.batch_paused = paused

    def take_news(self) -> list[News]:
        """See ModelRunner."""
        news, self._news = self._news, []
        return news

    def close(self) -> None:
        """See ModelRunner. Prefixes are stored."""
        if self._prefixes and not self._trimmed:  # copying them out takes memory, and time that there is none of
            self._prefixes.save(self._speed.prompt_tokens_s, wait=True)
        for generation in self._generations.values():
            generation.close()
        self._generations.clear()
        self._grammars.clear()  # before the vocabulary they refer to
        self._native.close()

    # Schedule

    def _draft(self) -> None:
        """Guess what comes next, where the guess can be taken back and is expected to pay."""
        if not self._sharing:
            return
        ready = self._scheduler.draftable()
        for sequence in ready:
            self._generations[sequence].draft(len(ready))

    def _prepare(self, step: StepPlan) -> None:
        self._mover.do(step)
        for sequence in step.admitted:
            generation = self._generations[sequence]
            if not generation.was_admitted:
                generation.admitted()
                self._counters.prompt_tokens += sequence.n_prompt
                self._counters.cached_tokens += sequence.n_cached
            if sequence.seq_id >= 0:
                self._publish(sequence)

    # Decode

    def _decode(self, chunks: list[Chunk]) -> bool:
        """Compute the chunks; False where that failed, and those it concerns were told."""
        try:
            self._decoder.decode(chunks)
        except DecodeError as error:
            self._fail_step(chunks, error)
            return False
        self._counters.decode_steps += 1
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
            self._scheduler.context.publish(sequence, step)
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
        self._swapped.drop(sequence)
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
        self._counters.set_aside = self._mover.swapped_out
        return stats_of(
            self.spec.name, self._load_ms, self._scheduler, self._decoder.threads, self._counters, self._speed.rates
        )
