"""The header of a GGUF file, without llama.cpp: metadata and what the prompt needs of it. Pure Python, read-only.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (magic, version, counts, then typed key-value pairs).
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Callable
from math import prod
from pathlib import Path

from msgspec import Struct

from edged.engines.kind import FileFacts
from edged.engines.mistaken import what_it_is
from edged.errors import ModelUnavailable
from edged.types import JSON

MAGIC = b"GGUF"
INT32, STRING, ARRAY = 5, 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")  # as llama.cpp names the parts of a model
ALIGNMENT = 32  # bytes that tensors are aligned to where the file does not say
PAIRS_AT = 24  # where the key-value pairs begin: after the magic, the version and two counts
MAX_DIMS = 4  # of a tensor of ggml
# Numbers in a block of a tensor, and the bytes of the block, by ggml_type (ggml.c, type_traits). Of a type that is not
# here, which is newer than this table, nothing is said.
BLOCKS = {
    0: (1, 4),  # F32
    1: (1, 2),  # F16
    2: (32, 18),  # Q4_0
    3: (32, 20),  # Q4_1
    6: (32, 22),  # Q5_0
    7: (32, 24),  # Q5_1
    8: (32, 34),  # Q8_0
    10: (256, 84),  # Q2_K
    11: (256, 110),  # Q3_K
    12: (256, 144),  # Q4_K
    13: (256, 176),  # Q5_K
    14: (256, 210),  # Q6_K
    15: (256, 292),  # Q8_K
    16: (256, 66),  # IQ2_XXS
    17: (256, 74),  # IQ2_XS
    18: (256, 98),  # IQ3_XXS
    19: (256, 50),  # IQ1_S
    20: (32, 18),  # IQ4_NL
    21: (256, 110),  # IQ3_S
    22: (256, 82),  # IQ2_S
    23: (256, 136),  # IQ4_XS
    24: (1, 1),  # I8
    25: (1, 2),  # I16
    26: (1, 4),  # I32
    27: (1, 8),  # I64
    28: (1, 8),  # F64
    29: (256, 56),  # IQ1_M
    30: (1, 2),  # BF16
    34: (256, 54),  # TQ1_0
    35: (256, 66),  # TQ2_0
    39: (32, 17),  # MXFP4
}
FILE_TYPES = {  # llama_ftype of llama.h: what most of a file's tensors are
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip
MAX_KEPT = 64  # longer arrays (vocabularies) are stepped over: nothing here needs them, and they are megabytes

# How models of code mark a gap, where their files do not name the tokens: before it, after it, what fills it.
GAP_MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, StarCoder 3, Falcon
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # Refact
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),  # DeepSeek
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM
)

_LENGTH = struct.Struct("<Q")


class SpecialVocabulary(Struct, frozen=True):
    """A vocabulary as it stands in the file.

    Attributes:
        model: how the tokens are spelled: "gpt2", "llama", ...
        data: the tokens' texts one after the other, each with its length (8 bytes) in front.
        ends: where each text ends in `data`, in bytes.
        types: llama_token_type of each token, as int32; empty where the file has none.
        end: the token that ends a text.
    """

    model: str
    data: bytes
    ends: list[int]
    types: bytes
    end: int


class Tensor(Struct, frozen=True):
    """What a file says of a tensor. kind: ggml_type; offset: of its bytes, behind the header; size in bytes, with what
    pads it to the next one."""

    name: str
    dims: tuple[int, ...]
    kind: int
    offset: int
    size: int


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def scalar(self, code: str) -> JSON:
        size = struct.calcsize("<" + code)
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += size
        return value

    def string(self) -> str:
        length = self.scalar("Q")
        start = self.at
        self.skip(length)
        text = self.data[start : self.at]
        return text.decode(errors="replace")

    def skip(self, length: int) -> None:
        if length > len(self.data) - self.at:
            raise struct.error("it ends in the middle of its header")
        self.at += length

    def value(self, kind: int) -> JSON:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            return self.array()
        return self.scalar(SCALARS[kind])

    def array(self) -> JSON:
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind == ARRAY:  # none is in use, and each level would cost a level of our stack
            raise struct.error("an array of arrays")
        if count <= MAX_KEPT:
            return [self.value(kind) for _ in range(count)]
        if kind in SCALARS:
            self.skip(count * struct.calcsize("<" + SCALARS[kind]))
        elif kind == STRING:
            self.skip_strings(count)
        else:
            raise struct.error(f"an array of unknown type {kind}")
        return None

    def texts(self) -> tuple[bytes, list[int]]:
        """An array of strings: its bytes, and where each string ends in them."""
        if self.scalar("I") != STRING:
            raise struct.error("its vocabulary is not made of strings")
        count = self.scalar("Q")
        data, length, end, ends = self.data, _LENGTH.unpack_from, len(self.data), []
        start = at = self.at
        for _ in range(count):
            at += 8 + length(data, at)[0]
            if at > end:
                raise struct.error("it ends in the middle of its header")
            ends.append(at - start)
        self.at = at
        return data[start:at], ends

    def integers(self) -> bytes:
        """An array of int32, as it stands there."""
        if self.scalar("I") != INT32:
            raise struct.error("its token types are not int32")
        count = self.scalar("Q")
        start = self.at
        self.skip(4 * count)
        return self.data[start : self.at]

    def skip_strings(self, count: int) -> None:
        at, data, length, end = self.at, self.data, _LENGTH.unpack_from, len(self.data)
        for _ in range(count):
            at += 8 + length(data, at)[0]
            if at > end:
                raise struct.error("it ends in the middle of its header")
        self.at = at

    def tokens(self, wanted: set[int]) -> dict[int, str]:
        """Of an array of strings, those at the wanted places."""
        if self.scalar("I") != STRING:
            raise struct.error("its vocabulary is not made of strings")
        count = self.scalar("Q")
        found, done = {}, 0
        for place in sorted(i for i in wanted if 0 <= i < count):
            self.skip_strings(place - done)
            found[place], done = self.string(), place + 1
        self.skip_strings(count - done)
        return found


def metadata(path: Path) -> dict[str, JSON]:
    """All key-value pairs; long arrays are None. 20 to 100 ms for a vocabulary of 150,000 tokens: run it in a thread.

    Raises:
        ModelUnavailable: it is no GGUF file, or a damaged one.
    """
    return _scan(path, {})


def facts(pairs: dict[str, JSON]) -> FileFacts:
    """What the metadata say of the model."""

    def text(key: str) -> str:
        return value if isinstance(value := pairs.get(key), str) else ""

    def number(key: str) -> int | None:
        return value if isinstance(value := pairs.get(key), int) else None

    architecture, template = text("general.architecture"), text("tokenizer.chat_template")
    return FileFacts(
        format="gguf",
        architecture=architecture,
        parameters=text("general.size_label"),
        quantization=FILE_TYPES.get(number("general.file_type") or 0, "") if "general.file_type" in pairs else "",
        context=number(f"{architecture}.context_length") or 0,
        thinks="<think>" in template or "enable_thinking" in template,
    )


def special_tokens(path: Path, pairs: dict[str, JSON]) -> dict[str, str]:
    """{"bos_token": "...", "eos_token": "..."} as far as the file's metadata names them; templates may use them."""
    ids = {
        name: pairs.get(f"tokenizer.ggml.{short}_token_id")
        for name, short in (("bos_token", "bos"), ("eos_token", "eos"))
    }
    wanted = {i for i in ids.values() if isinstance(i, int)}
    tokens: dict[int, str] = {}
    _scan(path, {"tokenizer.ggml.tokens": lambda reader: tokens.update(reader.tokens(wanted))} if wanted else {})
    return {name: tokens[i] for name, i in ids.items() if i in tokens}


def vocabulary(path: Path) -> SpecialVocabulary:
    """The file's vocabulary; takes as long as `metadata`.

    Raises:
        ModelUnavailable: it is no GGUF file, a damaged one, or has no vocabulary.
    """
    texts: list[tuple[bytes, list[int]]] = []
    types: list[bytes] = []
    pairs = _scan(
        path,
        {
            "tokenizer.ggml.tokens": lambda reader: texts.append(reader.texts()),
            "tokenizer.ggml.token_type": lambda reader: types.append(reader.integers()),
        },
    )
    model, end = pairs.get("tokenizer.ggml.model"), pairs.get("tokenizer.ggml.eos_token_id")
    if not texts or not isinstance(model, str) or not isinstance(end, int):
        raise ModelUnavailable(f"{path.name} has no vocabulary")
    data, ends = texts[0]
    return SpecialVocabulary(model, data, ends, types[0] if types else b"", end)


def text_marks(path: Path) -> tuple[str, str, str, str]:
    """What stands before every bare text, and the marks of a gap: before the text in front of it, before the text after
    it, and before what fills it; empty where the model has none. Takes twice as long as `metadata`.

    Raises:
        ModelUnavailable: as `vocabulary`.
    """
    pairs, texts = metadata(path), vocabulary(path)
    spelled = [texts.data[start + 8 : end] for start, end in zip([0, *texts.ends], texts.ends, strict=False)]

    def token(*names: str) -> str:
        ids = (pairs.get(f"tokenizer.ggml.{name}_token_id") for name in names)
        found = next((i for i in ids if isinstance(i, int) and 0 <= i < len(spelled)), None)
        return "" if found is None else spelled[found].decode(errors="replace")

    begins = pairs.get("tokenizer.ggml.add_bos_token", texts.model != "gpt2")  # llama.cpp's defaults
    begin = token("bos") if begins is True else ""
    named = token("fim_pre", "prefix"), token("fim_suf", "suffix"), token("fim_mid", "middle")
    if all(named):
        return begin, *named
    known = set(spelled)
    gap = next((marks for marks in GAP_MARKS if all(mark.encode() in known for mark in marks)), ("", "", ""))
    return begin, *gap


def parts(path: Path) -> tuple[Path, ...]:
    """The files of a model of which this is the first: `NAME-00001-of-00003.gguf` has three, others are whole."""
    found = SPLIT.fullmatch(path.name)
    if not found:
        return (path,)
    name, count = found[1], found[3]
    return tuple(path.with_name(f"{name}-{i:05}-of-{count}.gguf") for i in range(1, int(count) + 1))


def header(path: Path) -> tuple[dict[str, JSON], list[Tensor]]:
    """`metadata`, and the tensors of one file in the order of their bytes; takes as long.

    Raises:
        ModelUnavailable: as `metadata`.
    """
    found: list[tuple[int, str, tuple[int, ...], int]] = []
    ends: list[int] = []

    def read(reader: _Reader, count: int, pairs: dict[str, JSON]) -> None:
        for _ in range(count):
            name, n_dims = reader.string(), reader.scalar("I")
            if n_dims > MAX_DIMS:
                raise struct.error(f"a tensor of {n_dims} dimensions")
            dims = tuple(reader.scalar("Q") for _ in range(n_dims))
            kind, offset = reader.scalar("I"), reader.scalar("Q")
            found.append((offset, name, dims, kind))
        told = pairs.get("general.alignment")
        alignment = told if isinstance(told, int) and told > 0 else ALIGNMENT
        ends.append(len(reader.data) - -(-reader.at // alignment) * alignment)
        # sizes follow from offsets, and walking through what lies beyond the end would take for ever
        if (beyond := max((offset for offset, *_ in found), default=0) - max(0, ends[0])) > 0:
            raise _cut_off(path, beyond)

    pairs = _scan(path, {}, read)
    found.sort()
    following = [*(offset for offset, *_ in found[1:]), *ends]
    return pairs, [
        Tensor(name, dims, kind, offset, max(0, end - offset))
        for (offset, name, dims, kind), end in zip(found, following, strict=False)
    ]


def check(path: Path) -> None:
    """Look whether a model is whole, as far as its header says; takes as long as `metadata`, for each of its parts.

    Raises:
        ModelUnavailable: it is no GGUF file, a damaged one, or one that ends before its last tensor does.
    """
    for part in parts(path):
        _, tensors = header(part)
        last = tensors[-1] if tensors else None
        if last is not None and (needed := tensor_bytes(last.dims, last.kind)) is not None and last.size < needed:
            raise _cut_off(part, needed - last.size)


def tensor_bytes(dims: tuple[int, ...], kind: int) -> int | None:
    """Of a tensor's numbers; None where its type is not known."""
    block, size = BLOCKS.get(kind, (0, 0))
    return prod(dims) // block * size if block else None


def raw_pairs(path: Path) -> tuple[int, int, bytes]:
    """The file's version, how many key-value pairs it has, and their bytes as they stand. Raises as `metadata`."""
    found: list[tuple[int, int, bytes]] = []

    def read(reader: _Reader, count: int, pairs: dict[str, JSON]) -> None:
        version, _, n_pairs = struct.unpack_from("<IQQ", reader.data, len(MAGIC))
        found.append((version, n_pairs, reader.data[PAIRS_AT : reader.at]))

    _scan(path, {}, read)
    return found[0]


def _cut_off(path: Path, missing: int) -> ModelUnavailable:
    there = path.stat().st_size
    told = f"it has {there} bytes, and its header tells of at least {there + missing}"
    return ModelUnavailable(f"{path.name} is damaged: it is cut off: {told}; pull the model again")


def _scan(
    path: Path,
    arrays: dict[str, Callable[[_Reader], None]],
    behind: Callable[[_Reader, int, dict[str, JSON]], None] | None = None,
) -> dict[str, JSON]:
    """All pairs but those arrays that have a reader of their own. behind: reads on where they end, and is told how many
    tensors there are."""
    pairs: dict[str, JSON] = {}
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[:4] != MAGIC:
                raise _no_model(path)
            reader = _Reader(data)
            reader.at = 4
            version, n_tensors, count = reader.scalar("I"), reader.scalar("Q"), reader.scalar("Q")
            if version < 2:
                raise ModelUnavailable(f"{path.name} is GGUF version {version}; 2 and newer can be read")
            for _ in range(count):
                key, kind = reader.string(), reader.scalar("I")
                if kind == ARRAY and key in arrays:
                    arrays[key](reader)
                else:
                    pairs[key] = reader.value(kind)
            if behind:
                behind(reader, n_tensors, pairs)
    except (struct.error, KeyError, IndexError, ValueError) as error:
        if path.stat().st_size < len(MAGIC):  # an empty file cannot be mapped
            raise _no_model(path) from None
        raise ModelUnavailable(f"{path.name} is damaged: {error}") from None
    except OSError as error:
        raise ModelUnavailable(f"{path.name} cannot be read: {error.strerror}") from None
    return pairs


def _no_model(path: Path) -> ModelUnavailable:
    known = what_it_is(path)
    return ModelUnavailable(f"{path.name} is no GGUF file{f' but {known}' if known else ''}")
