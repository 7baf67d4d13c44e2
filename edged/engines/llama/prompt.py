"""From segments to tokens, and from a job to a sequence. Pure: the vocabulary is handed in.

The tokens are those of the whole text, as in the model's training, except that nothing spelled in a literal segment
becomes a token that structures a dialogue: a user who writes `<|im_end|>` writes ten characters.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable
from collections.abc import Sequence as Row
from itertools import accumulate, groupby, pairwise
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
    prompt, shared = encode_prompt(job.prefix, job.turn, vocabulary)
    if not prompt:
        raise BadRequest("the prompt is empty")
    if job.max_tokens < 1:
        raise BadRequest("max_tokens must be at least 1")
    if len(prompt) >= limit:
        raise ContextExceeded(len(prompt), limit - 1)
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
    """Tokens of the segments. Literal text out of which a mark would become is written piece by piece; what stands
    before and after it keeps the tokens that it has as one text."""
    joined = _join(segments)
    tokens = vocabulary.tokenize("".join(s.text for s in joined), special=True)
    spelling = _spelling_marks(tokens, joined, vocabulary)
    if not spelling:
        return tokens
    if len(joined) == 1:
        return _encode_alone(joined[0], vocabulary)
    parts = groupby(enumerate(joined), lambda each: each[0] if each[0] in spelling else -1)
    return [token for _, part in parts for token in encode([segment for _, segment in part], vocabulary)]


def encode_prompt(prefix: Row[Segment], turn: Row[Segment], vocabulary: Tokenizer) -> tuple[list[int], int]:
    """(tokens of a prompt, how many of them belong to its prefix and can be kept for the next one).

    The prefix has the same tokens whatever the turn holds: both are tokenized apart, in front of the first mark of the
    turn or the last one of the prefix. No token reaches across a mark. A template that writes no mark there has no such
    border; then the prefix's tokens are those that begin the whole.
    """
    if not prefix:
        return encode(turn, vocabulary), 0
    prefix, turn, mark = _border(list(prefix), list(turn), vocabulary)
    fixed = encode(prefix, vocabulary)
    # A mark may also take the spaces in front of it (some vocabularies' attribute lstrip): then this is no border.
    if mark is not None and encode([*prefix, mark], vocabulary) == fixed + encode([mark], vocabulary):
        return fixed + encode(turn, vocabulary), len(fixed)
    tokens = encode([*prefix, *turn], vocabulary)
    return tokens, common_length(tokens, fixed)


def _border(
    prefix: list[Segment], turn: list[Segment], vocabulary: Tokenizer
) -> tuple[list[Segment], list[Segment], Segment | None]:
    """(prefix, turn, the mark that the turn begins with): the border moved to where it cannot move any more; None where
    there is no mark."""
    if turn and not turn[0].literal:
        tokens = vocabulary.tokenize(turn[0].text, special=True)
        if tokens and vocabulary.is_mark(tokens[0]) and turn[0].text.startswith(_spelling(tokens[0], vocabulary)):
            return prefix, turn, Segment(_spelling(tokens[0], vocabulary))
    *before, last = prefix
    marks = [] if last.literal else [t for t in vocabulary.tokenize(last.text, special=True) if vocabulary.is_mark(t)]
    if not marks:
        return prefix, turn, None
    spelling = _spelling(marks[-1], vocabulary)
    at = last.text.rfind(spelling)
    if at < 0 or not (at or before):
        return prefix, turn, None
    head = [Segment(last.text[:at])] if at else []
    return [*before, *head], [Segment(last.text[at:]), *turn], Segment(spelling)


def _join(segments: Iterable[Segment]) -> list[Segment]:
    """Neighbours of one kind become one segment: they are one text."""
    return [Segment("".join(s.text for s in group), kind) for kind, group in groupby(segments, lambda s: s.literal)]


def _spelling_marks(tokens: list[int], segments: list[Segment], vocabulary: Tokenizer) -> set[int]:
    """Which literal segments hold a byte of a mark among the tokens. All of them where that cannot be told, because the
    pieces do not add up to the text (a vocabulary that normalises)."""
    literals = {i for i, segment in enumerate(segments) if segment.literal}
    if not literals or not any(vocabulary.is_mark(t) for t in tokens):
        return set()
    pieces = [vocabulary.piece(t, special=True) for t in tokens]
    text, rebuilt = b"".join(_bytes(s.text) for s in segments), b"".join(pieces)
    at = 0
    if rebuilt == b" " + text:  # some vocabularies put a space in front
        at = -1
    elif rebuilt != text:
        return literals
    ends = list(accumulate(len(_bytes(segment.text)) for segment in segments))
    found = set[int]()
    for token, piece in zip(tokens, pieces, strict=True):
        if vocabulary.is_mark(token) and piece:
            found.update(range(bisect_right(ends, max(at, 0)), bisect_right(ends, at + len(piece) - 1) + 1))
        at += len(piece)
    return found & literals


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
