"""From segments to tokens, and from a job to a sequence. Pure: the vocabulary is handed in.

The tokens are those of the whole text, as in the model's training, except that nothing spelled in a literal segment
becomes a token that structures a dialogue: a user who writes `<|im_end|>` writes ten characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby, pairwise
from typing import Protocol

from edged.engines.llama.sequence import Sequence, common_length
from edged.errors import BadRequest, ContextExceeded
from edged.types import Job, Priority, Segment


class Tokenizer(Protocol):
    """What is needed of a model's vocabulary; implemented by `llama.Llama` and by the tests' tables."""

    def tokenize(self, text: str, *, special: bool) -> list[int]: ...

    def piece(self, token: int, *, special: bool) -> bytes: ...

    def is_mark(self, token: int) -> bool: ...


def new_sequence(job: Job, order: int, vocabulary: Tokenizer, limit: int) -> Sequence:
    """A job as the scheduler sees it. Its worst case is what `max_tokens` allows, or what the limit leaves after the
    prompt if that is less: such an answer then ends with Finish.LENGTH.

    Args:
        order: larger than that of all jobs before.
        limit: most tokens of prompt and answer.

    Raises:
        ContextExceeded: the prompt is too long.
        BadRequest: there is nothing to do.
    """
    prompt = encode(job.prefix + job.turn, vocabulary)
    if not prompt:
        raise BadRequest("the prompt is empty")
    if job.max_tokens < 1:
        raise BadRequest("max_tokens must be at least 1")
    if len(prompt) >= limit:
        raise ContextExceeded(len(prompt), limit - 1)
    shared = common_length(prompt, encode(job.prefix, vocabulary)) if job.prefix else 0
    return Sequence(
        order=order,
        interactive=job.priority is Priority.INTERACTIVE,
        tokens=prompt,
        n_prompt=len(prompt),
        prefix_tokens=min(shared, len(prompt) - 1),
        max_tokens=min(job.max_tokens, limit - len(prompt)),
        repeatable=job.sampling.seed is not None,
    )


def encode(segments: Iterable[Segment], vocabulary: Tokenizer) -> list[int]:
    """Tokens of the segments: in one go where that lets no literal text become a mark, else piece by piece."""
    joined = _join(segments)
    tokens = vocabulary.tokenize("".join(s.text for s in joined), special=True)
    if _marks_are_ours(tokens, joined, vocabulary):
        return tokens
    return [token for segment in joined for token in _encode_alone(segment, vocabulary)]


def _join(segments: Iterable[Segment]) -> list[Segment]:
    """Neighbours of one kind become one segment: they are one text."""
    return [Segment("".join(s.text for s in group), kind) for kind, group in groupby(segments, lambda s: s.literal)]


def _marks_are_ours(tokens: list[int], segments: list[Segment], vocabulary: Tokenizer) -> bool:
    """Whether no mark among the tokens touches a byte of a literal segment. False where that cannot be told, because
    the pieces do not add up to the text (a vocabulary that normalises)."""
    if not any(s.literal for s in segments) or not any(vocabulary.is_mark(t) for t in tokens):
        return True
    pieces = [vocabulary.piece(t, special=True) for t in tokens]
    literal = b"".join((b"\1" if s.literal else b"\0") * len(_bytes(s.text)) for s in segments)
    text, rebuilt = b"".join(_bytes(s.text) for s in segments), b"".join(pieces)
    if rebuilt == b" " + text:  # some vocabularies put a space in front
        literal = b"\0" + literal
    elif rebuilt != text:
        return False
    at = 0
    for token, piece in zip(tokens, pieces, strict=True):
        if vocabulary.is_mark(token) and b"\1" in literal[at : at + len(piece)]:
            return False
        at += len(piece)
    return True


def _encode_alone(segment: Segment, vocabulary: Tokenizer) -> list[int]:
    if not segment.literal:
        return vocabulary.tokenize(segment.text, special=True)
    tokens = vocabulary.tokenize(segment.text, special=False)
    spelled = {_spelling(t, vocabulary) for t in tokens if vocabulary.is_mark(t)}
    if not spelled:
        return tokens
    # User-defined tokens are recognised whatever is asked of llama.cpp; cut in two, their spelling is plain text. A
    # mark of a single character cannot be cut: it is left out.
    parts = _cut_inside(segment.text, spelled)
    tokens = [t for part in parts for t in vocabulary.tokenize(part, special=False)]
    return [t for t in tokens if not vocabulary.is_mark(t)]


def _spelling(token: int, vocabulary: Tokenizer) -> str:
    return vocabulary.piece(token, special=True).decode("utf-8", "replace").strip()


def _cut_inside(text: str, spelled: Iterable[str]) -> list[str]:
    """The text, cut after the first character of each spelling; longer spellings are found before their beginnings."""
    pattern = "|".join(re.escape(s) for s in sorted(spelled, key=len, reverse=True))
    cuts = [0, *(m.start() + 1 for m in re.finditer(pattern, text)), len(text)]
    return [text[a:b] for a, b in pairwise(cuts) if a < b]


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")
