"""How a pull fails.

ModelUnavailable
└── PullFailed           asking again changes nothing
    └── Unreachable          the network was in the way: asking again may help

SourceFailed never leaves this package: the next source is tried.
"""

from __future__ import annotations

from edged.errors import ModelUnavailable


class PullFailed(ModelUnavailable):
    """The model could not be brought here; what arrived of it is kept unless it was wrong."""


class Unreachable(PullFailed):
    """No source could be reached, or the link broke; pulling again goes on where this ended."""

    retryable = True


class SourceFailed(Exception):
    """One source does not give the bytes.

    Args:
        reason: why, in words for the user.
        retryable: whether the same source may give them later.
    """

    def __init__(self, reason: str, *, retryable: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retryable = retryable
