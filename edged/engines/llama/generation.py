"""One request while the model works on it: what it was given, what came out, when it ends."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from edged.engines.llama.bindings import Llama
from edged.engines.llama.confidence import Confidence, end_logprob
from edged.engines.llama.constraint import Constraint
from edged.engines.llama.drafts import Drafter, Drafting
from edged.engines.llama.logprobs import Trail
from edged.engines.llama.sampler import Logits, logprob, sampler
from edged.engines.llama.sequence import Sequence
from edged.engines.llama.text import TextStream
from edged.engines.thread import Ticket
from edged.errors import ModelUnavailable
from edged.types import Completion, Finish, Job, TokenLogprob


class _Held(NamedTuple):
    """Forced tokens that wait for the row behind the value that they end. rest: see `Confidence.cut`; ends: nothing can
    follow them."""

    tokens: list[int]
    rest: bytes
    ends: bool


class Generation:
    """Turns rows of logits into tokens and tokens into text.

    `finish` is None while it goes on. The tokens are appended to the sequence, which the scheduler reads.
    """

    def __init__(
        self, ticket: Ticket[Job], sequence: Sequence, native: Llama, constraint: Constraint | None, drafting: Drafting
    ) -> None:
        job = ticket.job
        self.ticket = ticket
        self.sequence = sequence
        self.finish: Finish | None = None
        self.n_forced = 0
        self.decode_steps = 0
        self.prepared_s = 0.0  # before it was queued: to tokenise, compile the grammar, bring the prefix from the disk
        self._native = native
        self._constraint = constraint
        self._clipped = False
        self._stream = TextStream(job.stop)
        self._confidence = Confidence(job.confidence_marker, job.listed)
        self._held: _Held | None = None
        # Control tokens are part of the text where someone reads it by its form, and noise in prose.
        self._show_control = job.grammar is not None or job.confidence_marker is not None
        self._trail = Trail(job.logprobs, self._piece) if job.logprobs is not None else None
        self._fresh: list[str] = []
        self._drafter = Drafter(sequence.prefix_tokens, drafting)
        self._admitted_at: float | None = None
        self._first_at: float | None = None
        self._force()
        self._judge()
        # last: it is native, and nobody would free it if one above raised
        self._sampler = sampler(job.sampling, sequence.tokens, sequence.n_prompt)

    @property
    def n_completion(self) -> int:
        """Tokens generated so far, forced ones included."""
        return len(self.sequence.tokens) - self.sequence.n_prompt

    @property
    def has_begun(self) -> bool:
        """Whether the prompt was computed and the first token chosen."""
        return self._first_at is not None

    @property
    def was_admitted(self) -> bool:
        """Whether it has, or had, a place among the sequences."""
        return self._admitted_at is not None

    def admitted(self) -> None:
        """It has got its place among the sequences for the first time."""
        self._admitted_at = time.monotonic()
        # forced tokens after the prompt may be there, too
        self.sequence.n_cached = min(self.sequence.n_computed, self.sequence.n_prompt)

    def draft(self, rows: int) -> None:
        """Set the sequence's drafts: what may come next, by what was said before.

        rows: of the step, without drafts.
        """
        room = self.sequence.max_tokens - self.n_completion - 1  # the last token needs no draft behind it
        if self._held:  # they are certain: the row that is waited for costs no step of its own
            self.sequence.drafts = () if self._held.ends else tuple(self._held.tokens[:room])
            return
        self.sequence.drafts = self._drafter.draft(self.sequence.tokens, rows, room)

    def advance(self, logits: Logits) -> None:
        """Choose the next token, and append it with what the grammar then forces.

        Raises:
            BadRequest: the grammar became too costly.
            ModelUnavailable: the model computes nonsense.
        """
        if self._first_at is None:
            self._first_at = time.monotonic()
        if self.ticket.warm:
            self._end(Finish.LENGTH)
            return
        if self._held:
            self._release(self._held, logits)
            return
        token = self._choose(logits)
        if self._native.is_eog(token):
            self._end(Finish.STOP)
            return
        if self._constraint:
            self._constraint.accept(token)
        self._append(token)
        self._force(behind_sampled=True)
        if not self._held:
            self._judge()

    def take_text(self) -> tuple[str, tuple[TokenLogprob, ...]]:
        """The text that is new since the last call, and the log-probabilities of its tokens where asked for."""
        text = "".join(self._fresh)
        self._fresh.clear()
        return text, self._trail.take(self._stream.given) if self._trail else ()

    def completion(self) -> Completion:
        """The result; only once `finish` is set and the text is taken."""
        if self.finish is None:
            raise ValueError("not finished")
        now = time.monotonic()
        admitted = self._admitted_at or now
        first = self._first_at or now
        return Completion(
            text=self._stream.text,
            finish=self.finish,
            prompt_tokens=self.sequence.n_prompt,
            cached_tokens=self.sequence.n_cached,
            completion_tokens=self.n_completion,
            forced_tokens=self.n_forced,
            decode_steps=self.decode_steps,
            logprob=self._confidence.logprob,
            logprobs=tuple(self._trail.told) if self._trail else (),
            load_ms=self.ticket.load_ms,
            queue_ms=max(0.0, _ms(admitted - self.ticket.called_at - self.prepared_s) - self.ticket.load_ms),
            prefill_ms=_ms(first - admitted + self.prepared_s),
            first_token_ms=_ms(first - self.ticket.called_at),
            decode_ms=_ms(now - first),
        )

    def close(self) -> None:
        """Free the sampler; does nothing the second time."""
        self._sampler.close()

    def _choose(self, logits: Logits) -> int:
        allowed = self._constraint.allowed() if self._constraint else None
        token = self._sampler.pick(logits, allowed)
        if not np.isfinite(logits[token]):  # a damaged file; its answers would look like answers
            raise ModelUnavailable("the model's output is not a number; its file may be damaged")
        if self._confidence.wanted:
            self._confidence.add(logprob(logits, token))
        if self._trail:
            self._trail.measure(logits, token)
        return token

    def _force(self, *, behind_sampled: bool = False) -> None:
        """Append what the grammar leaves no choice about. Nothing is sampled, and all is computed in one step. Where
        log-probabilities are asked for, nothing is forced (see Job).

        Where it ends a value behind a sampled token, it is held until the row of that token is there: the row says
        whether the model wanted the value to end (see `confidence`)."""
        forced = self._constraint.forced() if self._constraint and not self._trail else []
        room = self.sequence.max_tokens - self.n_completion
        if forced and behind_sampled and room > 0 and not self._stream.stopped and self._confidence.wanted:
            rest = self._confidence.cut(b"".join(self._piece(token) for token in forced))
            if rest is not None:
                self._held = _Held(forced, rest, ends=self._constraint is not None and self._constraint.complete)
                return
        self._append_forced(forced)

    def _release(self, held: _Held, logits: Logits) -> None:
        """Weigh what was held, and append it."""
        self._held = None
        self._confidence.add(end_logprob(logits, held.rest, held.tokens[0], self._piece))
        self._append_forced(held.tokens)
        self._judge()

    def _append_forced(self, forced: list[int]) -> None:
        room = self.sequence.max_tokens - self.n_completion
        self._clipped = len(forced) > room
        for token in forced[:room]:
            if self._stream.stopped:  # the text has ended, within this run or before it
                break
            self._append(token)
            self.n_forced += 1

    def _append(self, token: int) -> None:
        self.sequence.tokens.append(token)
        piece = self._piece(token)
        self._confidence.feed(piece)
        self._fresh.append(self._stream.feed(piece))
        if self._trail:
            self._trail.place(piece, self._stream.reach)

    def _piece(self, token: int) -> bytes:
        return self._native.piece(token, special=self._show_control)

    def _judge(self) -> None:
        """End where a stop string came, the grammar is complete or the tokens are used up - whatever is first: an
        answer whose last allowed token completes it is complete."""
        complete = self._constraint is not None and self._constraint.complete and not self._clipped
        if self._stream.stopped or complete:
            self._end(Finish.STOP)
        elif self.n_completion >= self.sequence.max_tokens:
            self._end(Finish.LENGTH)

    def _end(self, finish: Finish) -> None:
        self.finish = finish
        self._fresh.append(self._stream.finish())


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
