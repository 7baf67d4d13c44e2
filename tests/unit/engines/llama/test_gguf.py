"""The header of a GGUF file: read right, or refused, whatever the file holds."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import pytest

from edged.engines.llama import gguf
from edged.errors import ModelUnavailable
from tests.support import real_model as real

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
VOCABULARY = [f"tok{i}" for i in range(200)]


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def strings(values: list[str]) -> bytes:
    return struct.pack("<IQ", STRING, len(values)) + b"".join(map(text, values))


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def header(*pairs: bytes, version: int = 3, count: int | None = None, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, 0, len(pairs) if count is None else count) + b"".join(pairs)


WHOLE = header(
    pair("general.architecture", STRING, text("qwen2")),
    pair("a.u8", U8, b"\xff"),
    pair("a.i8", I8, b"\xff"),
    pair("a.u16", U16, b"\xff\xff"),
    pair("a.i16", I16, b"\xff\xff"),
    pair("a.u32", U32, struct.pack("<I", 7)),
    pair("a.i32", I32, struct.pack("<i", -7)),
    pair("a.f32", F32, struct.pack("<f", 0.5)),
    pair("a.bool", BOOL, b"\x01"),
    pair("a.u64", U64, struct.pack("<Q", 2**63)),
    pair("a.i64", I64, struct.pack("<q", -1)),
    pair("a.f64", F64, struct.pack("<d", 0.25)),
    pair("a.short", ARRAY, struct.pack("<IQ3I", U32, 3, 1, 2, 3)),
    pair("a.long", ARRAY, struct.pack("<IQ100f", F32, 100, *[0.0] * 100)),
    pair("tokenizer.ggml.bos_token_id", U32, struct.pack("<I", 3)),
    pair("tokenizer.ggml.eos_token_id", U32, struct.pack("<I", 199)),
    pair("tokenizer.ggml.tokens", ARRAY, strings(VOCABULARY)),
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file to write a header into."""
    return tmp_path / "m.gguf"


def test_metadata_reads_every_type_and_steps_over_long_arrays(file: Path) -> None:
    """Vocabularies are None: nothing needs them and they are megabytes."""
    file.write_bytes(WHOLE + b"tensors")
    assert gguf.metadata(file) == {
        "general.architecture": "qwen2",
        "a.u8": 255,
        "a.i8": -1,
        "a.u16": 65535,
        "a.i16": -1,
        "a.u32": 7,
        "a.i32": -7,
        "a.f32": 0.5,
        "a.bool": True,
        "a.u64": 2**63,
        "a.i64": -1,
        "a.f64": 0.25,
        "a.short": [1, 2, 3],
        "a.long": None,
        "tokenizer.ggml.bos_token_id": 3,
        "tokenizer.ggml.eos_token_id": 199,
        "tokenizer.ggml.tokens": None,
    }


def test_special_tokens_are_found_by_their_ids(file: Path) -> None:
    """The last of a long vocabulary included."""
    file.write_bytes(WHOLE)
    assert gguf.special_tokens(file, gguf.metadata(file)) == {"bos_token": "tok3", "eos_token": "tok199"}


def marked(tokens: list[str], *more: bytes, model: str = "gpt2") -> bytes:
    """A file with this vocabulary."""
    return header(
        pair("tokenizer.ggml.model", STRING, text(model)),
        pair("tokenizer.ggml.bos_token_id", U32, struct.pack("<I", 0)),
        pair("tokenizer.ggml.eos_token_id", U32, struct.pack("<I", 1)),
        pair("tokenizer.ggml.tokens", ARRAY, strings(tokens)),
        *more,
    )


FIM = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]


@pytest.mark.parametrize(
    ("file_bytes", "marks"),
    [
        (marked(["<s>", "</s>", *FIM]), ("", *FIM)),
        (marked(["<s>", "</s>", *FIM[:2]]), ("", "", "", "")),
        (marked(["<s>", "</s>"], model="llama"), ("<s>", "", "", "")),
        (marked(["<s>", "</s>"], pair("tokenizer.ggml.add_bos_token", BOOL, b"\x00"), model="llama"), ("",) * 4),
        (marked(["<s>", "</s>"], pair("tokenizer.ggml.add_bos_token", BOOL, b"\x01")), ("<s>", "", "", "")),
        (
            marked(
                ["<s>", "</s>", "[P]", "[S]", "[M]"],
                pair("tokenizer.ggml.fim_pre_token_id", U32, struct.pack("<I", 2)),
                pair("tokenizer.ggml.suffix_token_id", U32, struct.pack("<I", 3)),
                pair("tokenizer.ggml.fim_mid_token_id", U32, struct.pack("<I", 4)),
            ),
            ("", "[P]", "[S]", "[M]"),
        ),
    ],
    ids=["known", "not all", "begins", "begins not", "told to begin", "named"],
)
def test_marks_of_a_text_are_those_of_the_file_or_known_ones(
    file: Path, file_bytes: bytes, marks: tuple[str, ...]
) -> None:
    """All three marks of a gap, or none."""
    file.write_bytes(file_bytes)
    assert gguf.text_marks(file) == marks


@pytest.mark.parametrize("ident", [-1, 200, 2**32 - 1, "3", None])
def test_special_tokens_outside_the_vocabulary_are_left_out(file: Path, ident: object) -> None:
    """A file may name a token it does not have."""
    file.write_bytes(WHOLE)
    assert gguf.special_tokens(file, {"tokenizer.ggml.bos_token_id": ident}) == {}


def test_file_cut_anywhere_in_its_header_is_refused(file: Path) -> None:
    """A half download is no model, wherever it ends; the reason names the file."""
    pairs = {"tokenizer.ggml.eos_token_id": 199}
    for length in range(len(WHOLE)):
        file.write_bytes(WHOLE[:length])
        with pytest.raises(ModelUnavailable, match=r"m\.gguf"):
            gguf.metadata(file)
        with pytest.raises(ModelUnavailable, match=r"m\.gguf"):
            gguf.special_tokens(file, pairs)


HUGE = 2**64 - 1
DAMAGED = {
    "pairs": header(pair("a", U8, b"\x01"), count=HUGE),
    "key-length": header(struct.pack("<Q", HUGE) + b"x"),
    "string-length": header(pair("a", STRING, struct.pack("<Q", HUGE))),
    "string-length-signed": header(pair("a", STRING, struct.pack("<Q", 2**63))),
    "scalars": header(pair("a", ARRAY, struct.pack("<IQ", F64, HUGE))),
    "scalars-one-too-many": header(pair("a", ARRAY, struct.pack("<IQ", U8, 101) + bytes(100))),
    "strings": header(pair("a", ARRAY, struct.pack("<IQ", STRING, HUGE))),
    "strings-jump": header(pair("a", ARRAY, struct.pack("<IQQ", STRING, 100, HUGE))),
    "unknown-type": header(pair("a", 13, b"")),
    "unknown-array-type": header(pair("a", ARRAY, struct.pack("<IQ", 99, 100) + bytes(1000))),
    "arrays-of-arrays": header(pair("a", ARRAY, struct.pack("<IQ", ARRAY, 1) * 5000)),
    "magic": header(magic=b"GGML"),
    "version-1": header(version=1),
    "empty": b"",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_file_is_refused_at_once(file: Path, name: str) -> None:
    """Claimed counts and lengths are not believed: no other exception, no hang, no memory."""
    file.write_bytes(DAMAGED[name])
    started = time.monotonic()
    with pytest.raises(ModelUnavailable):
        gguf.metadata(file)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    "value",
    [struct.pack("<IQ", U32, 4) + bytes(16), struct.pack("<IQ", STRING, HUGE)],
    ids=["numbers", "huge"],
)
def test_vocabulary_that_is_none_is_refused(file: Path, value: bytes) -> None:
    """Its tokens are looked for only among strings."""
    file.write_bytes(header(pair("tokenizer.ggml.tokens", ARRAY, value)))
    with pytest.raises(ModelUnavailable):
        gguf.special_tokens(file, {"tokenizer.ggml.bos_token_id": 3})


def test_file_that_is_missing_or_a_folder_is_refused(tmp_path: Path) -> None:
    """With the system's reason."""
    with pytest.raises(ModelUnavailable, match="No such file"):
        gguf.metadata(tmp_path / "none.gguf")
    with pytest.raises(ModelUnavailable):
        gguf.metadata(tmp_path)


def test_text_that_is_not_utf8_does_not_hide_the_rest(file: Path) -> None:
    """Some files have a broken author's name; the template is still there."""
    file.write_bytes(header(pair("a", STRING, struct.pack("<Q", 1) + b"\xff"), pair("b", U8, b"\x01")))
    assert gguf.metadata(file) == {"a": "\ufffd", "b": 1}


def tensor(name: str, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def test_tensors_are_told_in_the_order_of_their_bytes(file: Path) -> None:
    """A tensor reaches to the next one; the last to the end of the file."""
    pairs = [pair("general.alignment", U32, struct.pack("<I", 64))]
    head = b"GGUF" + struct.pack("<IQQ", 3, 2, len(pairs)) + b"".join(pairs)
    head += tensor("b", (8, 4), 2, 128) + tensor("a", (8,), 0, 0)
    file.write_bytes(head.ljust(-(-len(head) // 64) * 64, b"\0") + bytes(200))
    told, found = gguf.header(file)
    assert told == {"general.alignment": 64}
    assert found == [gguf.Tensor("a", (8,), 0, 0, 128), gguf.Tensor("b", (8, 4), 2, 128, 72)]


def test_tensors_of_a_damaged_file_are_refused(file: Path) -> None:
    """It ends among them, or one has more dimensions than there are."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0)
    for body in (b"", tensor("a", (1,), 0, 0)[:-3], tensor("a", (1, 1, 1, 1, 1), 0, 0)):
        file.write_bytes(head + body)
        with pytest.raises(ModelUnavailable, match=r"m\.gguf is damaged"):
            gguf.header(file)


def test_parts_of_a_split_model_follow_from_the_name_of_the_first() -> None:
    """As llama.cpp names them; any other file is whole."""
    first = Path("/m/x-00001-of-00003.gguf")
    assert gguf.parts(first) == (first, Path("/m/x-00002-of-00003.gguf"), Path("/m/x-00003-of-00003.gguf"))
    assert gguf.parts(Path("/m/x-1-of-3.gguf")) == (Path("/m/x-1-of-3.gguf"),)


def with_tensor(dims: tuple[int, ...], kind: int, content: bytes, *, offset: int = 0) -> bytes:
    """A file with one tensor; its bytes begin at the next multiple of 32."""
    info = text("t") + struct.pack(f"<I{len(dims)}Q", len(dims), *dims) + struct.pack("<IQ", kind, offset)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + pair("a", U8, b"\x01") + info
    return head + bytes(-len(head) % 32) + content


def test_file_that_ends_within_its_last_tensor_is_cut_off(file: Path) -> None:
    """Whatever comes after the header is not looked at otherwise; a type that is not known is not judged."""
    q8_0, unknown = 8, 99  # 34 bytes for 32 numbers
    file.write_bytes(with_tensor((64, 2), q8_0, bytes(136)))
    gguf.check(file)
    file.write_bytes(with_tensor((64, 2), q8_0, bytes(135)))
    with pytest.raises(ModelUnavailable, match=r"m\.gguf is damaged: it is cut off: it has 231 bytes, .* least 232;"):
        gguf.check(file)
    file.write_bytes(with_tensor((64, 2), q8_0, bytes(64), offset=128))
    with pytest.raises(ModelUnavailable, match="it is cut off"):
        gguf.check(file)
    file.write_bytes(with_tensor((64, 2), unknown, bytes(1)))
    gguf.check(file)


def test_real_model_is_whole_to_the_byte(tmp_path: Path) -> None:
    """Its header tells of every byte but those that pad the last tensor, which are fewer than 32."""
    model = real.model_path()
    gguf.check(model)
    size, cut = model.stat().st_size, tmp_path / "cut.gguf"
    with model.open("rb") as whole, cut.open("wb") as copy:
        copy.write(whole.read(8 * 2**20))  # more than the header; the rest is a hole, which nobody reads
        copy.truncate(size)
    gguf.check(cut)
    os.truncate(cut, size - 32)
    with pytest.raises(ModelUnavailable, match="it is cut off"):
        gguf.check(cut)
