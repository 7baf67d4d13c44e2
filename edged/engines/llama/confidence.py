"""How sure a model was of what it chose, and of what a grammar chose for it. Pure.

What a grammar forces is not sampled, so nothing would show that a value ended where the model wanted to go on: "0.9"
for an integer is 0, and the model was sure of its 0. So where a value's end is forced, the row behind the value is
looked at once: how much of it does the model give to what is forced?
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import numpy as np

from edged.engines.llama.sampler import Logits

# Tokens of a row that are compared with what is forced, the likeliest ones: the others together weigh next to nothing.
LOOKED_AT = 16
LEAST_SHARE = 1e-30  # of what the model does not want at all: logarithms end there
WORD = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")
QUOTE, BACKSLASH = ord('"'), ord("\\")
NUMBER_BEGINS, NUMBER = frozenset(b"-0123456789"), frozenset(b"0123456789+-.eE")
AFTER_NUMBER = frozenset(b",}])")


class OpenValue:
    """Where a text of JSON stands: inside a string, inside a number, or between values. Text around the JSON does no
    harm as long as it has no quotes."""

    def __init__(self) -> None:
        self._text = bytearray()  # of the value in progress, the quote before it included
        self._in_word = False  # digits in a name are no number
        self._in_string = self._escaped = False

    @property
    def _in_number(self) -> bool:
        return bool(self._text) and self._text[0] in NUMBER_BEGINS

    def feed(self, piece: bytes) -> None:
        """More of the text."""
        for byte in piece:
            if self._in_string:
                self._text.append(byte)
                self._in_string = byte != QUOTE or self._escaped
                self._escaped = byte == BACKSLASH and not self._escaped
            elif byte == QUOTE:
                self._text, self._in_string, self._escaped = bytearray(b'"'), True, False
            elif (byte in NUMBER_BEGINS and not self._in_word) or (self._in_number and byte in NUMBER):
                self._text = bytearray([*self._text, byte] if self._in_number else [byte])
            else:
                self._text = bytearray()
                self._in_word = byte in WORD or (self._in_word and byte in NUMBER)

    def rest(self, forced: bytes) -> tuple[bytes, bytes] | None:
        """What is forced as far as the value goes, and the whole value; None where no value is in progress or its end
        is not forced. The rest of a string has the quote that ends it; that of a number is often empty."""
        if self._in_string:
            end = self._end_of_string(forced)
            is_name = forced[end:].lstrip()[:1] == b":"
            return None if end == 0 or is_name else (forced[:end], bytes(self._text) + forced[:end])
        rest = forced[: len(forced) - len(forced.lstrip(bytes(NUMBER)))]
        return (rest, bytes(self._text) + rest) if self._in_number and len(rest) < len(forced) else None

    def _end_of_string(self, forced: bytes) -> int:
        """How many of the bytes belong to it; 0: they do not end it."""
        escaped = self._escaped
        for i, byte in enumerate(forced):
            if byte == QUOTE and not escaped:
                return i + 1
            escaped = byte == BACKSLASH and not escaped
        return 0


class Confidence:
    """Sums log-probabilities for texts that begin with a marker (a tool call), while the output begins with the marker,
    or may still come to.

    Args:
        marker: None: never; empty: always.
        listed: values that were chosen from a list, as compact JSON; their end is not looked at.
    """

    def __init__(self, marker: str | None, listed: frozenset[bytes] = frozenset()) -> None:
        self._marker = marker.encode() if marker is not None else None
        self._listed = listed
        self._seen = b""
        self._value = OpenValue()
        self._sum: float | None = None
        self.wanted = marker is not None

    def add(self, logprob: float) -> None:
        """The log-probability of the sampled token whose piece comes next, or of the end of a value."""
        self._sum = logprob + (self._sum or 0.0)

    def feed(self, piece: bytes) -> None:
        """A piece of the output, sampled or forced."""
        if self._marker is None or not self.wanted:
            return
        self._value.feed(piece)
        if len(self._seen) < len(self._marker):
            self._seen = (self._seen + piece)[: len(self._marker)]
            self.wanted = self._marker.startswith(self._seen)

    def cut(self, forced: bytes) -> bytes | None:
        """What is forced of the value in progress, where it is the grammar that ends it; None: nothing to look at."""
        if not self.wanted or (found := self._value.rest(forced)) is None:
            return None
        rest, value = found
        return None if _compact(value) in self._listed else rest

    @property
    def logprob(self) -> float | None:
        """The sum; None where the output does not begin with the marker or nothing was sampled."""
        return self._sum if self.wanted and self._seen == self._marker else None


def end_logprob(logits: Logits, rest: bytes, forced: int, piece: Callable[[int], bytes]) -> float:
    """The log-probability, under the whole row behind a value, that the value goes on and ends as the grammar has it,
    however the model would cut that into tokens.

    Args:
        rest: see `OpenValue.rest`.
        forced: the token that is forced.
        piece: bytes of a token.
    """
    ids = np.argpartition(logits, -LOOKED_AT)[-LOOKED_AT:] if len(logits) > LOOKED_AT else np.arange(len(logits))
    agreed = {forced, *(int(i) for i in ids if _agrees(piece(int(i)), rest))}
    shares = np.exp(logits - logits.max(), dtype=np.float64)
    share = float(shares[list(agreed)].sum() / shares.sum())
    return math.log(max(share, LEAST_SHARE))


def _agrees(piece: bytes, rest: bytes) -> bool:
    if rest:
        return piece.startswith(rest) or (bool(piece) and rest.startswith(piece))
    after = piece.lstrip()  # a number ends with what may follow one
    return bool(piece) and (not after or after[0] in AFTER_NUMBER)


def _compact(value: bytes) -> bytes:
    try:
        return msgspec.json.encode(msgspec.json.decode(value))
    except msgspec.DecodeError:
        return value
