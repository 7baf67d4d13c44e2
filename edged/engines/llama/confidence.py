"""How sure a model was of what it chose, for texts that begin with a marker (a tool call). Pure."""

from __future__ import annotations


class Confidence:
    """Sums log-probabilities while the output begins with the marker, or may still come to.

    Args:
        marker: None: never; empty: always.
    """

    def __init__(self, marker: str | None) -> None:
        self._marker = marker.encode() if marker is not None else None
        self._seen = b""
        self._sum: float | None = None
        self.wanted = marker is not None

    def add(self, logprob: float) -> None:
        """The log-probability of the sampled token whose piece comes next."""
        self._sum = logprob + (self._sum or 0.0)

    def feed(self, piece: bytes) -> None:
        """A piece of the output, sampled or forced."""
        if self._marker is None or not self.wanted or len(self._seen) >= len(self._marker):
            return
        self._seen = (self._seen + piece)[: len(self._marker)]
        self.wanted = self._marker.startswith(self._seen)

    @property
    def logprob(self) -> float | None:
        """The sum; None where the output does not begin with the marker or nothing was sampled."""
        return self._sum if self.wanted and self._seen == self._marker else None
