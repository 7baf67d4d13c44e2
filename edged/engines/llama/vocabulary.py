"""The texts of all tokens, as grammars need them: read from the file while llama.cpp loads the model, and proven equal
to llama.cpp's own once it has.

Asking llama.cpp token by token takes 0.5 s for 152k tokens, and only once the model is loaded. A file's vocabulary can
be read before, but what its spellings mean is llama.cpp's to decide and differs between families of models. So what is
read counts for nothing until `proof` has it, and where there is none, llama.cpp is asked.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import llama_cpp as lc
import numpy as np
from numpy.typing import NDArray

from edged.engines.llama import gguf
from edged.engines.llama.bindings import Llama
from edged.errors import ModelUnavailable

# llama_token_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
AS_SPELLED = (UNKNOWN, CONTROL, USER_DEFINED)  # their texts stand as they are, in every family
SPACE = "\u2581".encode()  # how SentencePiece spells a space
# Room for a token's text while all are asked for: a hundred of a vocabulary have more and are asked for again.
PIECE_BYTES = 32
# Tokens tried as separator: those of so many bytes and more, shortest first. Shorter ones are mostly part of others,
# and much longer ones are so many bytes to write and to compare.
SEPARATOR_BYTES = 8
SEPARATORS = 256

Bytes = NDArray[np.uint8]
Ids = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens' texts.

    Attributes:
        data: the texts one after the other.
        lengths: bytes of each; shape [n_vocab].
        control: whether a token structures dialogues and is no text; shape [n_vocab].
        end: a token that ends a generation.
    """

    data: Bytes
    lengths: NDArray[np.int64]
    control: NDArray[np.bool_]
    end: int

    def __len__(self) -> int:
        return len(self.lengths)

    def text(self, token: int) -> bytes:
        """Of one token."""
        end = int(self.lengths[: token + 1].sum())
        return self.data[end - int(self.lengths[token]) : end].tobytes()


def from_file(path: Path) -> Vocabulary | None:
    """What the file says; None where that cannot be read. About 0.15 s for 152k tokens."""
    try:
        raw = gguf.vocabulary(path)
    except ModelUnavailable:  # llama.cpp has the words for it
        return None
    read = READERS.get(raw.model)
    ends, types = np.array(raw.ends, np.int64), np.frombuffer(raw.types, np.int32)
    if read is None or len(types) != len(ends) or not 0 <= raw.end < len(ends):
        return None
    starts = np.concatenate(([0], ends[:-1])) + 8
    texts = np.delete(np.frombuffer(raw.data, np.uint8), (starts[:, None] - np.arange(1, 9)).ravel())
    token = np.repeat(np.arange(len(ends)), ends - starts)
    data, kept = read(texts, types[token])
    kept &= types[token] != UNUSED
    return Vocabulary(data[kept], np.bincount(token[kept], minlength=len(ends)), types == CONTROL, raw.end)


def from_llama(native: Llama) -> Vocabulary:
    """What llama.cpp says, token by token. About 0.5 s for 152k tokens.

    Raises:
        ModelUnavailable: none of its tokens ends a generation.
    """
    count, handle = native.n_vocab, native.vocab
    rows = np.zeros((count, PIECE_BYTES), np.uint8)
    int32, pointer = ctypes.c_int32, ctypes.c_void_p
    prototype = ctypes.CFUNCTYPE(int32, pointer, int32, pointer, int32, int32, ctypes.c_bool)
    piece = prototype(_address(lc.llama_token_to_piece) or 0)
    at = range(rows.ctypes.data, rows.ctypes.data + rows.size, PIECE_BYTES)
    # one call a token without a loop of Python's around it
    told = map(piece, repeat(handle), range(count), at, repeat(PIECE_BYTES), repeat(0), repeat(True))
    lengths = np.fromiter(told, np.int64, count)
    long = {token: piece_of(native, token) for token in np.flatnonzero(lengths < 0).tolist()}
    short = rows[np.arange(PIECE_BYTES) < lengths[:, None]]
    lengths[list(long)] = [len(text) for text in long.values()]
    is_long = np.repeat(np.isin(np.arange(count), list(long)), lengths)
    data = np.empty(int(lengths.sum()), np.uint8)
    data[~is_long] = short
    data[is_long] = np.frombuffer(b"".join(long.values()), np.uint8)
    control = np.fromiter(map(native.is_control, range(count)), np.bool_, count)
    return Vocabulary(data, lengths, control, _an_end(native))


def proof(vocabulary: Vocabulary, native: Llama) -> Vocabulary | None:
    """The vocabulary with llama.cpp's own word for what is control, if every text in it is llama.cpp's.

    Takes about 0.05 s for 152k tokens.

    llama.cpp writes out all tokens in one call, with a separator behind each, and that must be what the vocabulary
    says. The separator occurs in no other text and cannot overlap with itself. So where both outputs are the same bytes
    it occurs in them behind the tokens and nowhere else, and what stands between two of them is one token's text in
    both.
    """
    found = _separator(vocabulary) if len(vocabulary) == native.n_vocab and native.is_eog(vocabulary.end) else None
    if found is None or piece_of(native, found[0]) != found[1]:
        return None
    separator, mark = found
    others = np.delete(np.arange(len(vocabulary)), separator)
    tokens = np.stack((others, np.full(len(others), separator)), axis=1).astype(np.int32).ravel()
    expected = joined(vocabulary, others, mark)
    if _written(native, tokens, len(expected), special=True) != expected:
        return None
    # Without control tokens (and unknown ones) their places are empty.
    told = _written(native, tokens, len(expected), special=False).split(mark)[:-1]
    dropped = others[[not text for text in told]] if len(told) == len(others) else others
    control = np.zeros(len(vocabulary), np.bool_)
    control[[token for token in dropped if native.is_control(int(token))]] = True
    return Vocabulary(vocabulary.data, vocabulary.lengths, control, vocabulary.end)


def ends(vocabulary: Vocabulary, native: Llama) -> Ids:
    """All tokens that end a generation: control tokens, and what the file names as ends."""
    named = {lc.llama_vocab_eos(native.vocab), lc.llama_vocab_eot(native.vocab), vocabulary.end}
    likely = sorted(named | set(np.flatnonzero(vocabulary.control).tolist()))
    return np.array([token for token in likely if 0 <= token < len(vocabulary) and native.is_eog(token)], np.intp)


def joined(vocabulary: Vocabulary, tokens: Ids, mark: bytes) -> bytes:
    """The texts of some tokens, in ascending order, with the mark behind each."""
    chosen = np.zeros(len(vocabulary), np.bool_)
    chosen[tokens] = True
    texts = vocabulary.data[np.repeat(chosen, vocabulary.lengths)]
    behind = np.cumsum(vocabulary.lengths[tokens] + len(mark))
    marks = (behind[:, None] - np.arange(len(mark), 0, -1)).ravel()
    out = np.empty(len(texts) + len(marks), np.uint8)
    is_mark = np.zeros(len(out), np.bool_)
    is_mark[marks] = True
    out[is_mark] = np.tile(np.frombuffer(mark, np.uint8), len(tokens))
    out[~is_mark] = texts
    return out.tobytes()


# How files spell texts: (bytes of all texts, llama_token_type at each of them) to (bytes, which of them count)

Reader = Callable[[Bytes, NDArray[np.int32]], tuple[Bytes, NDArray[np.bool_]]]


def _read_byte_level(texts: Bytes, types: NDArray[np.int32]) -> tuple[Bytes, NDArray[np.bool_]]:
    """Byte-level BPE (GPT-2): a character each for every byte."""
    following = np.append(texts[1:], np.uint8(0))
    inner = (texts & 0xC0) == 0x80
    code = np.where(texts < 0x80, texts, ((texts.astype(np.int32) & 0x1F) << 6) | (following & 0x3F))
    as_spelled = np.isin(types, AS_SPELLED)
    return np.where(as_spelled, texts, BYTE_OF[code]), as_spelled | ~inner


def _read_sentencepiece(texts: Bytes, types: NDArray[np.int32]) -> tuple[Bytes, NDArray[np.bool_]]:
    """SentencePiece: spaces by a sign of their own, bytes as `<0x1F>`."""
    padded = np.concatenate((texts, np.zeros(5, np.uint8)))
    normal = types == NORMAL
    space = normal & _stands(padded, SPACE, len(texts))
    data, kept = texts.copy(), np.ones(len(texts), np.bool_)
    data[space] = ord(" ")
    kept[np.flatnonzero(space)[:, None] + np.arange(1, len(SPACE))] = False
    byte = np.flatnonzero((types == BYTE) & _stands(padded, b"<0x", len(texts)))
    data[byte] = (DIGIT[padded[byte + 3]] << 4) | DIGIT[padded[byte + 4]]
    kept[types == BYTE] = False
    kept[byte] = True
    return data, kept


def _stands(padded: Bytes, text: bytes, count: int) -> NDArray[np.bool_]:
    """Whether a short text stands at each of the first `count` bytes."""
    found = np.ones(count, np.bool_)
    for i, byte in enumerate(text):
        found &= padded[i : i + count] == byte
    return found


def _bytes_of_characters() -> Bytes:
    """GPT-2's table: printable characters of Latin-1 stand for themselves, the other bytes have the characters from
    U+0100 on in their order. 0x800 entries: what two bytes of UTF-8 can say."""
    table = np.zeros(0x800, np.uint8)
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table[printable] = printable
    others = sorted(set(range(0x100)) - set(printable))
    table[0x100 : 0x100 + len(others)] = others
    return table


def _values_of_digits() -> Bytes:
    table = np.zeros(0x100, np.uint8)
    for value, digit in enumerate(b"0123456789ABCDEF"):
        table[digit] = value
    return table


BYTE_OF, DIGIT = _bytes_of_characters(), _values_of_digits()
READERS: dict[str, Reader] = {"gpt2": _read_byte_level, "llama": _read_sentencepiece}


# Asking llama.cpp


def piece_of(native: Llama, token: int) -> bytes:
    """A token's text. As `Llama.read_piece`, which belongs to the engine thread: this one any thread may call."""
    room = -lc.llama_token_to_piece(native.vocab, token, ctypes.create_string_buffer(1), 0, 0, True)
    buffer = ctypes.create_string_buffer(max(room, 1))
    return ctypes.string_at(buffer, max(lc.llama_token_to_piece(native.vocab, token, buffer, room, 0, True), 0))


def _written(native: Llama, tokens: NDArray[np.int32], room: int, *, special: bool) -> bytes:
    """The texts of the tokens, in one call; anything where that is longer than the room."""
    text = ctypes.create_string_buffer(room + 1)
    pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
    length = lc.llama_detokenize(native.vocab, pointer, len(tokens), text, room, False, special)
    return ctypes.string_at(text, max(length, 0))


def _separator(vocabulary: Vocabulary) -> tuple[int, bytes] | None:
    """A token whose text occurs in no other token's and cannot overlap with itself, and that text."""
    data = vocabulary.data.tobytes()
    likely = np.flatnonzero((vocabulary.lengths >= SEPARATOR_BYTES) & ~vocabulary.control)
    for token in likely[np.argsort(vocabulary.lengths[likely], kind="stable")][:SEPARATORS].tolist():
        text = vocabulary.text(token)
        overlaps = any(text[:size] == text[-size:] for size in range(1, len(text)))
        # in the texts one after the other it may also occur across two of them: such a token is passed by in vain
        if not overlaps and data.count(text) == 1:
            return token, text
    return None


def _an_end(native: Llama) -> int:
    named = [lc.llama_vocab_eos(native.vocab), lc.llama_vocab_eot(native.vocab)]
    for token in (*named, *range(native.n_vocab)):
        if 0 <= token < native.n_vocab and native.is_eog(token):
            return int(token)
    raise ModelUnavailable("no token of the model's vocabulary ends a generation")


def _address(function: Any) -> int | None:
    return ctypes.cast(function, ctypes.c_void_p).value
