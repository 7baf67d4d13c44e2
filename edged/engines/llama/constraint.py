"""Grammars: which tokens may come next, and which must (llguidance: masks by a lexer and an Earley parser over the
vocabulary's trie; forced tokens are those of the only text the grammar leaves, as far as they are canonical)."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from edged.engines.llama.bindings import Llama
from edged.engines.llama.grammar_vocab import GrammarVocabulary
from edged.engines.llama.limits import LIMITS
from edged.engines.llama.llguidance_ffi import GuidanceError, Mask, Matcher
from edged.errors import BadRequest, Internal

# Compiled grammars kept per model: an agent has one or two; the rest is for schemas that callers send.
KEPT_GRAMMARS = 16
# Where at most one of so many words of a mask has bits set, looking for those words first is faster (at 152k tokens
# 15 us against 45), else unpacking all of it (45 to 150 us against up to 2 ms).
SPARSE = 8


class Grammars:
    """Compiled grammars of one model, least recently used ones dropped.

    Args:
        vocabulary: begun before the model was loaded, so that it is ready when the first grammar comes.
    """

    def __init__(self, native: Llama, vocabulary: GrammarVocabulary | None = None) -> None:
        self._vocabulary = vocabulary or GrammarVocabulary()
        self._vocabulary.bind(native)
        self._compiled: OrderedDict[str, Matcher] = OrderedDict()

    def constraint(self, grammar: str) -> Constraint:
        """A fresh constraint at the grammar's start.

        Raises:
            BadRequest: with llguidance's reason.
            ModelUnavailable: no grammar can be followed with the model's vocabulary.
        """
        matcher = self._compiled.get(grammar)
        if matcher is None:
            matcher = self._compiled[grammar] = self._compile(grammar)
            if len(self._compiled) > KEPT_GRAMMARS:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return Constraint(matcher.clone(), self._vocabulary)

    def forget(self) -> None:
        """Drop the compiled grammars; constraints that were made of them go on."""
        for matcher in self._compiled.values():
            matcher.close()
        self._compiled.clear()

    def clear(self) -> None:
        """Let go of everything that refers to the model's vocabulary."""
        self.forget()
        self._vocabulary.close()

    def _compile(self, grammar: str) -> Matcher:
        try:
            matcher = self._vocabulary.tokenizer.matcher(grammar, LIMITS)
            first = matcher.clone()  # some show only at their beginning that they have none
            first.forced()
            first.write_mask(self._vocabulary.empty_mask())
        except GuidanceError as error:
            raise BadRequest(f"the grammar is not usable: {error}") from None
        return matcher


class Constraint:
    """The state of one output within its grammar."""

    def __init__(self, matcher: Matcher, vocabulary: GrammarVocabulary) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    def forced(self) -> list[int]:
        """Accept and return the tokens that must come now; often none."""
        try:
            tokens = self._matcher.forced()
            # A spelled control token is forced as one token but is no text to the grammar; what it does not take is
            # left to the mask. Handing it over would put the matcher into its error state for good.
            taken = tokens[: self._matcher.fitting(tokens)] if tokens else []
            if taken:
                self._matcher.accept(taken)
        except GuidanceError as error:
            raise _failure(error) from None
        return taken

    def allowed(self) -> Allowed:
        """The tokens that may come next, until one is accepted."""
        return Allowed(self._matcher, self._vocabulary)

    def accept(self, token: int) -> None:
        """The token that was chosen among the allowed ones."""
        try:
            self._matcher.accept([token])
        except GuidanceError as error:
            raise _failure(error) from None

    @property
    def complete(self) -> bool:
        """Whether nothing can follow."""
        return self._matcher.stopped


class Allowed:
    """The tokens that may come next. Asking for one costs some microseconds, all of them up to half a millisecond: a
    walk through the vocabulary, and more where most of it is allowed.

    Raises (everything here):
        BadRequest: the grammar became too costly at this place.
    """

    def __init__(self, matcher: Matcher, vocabulary: GrammarVocabulary) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    def holds(self, token: int) -> bool:
        """Whether the token is surely among them. False: `ids` knows."""
        asked = self._vocabulary.asked_as(token)
        if asked is None:
            return False
        try:
            return self._matcher.fitting([asked]) == 1
        except GuidanceError as error:
            raise _failure(error) from None

    @property
    def ids(self) -> NDArray[np.intp]:
        """All of them; shape [number of them], at least one."""
        mask = self._vocabulary.empty_mask()
        try:
            self._matcher.write_mask(mask)
        except GuidanceError as error:
            raise _failure(error) from None
        self._vocabulary.correct(mask)
        ids = tokens_of(mask)
        if not len(ids):
            raise Internal("the grammar allows no token and no end")
        return ids


def tokens_of(mask: Mask) -> NDArray[np.intp]:
    """The tokens whose bits are set."""
    words = np.flatnonzero(mask)
    if len(words) * SPARSE >= len(mask):
        return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little").view(np.bool_))
    found = np.flatnonzero(np.unpackbits(mask[words].view(np.uint8), bitorder="little").view(np.bool_))
    places: NDArray[np.intp] = (words[found >> 5] << 5) + (found & 31)
    return places


def _failure(error: GuidanceError) -> BadRequest:
    return BadRequest(f"the grammar cannot be followed: {error}")
