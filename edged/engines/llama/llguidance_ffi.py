"""llguidance by its C interface (llguidance.h): a tokenizer of a vocabulary, matchers of grammars.

Its Python classes hold the interpreter's lock while a tokenizer is built, 0.7 s for 152k tokens, in which the event
loop and a loading model stand still; and they build it only from a vocabulary that llama.cpp has loaded. The C
interface is part of the same library and does neither.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_bool, c_char_p, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any

import llguidance
import numpy as np
from numpy.typing import NDArray

from edged.engines.llama.vocabulary import Vocabulary

# Tokens of JSON strings whose masks are ready beforehand: short ones (where a length is bounded) and all. llguidance's
# own four make masks in some bounded strings a little faster, and take 27 MB more and 0.2 s longer at 152k tokens.
SLICES = (r'[^"\\\x00-\x1F\x7F]{1,10}', r'[^"\\\x00-\x1F\x7F]+')
SPECIAL = b"\xff"  # in front of a token's text: a grammar means it by its name only
ERROR_BYTES = 500
MAX_FORCED = 4096  # tokens forced at once; more are forced in the next step

# None: it cannot be told for this text.
Tokenize = Callable[[str], Sequence[int] | None]
Mask = NDArray[np.uint32]

_TokenizeFn = ctypes.CFUNCTYPE(c_size_t, c_void_p, c_void_p, c_size_t, POINTER(c_uint32), c_size_t)


class _TokenizerInit(ctypes.Structure):
    """LlgTokenizerInitV2."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("vocab_size", c_uint32),
        ("tok_eos", c_uint32),
        ("token_lens", c_void_p),
        ("token_bytes", c_void_p),
        ("tokenizer_json", c_void_p),
        ("tokenize_assumes_string", c_bool),
        ("tokenize_fn", _TokenizeFn),
        ("use_approximate_greedy_tokenize_fn", c_bool),
        ("tokenize_user_data", c_void_p),
        ("slices", c_void_p),
        ("tok_eos_extra", c_void_p),
        ("tok_eos_extra_count", c_uint32),
    )


class Limits(ctypes.Structure):
    """LlgParserLimits: what a grammar may cost. See llguidance.h."""

    _fields_ = (
        ("max_items_in_row", c_size_t),
        ("initial_lexer_fuel", c_uint64),
        ("step_lexer_fuel", c_uint64),
        ("step_max_items", c_size_t),
        ("max_lexer_states", c_size_t),
        ("max_grammar_size", c_size_t),
        ("precompute_large_lexemes", c_bool),
        ("verbose_errors", c_bool),
    )


class _ConstraintInit(ctypes.Structure):
    """LlgConstraintInit."""

    _fields_ = (
        ("tokenizer", c_void_p),
        ("log_buffer_level", c_uint32),
        ("log_stderr_level", c_uint32),
        ("ff_tokens_ok", c_bool),
        ("backtrack_ok", c_bool),
        ("limits", Limits),
    )


def _library() -> Any:
    library = ctypes.CDLL(llguidance._lib.__file__)
    for name, result, *arguments in (
        ("llg_new_tokenizer_v2", c_void_p, c_void_p, c_char_p, c_size_t),
        ("llg_free_tokenizer", None, c_void_p),
        ("llg_constraint_init_set_defaults", None, c_void_p, c_void_p),
        ("llg_new_matcher", c_void_p, c_void_p, c_char_p, c_char_p),
        ("llg_clone_matcher", c_void_p, c_void_p),
        ("llg_free_matcher", None, c_void_p),
        ("llg_matcher_get_error", c_char_p, c_void_p),
        ("llg_matcher_is_error", c_bool, c_void_p),
        ("llg_matcher_is_stopped", c_bool, c_void_p),
        ("llg_matcher_compute_mask_into", c_int32, c_void_p, c_void_p, c_size_t),
        ("llg_matcher_compute_ff_tokens", c_int32, c_void_p, c_void_p, c_size_t),
        ("llg_matcher_validate_tokens", c_int32, c_void_p, c_void_p, c_size_t),
        ("llg_matcher_consume_tokens", c_int32, c_void_p, c_void_p, c_size_t),
        ("llg_matcher_consume_token", c_int32, c_void_p, c_uint32),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


LIBRARY = _library()


class GuidanceError(Exception):
    """llguidance refused, with its reason."""


class Tokenizer:
    """A vocabulary as matchers use it; its matchers must be closed before it. Building takes 0.5 s for 152k tokens and
    40 MB, without the interpreter's lock.

    Args:
        tokenize: the tokens of a text in the middle of others; called whenever a matcher is asked what is forced.
            None: it is not known how this model would write a text, and nothing is forced.

    Raises:
        GuidanceError.
    """

    def __init__(self, vocabulary: Vocabulary, tokenize: Tokenize | None) -> None:
        self.n_vocab = len(vocabulary)
        self.failure: str | None = None
        self._handle: int | None = None
        self._tokenize = tokenize
        self._of_byte = _tokens_of_bytes(vocabulary)
        # a reference: llguidance keeps only the address
        self._callback = _TokenizeFn(self._write_tokens) if tokenize else _TokenizeFn()
        lengths = (vocabulary.lengths + vocabulary.control).astype(np.uint32)
        data = _marked(vocabulary)
        slices = (c_char_p * (len(SLICES) + 1))(*(text.encode() for text in SLICES), None)
        init = _TokenizerInit(
            struct_size=ctypes.sizeof(_TokenizerInit),
            vocab_size=self.n_vocab,
            tok_eos=vocabulary.end,
            token_lens=lengths.ctypes.data,
            token_bytes=data.ctypes.data,
            tokenize_assumes_string=True,  # bytes that are no text it takes apart by itself
            tokenize_fn=self._callback,
            use_approximate_greedy_tokenize_fn=tokenize is None,
            slices=ctypes.addressof(slices),
        )
        reason = ctypes.create_string_buffer(ERROR_BYTES)
        self._handle = LIBRARY.llg_new_tokenizer_v2(ctypes.byref(init), reason, ERROR_BYTES)
        if not self._handle:
            raise GuidanceError(reason.value.decode(errors="replace"))

    def matcher(self, grammar: str, limits: dict[str, int | bool]) -> Matcher:
        """A matcher at the beginning of a grammar: in Lark, or in llguidance's own JSON.

        Raises:
            GuidanceError: with the reason.
        """
        if "\0" in grammar:
            raise GuidanceError("it contains a NUL")
        init = _ConstraintInit()
        LIBRARY.llg_constraint_init_set_defaults(ctypes.byref(init), self._handle)
        init.log_stderr_level = init.log_buffer_level = 0
        for name, value in limits.items():
            setattr(init.limits, name, value)
        kind = b"llguidance" if grammar.startswith("{") else b"lark"
        matcher = Matcher(self, LIBRARY.llg_new_matcher(ctypes.byref(init), kind, grammar.encode()))
        try:
            matcher.check()
        except GuidanceError:
            matcher.close()
            raise
        return matcher

    def close(self) -> None:
        """Free it; does nothing the second time."""
        handle, self._handle = self._handle, None
        if handle:
            LIBRARY.llg_free_tokenizer(handle)

    def _write_tokens(self, _data: object, text: int, length: int, out: Any, room: int) -> int:
        raw = ctypes.string_at(text, length)
        try:
            tokens = self._tokens(raw)
        except Exception as error:  # it cannot cross C frames: the matcher asks for it
            self.failure = f"a forced text cannot be made into tokens: {error!r}"
            return 0
        if len(tokens) <= room:
            ctypes.memmove(out, (c_uint32 * len(tokens))(*tokens), 4 * len(tokens))
        return len(tokens)

    def _tokens(self, raw: bytes) -> Sequence[int]:
        """Whatever happens, tokens of just this text: llguidance takes its bytes as given."""
        tokens = self._tokenize(raw.decode()) if self._tokenize else None
        return [self._of_byte[byte] for byte in raw] if tokens is None else tokens


class Matcher:
    """A place within an output that follows a grammar. Once it has failed it fails always."""

    def __init__(self, tokenizer: Tokenizer, handle: int) -> None:
        self._tokenizer = tokenizer  # whose callback it calls
        self._handle: int | None = handle

    def clone(self) -> Matcher:
        """Another one at the same place."""
        return Matcher(self._tokenizer, LIBRARY.llg_clone_matcher(self._handle))

    def write_mask(self, mask: Mask) -> None:
        """The tokens that may come next, as bits; shape [n_vocab / 32, rounded up]."""
        self._judge(LIBRARY.llg_matcher_compute_mask_into(self._handle, mask.ctypes.data, mask.nbytes) == 0)

    def forced(self) -> list[int]:
        """The tokens that the only possible text consists of; they are not accepted by that."""
        tokens = (c_uint32 * MAX_FORCED)()
        count = LIBRARY.llg_matcher_compute_ff_tokens(self._handle, tokens, MAX_FORCED)
        self._judge(count >= 0)
        return tokens[:count]

    def fitting(self, tokens: Sequence[int]) -> int:
        """How many of the tokens could come next."""
        count: int = LIBRARY.llg_matcher_validate_tokens(self._handle, (c_uint32 * len(tokens))(*tokens), len(tokens))
        self._judge(count >= 0)
        return count

    def accept(self, tokens: Sequence[int]) -> None:
        """Go on behind these tokens."""
        taken = LIBRARY.llg_matcher_consume_tokens(self._handle, (c_uint32 * len(tokens))(*tokens), len(tokens))
        self._judge(taken == 0)

    @property
    def stopped(self) -> bool:
        """Whether nothing can follow; also after a failure."""
        return bool(LIBRARY.llg_matcher_is_stopped(self._handle))

    def check(self) -> None:
        """Raises GuidanceError if it has failed."""
        self._judge(not LIBRARY.llg_matcher_is_error(self._handle))

    def close(self) -> None:
        """Free it; does nothing the second time."""
        handle, self._handle = self._handle, None
        if handle:
            LIBRARY.llg_free_matcher(handle)

    def __del__(self) -> None:
        self.close()

    def _judge(self, done: bool) -> None:
        if not done:
            reason = LIBRARY.llg_matcher_get_error(self._handle) or b"no reason was given"
            raise GuidanceError(reason.decode(errors="replace").strip())
        if self._tokenizer.failure:
            raise GuidanceError(self._tokenizer.failure)


def _marked(vocabulary: Vocabulary) -> NDArray[np.uint8]:
    """All texts, those of control tokens with the mark in front."""
    starts = np.cumsum(vocabulary.lengths) - vocabulary.lengths
    return np.insert(vocabulary.data, starts[vocabulary.control], SPECIAL[0])


def _tokens_of_bytes(vocabulary: Vocabulary) -> dict[int, int]:
    """For each byte the token that is just it, where there is one."""
    starts = np.cumsum(vocabulary.lengths) - vocabulary.lengths
    single = np.flatnonzero((vocabulary.lengths == 1) & ~vocabulary.control)
    return dict(zip(vocabulary.data[starts[single]].tolist(), single.tolist(), strict=True))
