"""One loaded embedding model and its jobs: a step is one batch of one job."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from edged.engines.kind import ModelStats
from edged.engines.onnx.batches import batches
from edged.engines.onnx.model import EmbeddingModel
from edged.engines.thread import ModelRunner, News, Outcome, Ticket
from edged.errors import BadRequest, ContextExceeded, EdgedError
from edged.host.clock import Stopwatch
from edged.types import Embeddings, EmbedJob, ModelSpec, ModelState


class OnnxStats(ModelStats, frozen=True, kw_only=True):
    """See ModelStats. Texts and tokens count since the model was loaded.

    provider: what computes it; offered: what this onnxruntime has; passed_over: why others of them do not.
    context: most tokens of a text. dimensions: of a vector; None: the file does not tell.
    running: jobs it is at.
    """

    provider: str
    offered: tuple[str, ...]
    passed_over: dict[str, str]
    context: int
    dimensions: int | None
    running: int
    texts: int
    prompt_tokens: int


class _Work:
    """A job: its texts as tokens, and the batches that are left; None: it is not encoded yet."""

    def __init__(self, ticket: Ticket[EmbedJob]) -> None:
        self.ticket = ticket
        self.tokens: list[list[int]] = []
        self.batches: deque[list[int]] | None = None
        self.vectors: dict[int, bytes] = {}


class EmbeddingRunner(ModelRunner[EmbedJob]):
    """A model that is loaded.

    Args:
        threads: to compute with.
        goes_on: called while a step lasts, for the watchdog.

    Raises:
        ModelUnavailable: as EmbeddingModel.
    """

    def __init__(self, spec: ModelSpec, threads: int, goes_on: Callable[[], bool]) -> None:
        watch = Stopwatch()
        self.spec = spec
        self._model = EmbeddingModel(spec, threads)
        self._load_ms = watch.ms()
        self._goes_on = goes_on
        self._works: deque[_Work] = deque()
        self._news: list[News] = []
        self._texts = self._tokens = 0
        self.stats = self._take_stats()

    @property
    def has_work(self) -> bool:
        """See ModelRunner."""
        return bool(self._works)

    @property
    def tickets(self) -> list[Ticket[EmbedJob]]:
        """See ModelRunner."""
        return [work.ticket for work in self._works]

    def submit(self, ticket: Ticket[EmbedJob]) -> None:
        """See ModelRunner."""
        self._works.append(_Work(ticket))
        self.stats = self._take_stats()

    def cancel(self, ticket: Ticket[EmbedJob]) -> bool:
        """See ModelRunner."""
        before = len(self._works)
        self._works = deque(work for work in self._works if work.ticket is not ticket)
        self.stats = self._take_stats()
        return len(self._works) < before

    def step(self) -> None:
        """One batch of the job whose turn it is: a long one does not hold up a short one."""
        work = self._works.popleft()
        outcome: Outcome | EdgedError | None
        try:
            outcome = self._advance(work)
        except EdgedError as error:
            outcome = error
        if outcome is None:
            self._works.append(work)
        else:
            self._news.append(News(work.ticket, outcome=outcome))
        self.stats = self._take_stats()

    def take_news(self) -> list[News]:
        """See ModelRunner."""
        news, self._news = self._news, []
        return news

    def close(self) -> None:
        """See ModelRunner. The session goes with its last reference."""
        self._works.clear()
        del self._model

    def _advance(self, work: _Work) -> Embeddings | None:
        """Encode a job, or compute its next batch; what came of it once it is whole."""
        if work.batches is None:
            self._encode(work)
            return None
        batch = work.batches.popleft()
        texts = [work.tokens[i] for i in batch]
        for i, vector in zip(batch, self._model.vectors(texts, unit=work.ticket.job.normalise), strict=True):
            work.vectors[i] = vector.astype("<f4").tobytes()
        self._texts += len(batch)
        self._tokens += sum(len(work.tokens[i]) for i in batch)
        if work.batches:
            return None
        _check_dimensions(work.ticket.job.dimensions, len(work.vectors[0]) // 4)  # where the file did not tell
        vectors = tuple(work.vectors[i] for i in range(len(work.tokens)))
        return Embeddings(vectors=vectors, tokens=sum(map(len, work.tokens)))

    def _encode(self, work: _Work) -> None:
        job, model = work.ticket.job, self._model
        if model.dimensions is not None:
            _check_dimensions(job.dimensions, model.dimensions)
        for i, text in enumerate(job.texts):
            ids = model.encode(text)
            if len(ids) > model.context and job.truncate:
                ids = [*ids[: model.context - 1], ids[-1]]  # the last one is the model's own: texts end with it
            if len(ids) > model.context:
                raise ContextExceeded(len(ids), model.context, f"input[{i}]" if len(job.texts) > 1 else "the input")
            if not ids:
                raise BadRequest(f"input[{i}]: has no token in it")
            work.tokens.append(ids)
            self._goes_on()
        work.batches = deque(batches([len(ids) for ids in work.tokens], most_tokens=model.batch_tokens))

    def _take_stats(self) -> OnnxStats:
        model = self._model
        return OnnxStats(
            name=self.spec.name,
            state=ModelState.READY,
            load_ms=self._load_ms,
            threads=model.threads,
            provider=model.provider,
            offered=model.offered,
            passed_over=dict(model.passed_over),
            context=model.context,
            dimensions=model.dimensions,
            running=len(self._works),
            texts=self._texts,
            prompt_tokens=self._tokens,
        )


def _check_dimensions(wanted: int | None, has: int) -> None:
    if wanted is not None and wanted != has:
        raise BadRequest(f"dimensions: the model makes vectors of {has}, which cannot be cut: leave it out")
