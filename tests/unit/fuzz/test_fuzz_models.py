"""Files of models, and states kept on the disk: read right, or refused by name, whatever the file holds."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edged.agent.dialects.chat_template import Dialect
from edged.engines.llama import gguf, predict, sizes, snapshot_file
from edged.engines.llama.drop_pages import EMBEDDINGS
from edged.engines.llama.snapshot_file import Damaged, Header, Key
from edged.engines.onnx import file as onnx
from edged.errors import ConfigError, ModelUnavailable
from edged.models import catalog
from edged.models.updates import ledger
from edged.types import Message, ToolSpec
from tests.support.fuzz import anything, cpu_s, damaged, integers, json_values, maps, peak_bytes, texts, toml, written

U32, STRING, ARRAY, U64 = 4, 8, 9, 10
CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
KEYS = (
    *("general.architecture", "general.alignment", "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"),
    *("tokenizer.ggml.model", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id", "tokenizer.chat_template"),
    *("a.block_count", "a.embedding_length", "a.attention.head_count", "a.attention.head_count_kv", "a.vocab_size"),
    *("a.feed_forward_length", "a.attention.key_length", "a.ssm.inner_size", "a.ssm.conv_kernel", "a.ssm.state_size"),
    *("a.attention.sliding_window", "a.attention.sliding_window_pattern", "a.ssm.group_count"),
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """For one file after the other; in memory where there is such a place: a property writes hundreds."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as made:
        yield Path(made)


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


@st.composite
def value(draw: st.DrawFn) -> bytes:
    """A type and a value of it."""
    kind = draw(st.sampled_from([*CODES, STRING, ARRAY, 13]))
    if kind == STRING:
        return struct.pack("<I", kind) + text(draw(texts))
    if kind == ARRAY:
        below = draw(st.sampled_from([*CODES, STRING, ARRAY]))
        count = draw(st.integers(0, 3) | st.sampled_from([65, 100, 2**63, 2**64 - 1]))
        items = draw(st.lists(texts.map(text) if below == STRING else st.binary(max_size=8), max_size=3))
        return struct.pack("<IIQ", kind, below, count) + b"".join(items)
    return struct.pack("<I", kind) + draw(st.binary(min_size=8, max_size=8))[: struct.calcsize(CODES.get(kind, "B"))]


@st.composite
def ggufs(draw: st.DrawFn) -> bytes:
    """Headers whose parts are right in form, and say anything."""
    pairs = draw(st.lists(st.tuples(st.sampled_from(KEYS) | texts, value()), max_size=8))
    tensors = draw(st.lists(st.tuples(st.just(EMBEDDINGS) | texts, st.lists(st.integers(0, 2**64 - 1), max_size=5),
                                      st.integers(0, 40), st.integers(0, 2**64 - 1)), max_size=3))  # fmt: skip
    n_tensors = draw(st.just(len(tensors)) | st.sampled_from([2**32, 2**64 - 1]))
    n_pairs = draw(st.just(len(pairs)) | st.sampled_from([len(pairs) + 1, 2**64 - 1]))
    head = b"GGUF" + struct.pack("<IQQ", draw(st.sampled_from([3, 2, 1])), n_tensors, n_pairs)
    body = b"".join(text(key) + made for key, made in pairs)
    for name, dims, kind, offset in tensors:
        body += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
    return head + body + draw(st.binary(max_size=64))


def whole() -> bytes:
    """A file that is right."""
    pairs = {
        "general.architecture": struct.pack("<I", STRING) + text("a"),
        "a.block_count": struct.pack("<II", U32, 2),
        "a.embedding_length": struct.pack("<II", U32, 64),
        "tokenizer.ggml.model": struct.pack("<I", STRING) + text("gpt2"),
        "tokenizer.ggml.eos_token_id": struct.pack("<II", U32, 1),
        "tokenizer.ggml.tokens": struct.pack("<IIQ", ARRAY, STRING, 3) + text("a") + text("b") + text("c"),
        "tokenizer.ggml.token_type": struct.pack("<IIQ3i", ARRAY, 5, 3, 1, 1, 3),
    }
    body = b"".join(text(key) + made for key, made in pairs.items())
    tensor = text(EMBEDDINGS) + struct.pack("<IQQIQ", 2, 64, 3, 0, 0)
    return b"GGUF" + struct.pack("<IQQ", 3, 1, len(pairs)) + body + tensor + bytes(800)


def looked(path: Path, data: bytes) -> dict[str, Any] | None:
    """Everything that edged reads of a GGUF file; None where it is refused."""
    path.write_bytes(data)
    try:
        pairs, tensors = gguf.header(path)
        shape = predict.shape_of(pairs, tensors, path.name)
        assert sizes.kv_bytes(shape, 512) >= 0
        assert sizes.compute_bytes(shape, 512) >= 0
        assert sizes.output_bytes(shape.n_vocab) >= 0
        return pairs
    except ModelUnavailable as error:
        assert path.name in error.message
        return None


@given(anything(whole()) | ggufs() | damaged(ggufs()))
@example(whole())
def test_gguf_is_read_or_refused(folder: Path, data: bytes) -> None:
    """By all who read of it: metadata, special tokens, vocabulary, tensors, and the sizes that follow."""
    path = folder / "m.gguf"
    pairs = looked(path, data)
    try:
        assert gguf.metadata(path) == gguf.metadata(path) or pairs is None or "nan" in repr(pairs)
        tokens = gguf.special_tokens(path, gguf.metadata(path))
        assert all(isinstance(token, str) for token in tokens.values())
        vocabulary = gguf.vocabulary(path)
    except ModelUnavailable as error:
        assert path.name in error.message
    else:
        assert vocabulary.ends == sorted(vocabulary.ends)
        assert vocabulary.ends[-1:] in ([], [len(vocabulary.data)])
        assert len(vocabulary.types) % 4 == 0


def test_gguf_whole_is_whole(folder: Path) -> None:
    """What is damaged elsewhere is right here."""
    assert looked(folder / "w.gguf", whole()) is not None


numbers = st.one_of(integers, st.floats(), st.lists(integers | st.floats() | texts, max_size=3), texts, st.booleans())


@given(
    st.fixed_dictionaries({"general.architecture": st.just("a")}, optional=dict.fromkeys(KEYS[8:], numbers)),
    st.lists(
        st.builds(
            gguf.Tensor,
            st.just(EMBEDDINGS) | texts,
            st.lists(st.integers(0, 2**64 - 1), max_size=4).map(tuple),
            st.integers(0, 40),
            st.integers(0, 2**64),
            st.integers(0, 2**64),
        ),
        max_size=2,
    ),
)
@example({"general.architecture": "a", "a.block_count": 1, "a.embedding_length": 1, "a.attention.head_count": -1}, [])
@example(
    {"general.architecture": "a", "a.block_count": 1, "a.embedding_length": 1, "a.attention.head_count_kv": ["x"]}, []
)
@example({"general.architecture": "a", "a.block_count": [1, "x"], "a.embedding_length": 1}, [])
@example({"general.architecture": "a", "a.block_count": 2, "a.embedding_length": 2, "a.ssm.inner_size": -5}, [])
def test_sizes_follow_from_any_metadata_or_are_refused(pairs: dict[str, Any], tensors: list[gguf.Tensor]) -> None:
    """A prediction is made of numbers that sizes can be, or the file is refused: the governor adds them up."""
    try:
        shape = predict.shape_of(pairs, tensors, "m.gguf")
    except ModelUnavailable as error:
        assert "m.gguf" in error.message
        return
    for size in (sizes.kv_bytes(shape, 512), sizes.compute_bytes(shape, 512), sizes.output_bytes(shape.n_vocab)):
        assert type(size) is int
        assert size >= 0


@pytest.mark.parametrize(
    "body",
    [
        text("k") + struct.pack("<IIQ", ARRAY, STRING, 2**64 - 1) + bytes(8) * 500_000,
        b"".join(text("") + struct.pack("<IB", 0, 1) for _ in range(300_000)),
        text("k") + struct.pack("<IIQ", ARRAY, 0, 2**64 - 1) + bytes(4_000_000),
    ],
    ids=["strings", "pairs", "numbers"],
)
def test_gguf_of_megabytes_takes_time_and_memory_in_proportion(folder: Path, body: bytes) -> None:
    """Counts that were never true cost no more than the bytes that are there."""
    path = folder / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**64 - 1, 2**64 - 1) + body)

    def work() -> None:
        with pytest.raises(ModelUnavailable):
            gguf.metadata(path)

    assert cpu_s(work) < 4
    assert peak_bytes(work) < 4 * len(body)


# -- chat templates, which stand in the file ---------------------------------------------------------------------------

SNIPPETS = (
    *("{{", "}}", "{%", "%}", "{#", "for m in messages", "endfor", "if", "endif", "m.content", "messages[0]", "tools"),
    *("raise_exception('x')", "| tojson", "namespace()", "set x = 1", "break", "'<tool_call>'", "bos_token", "(", ")"),
    *("[", "]", ".__class__", "range(9)", "-", " ", "\n", "macro f()", "endmacro", "\ue0007\ue001", "strftime_now('')"),
)


@given(st.lists(st.sampled_from(SNIPPETS) | texts, max_size=10).map("".join), texts, texts)
@example(
    "{% for m in messages %}{{ m.content }}{% endfor %}{{ tools | tojson }}<tool_call>",
    "\ue0000\ue001",
    "\ue0009\ue001",
)
@example("{{ '\ue0007\ue001' }}", "x", "y")
@example("{{ " + "(" * 2000, "x", "y")
@example("{{ " + "[" * 3000 + "]" * 3000 + " }}", "x", "y")
@example("{{ bos_token }}", "x", "y")
def test_template_renders_or_is_refused(template: str, content: str, description: str) -> None:
    """It is a program of whoever made the file; what users write stays literal, wherever it comes out."""
    tool = ToolSpec("t", description, {"type": "object", "properties": {"a": {"description": description}}})
    try:
        dialect = Dialect(template, {"bos_token": "\ue0003\ue001"})
        segments = dialect.render([Message("user", content)], [tool], generate=True)
    except ModelUnavailable as error:
        assert "template" in error.message
        return
    assert all(segment.text for segment in segments)
    assert {segment.text for segment in segments if segment.literal} <= {content, dialect_text(content, tool)}


def dialect_text(content: str, tool: ToolSpec) -> str:
    """The system text in which a template that knows no tools gets them."""
    [system, *_] = Dialect(None, {}).render([Message("user", content)], [tool], generate=False)[1::2] or [None]
    return system.text if system else ""


# -- ONNX --------------------------------------------------------------------------------------------------------------


def varint(number: int) -> bytes:
    made = b""
    while number > 0x7F:
        made, number = made + bytes([number & 0x7F | 0x80]), number >> 7
    return made + bytes([number])


def block(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


TENSOR = block(5, block(1, varint(512) + varint(384)) + block(8, b"position_embeddings") + varint(14 << 3) + b"\1")
ONNX = block(7, block(1, block(4, b"MatMul")) + TENSOR)
fields = st.recursive(
    st.binary(max_size=8),
    lambda below: st.lists(st.builds(block, st.sampled_from([1, 4, 5, 7, 8, 14]), below), max_size=3).map(b"".join),
)


@given(anything(ONNX) | fields | damaged(fields))
@example(ONNX)
@example(block(7, block(1, block(4, b"\xff"))))
@example(block(7, block(1, block(4, b"x")) + block(5, block(1, b"\x01\x80") + block(8, b"x"))))
def test_onnx_is_read_or_refused(folder: Path, data: bytes) -> None:
    """The numbers of its shapes are not negative, and it has a graph."""
    path = folder / "m.onnx"
    path.write_bytes(data)
    try:
        facts = onnx.read(path)
    except ModelUnavailable as error:
        assert path.name in error.message
    else:
        assert facts.bytes >= len(data)
        assert all(number is None or 0 <= number < 2**64 for number in (facts.positions, facts.width, facts.widest))


# -- stored states -----------------------------------------------------------------------------------------------------


def stored(encoded: bytes, state: bytes, *, magic: bytes = snapshot_file.MAGIC, version: int = 1) -> bytes:
    """A file whose digests are right, whatever its header says."""
    fixed = struct.pack("<8sII", magic, version, len(encoded))
    return fixed + snapshot_file.digest_of(fixed + encoded) + encoded + state


def header(state: bytes, **changed: Any) -> bytes:
    made = Header(Key("m", "r", "c"), (1, 2), len(state), 1.0, 2.0, snapshot_file.digest_of(state))
    return msgspec.msgpack.encode({**msgspec.to_builtins(made, builtin_types=(bytes,)), **changed})


STATE = bytes(range(256))
RIGHT = stored(header(STATE), STATE)


@given(
    anything(RIGHT)
    | st.builds(stored, damaged(header(STATE)) | st.binary(max_size=40), st.just(STATE) | st.binary(max_size=9))
    | st.builds(lambda n: stored(header(STATE, n_bytes=n), STATE), integers.filter(lambda n: -(2**63) <= n < 2**63))
)
@example(RIGHT)
@example(
    stored(header(STATE, key={"model": "m", "runtime": "r", "context": "c"}).replace(b"\xa1m", b"\xa1\xff"), STATE)
)
@example(stored(header(STATE, n_bytes=-1), STATE))
@example(stored(b"\x91" * 5000, STATE))
def test_stored_state_is_what_was_written_or_damaged(folder: Path, data: bytes) -> None:
    """Also where somebody made the digests fit."""
    path = folder / "a.state"
    path.write_bytes(data)
    try:
        read, state = snapshot_file.read(path)
    except Damaged as error:
        assert str(error)
        assert data != RIGHT
    else:
        assert len(state) == read.n_bytes
        assert snapshot_file.read_header(path) == read


# -- small files -------------------------------------------------------------------------------------------------------

PAGES = msgspec.json.encode(ledger.Pages())


@given(anything(PAGES) | json_values.map(written) | maps(("models",)).map(written))
@example(b'{"models":{"\xff":1}}')
@example(b"[" * 5000)
def test_ledger_of_updates_is_read_or_empty(folder: Path, data: bytes) -> None:
    """What is configured is in force then."""
    (folder / ledger.FILE_NAME).write_bytes(data)
    pages = ledger.read(folder)
    assert isinstance(pages, ledger.Pages)
    ledger.in_force(pages, {"small": "catalog:x"})


ENTRY = next(iter(catalog.folder().glob("*.toml"))).read_bytes()
entries = maps(tuple(field.name for field in msgspec.structs.fields(catalog.Entry)))


@given(anything(ENTRY) | entries.map(lambda table: toml(table).encode()))
@example(b'name = "\xff"')
@example(b"a = " + b"[" * 5000)
@example(b"bytes = " + b"9" * 5000)
def test_catalog_entry_is_one_or_named(folder: Path, data: bytes) -> None:
    """A file of the catalog is wrong with its name and key."""
    path = folder / "entry.toml"
    path.write_bytes(data)
    try:
        assert catalog._read(path).name == "entry"
    except ConfigError as error:
        assert str(path) in str(error)
        assert error.problem


@given(st.sampled_from(["catalog:", "file:", "https://", "hf:", ""]).flatmap(lambda scheme: texts.map(scheme.__add__)))
@example("https://[")
@example("https://[x]/y")
@example("hf:a/b/../c")
@example("file:/\0")
def test_source_of_a_model_is_known_or_refused(folder: Path, source: str) -> None:
    """And never leads out of the folder of the models, unless it is a `file:`."""
    try:
        model = catalog.resolve(source, folder)
    except ModelUnavailable as error:
        assert error.message
    else:
        assert source.startswith("file:") or all(path.parent == folder for path in model.paths())
        assert model.present() in (True, False)
