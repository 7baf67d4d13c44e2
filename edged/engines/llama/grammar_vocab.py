"""A model's vocabulary as grammars use it, made by a thread of its own beside the load of the model."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edged.engines.llama import vocabulary
from edged.engines.llama.bindings import Llama
from edged.engines.llama.llguidance_ffi import GuidanceError, Mask, Tokenizer
from edged.engines.llama.vocabulary import Ids, Vocabulary
from edged.errors import ModelUnavailable

log = logging.getLogger("edged.engines.llama")

# Control tokens that the file takes for text and llama.cpp does not: so many are masked out one by one.
MAX_MASKED = 64
# Kinds of tokens: part of a text, what ends one, and what is neither.
TEXT, END, OTHER = range(3)


class GrammarVocabulary:
    """llguidance's tokenizer of a model, and what its masks need besides.

    The thread reads the file and builds; `bind` gives it the model, with which it proves what it has read, or asks
    llama.cpp and builds once more.

    Control tokens are no text: a grammar means them by name only. User-defined ones such as `<tool_call>` are ordinary
    text: llama.cpp tokenises them out of plain text always, so the same grammar text forces that one token where a
    vocabulary has it and its spelling where not.

    Args:
        path: the model's file; None: nothing is done before `bind`.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._native: Llama | None = None
        self._bound = threading.Event()  # or closed
        self._tokenizer: Tokenizer | None = None
        self._failure: Exception | None = None
        self._sentinel: str | None = None
        self._end = 0
        self._ends = np.zeros(0, np.uint32)
        self._text: Mask | None = None
        self._kinds = b""
        self._thread = threading.Thread(target=self._run, name="edged.grammar_vocab", daemon=True)
        self._thread.start()

    def bind(self, native: Llama) -> None:
        """The model is loaded."""
        self._native = native
        self._bound.set()

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; waits for it. Only after `bind`.

        Raises:
            ModelUnavailable: this vocabulary can follow no grammar.
        """
        self._thread.join()
        if self._tokenizer is None:
            raise ModelUnavailable(f"the model's vocabulary cannot follow a grammar: {self._failure or 'it is closed'}")
        return self._tokenizer

    def empty_mask(self) -> Mask:
        """Room for the bits of all tokens."""
        return np.zeros(len(self._ends), np.uint32)

    def asked_as(self, token: int) -> int | None:
        """The token by which llguidance is asked for this one; None where only its mask tells."""
        kind = self._kinds[token]
        return token if kind == TEXT else self._end if kind == END else None

    def correct(self, mask: Mask) -> None:
        """Make llguidance's mask llama.cpp's: control tokens that the file takes for text are out, and where the output
        may end every token that ends it will do."""
        if self._text is not None:
            mask &= self._text
        if mask[self._end >> 5] >> (self._end & 31) & 1:
            mask |= self._ends

    def close(self) -> None:
        """Let go of the model and of what was made of it; does nothing the second time."""
        bound, self._native = self._native is not None, None
        self._bound.set()
        if bound:  # the thread may be reading in the model
            self._thread.join()
        if self._tokenizer:
            self._tokenizer.close()

    def _run(self) -> None:
        try:
            self._tokenizer = self._make()
        except (GuidanceError, ModelUnavailable) as error:
            self._failure = error
        except Exception as error:
            log.exception("a vocabulary was not made ready for grammars, through a bug")
            self._failure = error

    def _make(self) -> Tokenizer | None:
        read = vocabulary.from_file(self._path) if self._path else None
        tokenizer = Tokenizer(read, self._tokens) if read else None
        self._bound.wait()
        native = self._native
        if native is None:  # closed: it never loaded
            if tokenizer:
                tokenizer.close()
            return None
        self._sentinel = _sentinel(native)
        words = vocabulary.proof(read, native) if read and self._sentinel is not None else None
        masked = _unmarked(read, words) if read and words else None
        if words is None or masked is None:
            if tokenizer:
                tokenizer.close()
            words, masked = vocabulary.from_llama(native), np.zeros(0, np.intp)
            tokenizer = Tokenizer(words, None if self._sentinel is None else self._tokens)
        self._end = words.end
        ends = vocabulary.ends(words, native)
        self._ends = _bits(ends, len(words))
        self._text = ~_bits(masked, len(words)) if len(masked) else None
        kinds = np.where(words.control | (words.lengths == 0), OTHER, TEXT).astype(np.uint8)
        kinds[ends] = END
        self._kinds = kinds.tobytes()
        return tokenizer

    def _tokens(self, text: str) -> list[int] | None:
        """The tokens of a text in the middle of others; None where that cannot be told."""
        native = self._native
        return None if native is None or self._sentinel is None else _in_the_middle(native, self._sentinel, text)


def _unmarked(read: Vocabulary, proven: Vocabulary) -> Ids | None:
    """Control tokens that were built in as text; None where what was built does not do."""
    if (read.control & ~proven.control).any():  # text that no grammar would let through
        return None
    unmarked = np.flatnonzero(proven.control & ~read.control)
    return unmarked if len(unmarked) <= MAX_MASKED else None


def _sentinel(native: Llama) -> str | None:
    """What to put in front of a text so that it is not taken for the beginning of one, which some vocabularies (those
    of SentencePiece) give a space of its own. None where nothing does it."""
    for sentinel in ("", *map(chr, range(1, 32))):
        tokens = _in_the_middle(native, sentinel, "a")
        if tokens and b"".join(vocabulary.piece_of(native, token) for token in tokens) == b"a":
            return sentinel
    return None


def _in_the_middle(native: Llama, sentinel: str, text: str) -> list[int] | None:
    """Tokens of a text behind the sentinel; None where the two grow together."""
    tokens = native.tokenize(sentinel + text, special=False)
    if not sentinel:
        return tokens
    front = native.tokenize(sentinel, special=False)
    return tokens[len(front) :] if tokens[: len(front)] == front else None


def _bits(tokens: Ids, count: int) -> NDArray[np.uint32]:
    """A mask with the bits of these tokens set."""
    bits = np.zeros(-(-count // 32) * 32, np.bool_)
    bits[tokens] = True
    return np.packbits(bits, bitorder="little").view(np.uint32)
