"""How sure the board's model was of what it decided in one run, and whether that is enough."""

from __future__ import annotations

import math
from collections.abc import Iterable

from edged.agent.calibration import Calibration
from edged.config import Agent
from edged.tools.toolbox import Toolbox
from edged.types import ToolCall


class Sureness:
    """Of one run.

    calibration: of the model that decides; None: it has none, and the score counts.
    second_look: whether the model may still be asked again with examples.
    """

    def __init__(self, agent: Agent, toolbox: Toolbox) -> None:
        self.calibration: Calibration | None = None
        self.second_look = True
        self._agent, self._toolbox = agent, toolbox
        self._logprobs: list[float] = []
        self._called = False

    def add(self, logprob: float | None, *, called: bool = True) -> None:
        """A decision counts. called: it calls something. logprob: None: nothing was sampled for it."""
        if logprob is not None:
            self._logprobs.append(logprob)
            self._called = self._called or called

    @property
    def score(self) -> float | None:
        """The product of the probabilities of what was sampled; None: nothing was."""
        return math.exp(sum(self._logprobs)) if self._logprobs else None

    @property
    def confidence(self) -> float | None:
        """The probability that the decisions are right; None: nothing was sampled, or no calibration says."""
        if self.calibration is None or (score := self.score) is None:
            return None
        return self.calibration.probability(score, called=self._called)

    def of(self, logprob: float | None, *, called: bool) -> float:
        """What counts of a decision: its probability, or its score. Where nothing was sampled there was nothing to be
        unsure of."""
        score = 1.0 if logprob is None else math.exp(logprob)
        known = self.calibration.probability(score, called=called) if self.calibration else None
        return score if known is None else known

    def least(self, calls: Iterable[ToolCall]) -> float:
        """How sure the model has to be of these calls; 0: they are made in any case."""
        wanted = self._agent.min_confidence
        if wanted != "auto":
            return wanted
        writes = any(self._toolbox.is_write(call.name) for call in calls)
        return self.calibration.auto if self.calibration is not None and writes else 0.0

    def lacks(self, calls: tuple[ToolCall, ...], logprob: float | None) -> str | None:
        """What the calls lack, in words; None: they may be made."""
        least, sure = self.least(calls), self.of(logprob, called=True)
        if not calls or sure >= least:
            return None
        what = "score" if self.calibration is None else "confidence"
        return f"{what} {sure:.2f} is below min_confidence {least:.2f}"
