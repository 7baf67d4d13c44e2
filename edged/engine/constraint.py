"""Grammars: which tokens may come next, and which must (llguidance: masks by a lexer and an Earley parser over the
vocabulary's trie; forced tokens are those of the only text the grammar leaves, as far as they are canonical)."""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from typing import Any

import llama_cpp as lc
import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from edged.engine.llama import Llama
from edged.errors import BadRequest, Internal

# Compiled grammars kept per model: an agent has one or two; the rest is for schemas that callers send.
KEPT_GRAMMARS = 16
# A grammar may come from a request (response_schema), so what it can cost is bounded. A lexer state takes up to 2 kB:
# 40 MB at most, where llguidance's own default allows 500.
MAX_LEXER_STATES = 20_000
# Symbols. A schema of 2,000 text fields stays below it and takes 0.3 s, during which no model computes.
MAX_GRAMMAR_SIZE = 50_000


class Grammars:
    """Compiled grammars of one model, least recently used ones dropped."""

    def __init__(self, native: Llama) -> None:
        self._native = native
        self._tokenizer: Any = None
        self._limits = LLParserLimits(
            max_lexer_states=MAX_LEXER_STATES,
            max_grammar_size=MAX_GRAMMAR_SIZE,
            verbose_errors=False,  # a reason is shown to callers and must not quote other parts of the grammar
        )
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def constraint(self, grammar: str) -> Constraint:
        """A fresh constraint at the grammar's start.

        Raises:
            BadRequest: with llguidance's reason.
        """
        matcher = self._compiled.get(grammar)
        if matcher is None:
            matcher = self._compiled[grammar] = self._compile(grammar)
            if len(self._compiled) > KEPT_GRAMMARS:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return Constraint(matcher.deep_copy(), self._native.n_vocab)

    def clear(self) -> None:
        """Let go of everything that refers to the model's vocabulary."""
        self._compiled.clear()
        self._tokenizer = None

    def _compile(self, grammar: str) -> LLMatcher:
        if self._tokenizer is None:
            self._tokenizer = _tokenizer(self._native)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise BadRequest(f"the grammar is not usable: {matcher.get_error().strip()}")
        return matcher


class Constraint:
    """The state of one output within its grammar."""

    def __init__(self, matcher: LLMatcher, n_vocab: int) -> None:
        self._matcher = matcher
        self._n_vocab = n_vocab
        self._mask = np.zeros(-(-n_vocab // 32), np.uint32)

    def forced(self) -> list[int]:
        """Accept and return the tokens that must come now; often none."""
        tokens = self._matcher.compute_ff_tokens()
        # A spelled control token is forced as one token but is no text to the grammar; what it does not take is left
        # to the mask. Handing it over would put the matcher into its error state for good.
        taken = tokens[: self._matcher.validate_tokens(tokens)]
        if taken and not self._matcher.consume_tokens(taken):
            raise self._failure()
        return taken

    def allowed(self) -> NDArray[np.intp]:
        """Token ids that may come next; shape [number of them], at least one.

        Raises:
            BadRequest: the grammar became too costly at this place.
        """
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        if self._matcher.is_error():
            raise self._failure()
        bits = np.unpackbits(self._mask.view(np.uint8), count=self._n_vocab, bitorder="little")
        ids = np.flatnonzero(bits.view(np.bool_))  # six times faster than on bytes
        if not len(ids):
            raise Internal("the grammar allows no token and no end")
        return ids

    def accept(self, token: int) -> None:
        """The token that was chosen among the allowed ones."""
        if not self._matcher.consume_token(token):
            raise self._failure()

    @property
    def complete(self) -> bool:
        """Whether nothing can follow."""
        return bool(self._matcher.is_stopped())

    def _failure(self) -> BadRequest:
        return BadRequest(f"the grammar cannot be followed: {self._matcher.get_error().strip()}")


def _tokenizer(native: Llama) -> Any:
    """llguidance's view of a vocabulary; takes about a second for 152k tokens, once after each load.

    Control tokens are marked (0xff in front), so that a grammar means them only by name. User-defined ones such as
    `<tool_call>` are ordinary text: llama.cpp tokenises them out of plain text always, so the same grammar text forces
    that one token where a vocabulary has it and its spelling where not. (Marked, as llguidance's own function does
    it, the forced token would be one that the grammar does not take.)
    """
    special = [native.is_control(t) for t in range(native.n_vocab)]
    pieces = [native.read_piece(t) for t in range(native.n_vocab)]
    address = ctypes.cast(lc.llama_cpp._lib.llama_tokenize, ctypes.c_void_p).value
    return LLTokenizer.from_llamacpp(  # type: ignore[attr-defined]  # missing in its type stubs
        tokens=[b"\xff" + p if s else p for p, s in zip(pieces, special, strict=True)],
        vocab_ptr=native.vocab,
        tokenize_fptr=address,
        eos_token=[t for t in range(native.n_vocab) if native.is_eog(t)],
        slices=None,
    )
