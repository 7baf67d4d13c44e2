"""A model as Microsoft's Olive writes one: a folder with `model.onnx`, its weights in `model.onnx.data`, and
`tokenizer.json` among files that are for others. Its graph is the smallest that makes a vector of a token."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from edged.engines.onnx import OnnxEngine, file
from edged.types import EmbedJob, ModelSpec

WORDS = ["[UNK]", "[CLS]", "[SEP]", "the", "tank", "is", "empty", "full"]
WIDTH = 4
FLOAT, INT64, FLOAT16 = 1, 7, 10  # TensorProto.DataType
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# What Olive writes beside the model; edged needs none of it.
BESIDE = ("config.json", "model_config.json", "special_tokens_map.json", "tokenizer_config.json")
WEIGHTS = "model.onnx.data"


def varint(value: int) -> bytes:
    made = b""
    while value > 0x7F:
        made, value = made + bytes([value & 0x7F | 0x80]), value >> 7
    return made + bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def block(field: int, *content: bytes | str) -> bytes:
    """A message or a text."""
    joined = b"".join(each.encode() if isinstance(each, str) else each for each in content)
    return varint(field << 3 | 2) + varint(len(joined)) + joined


def value_info(field: int, name: str, kind: int, *dims: int | str) -> bytes:
    """An input or output of the graph."""
    shape = [block(1, number(1, dim) if isinstance(dim, int) else block(2, dim)) for dim in dims]
    return block(field, block(1, name), block(2, block(1, number(1, kind), block(2, *shape))))


def graph(kind: int, size: int) -> bytes:
    """Gather(table, input_ids) -> last_hidden_state; the table's numbers are in the other file."""
    where = [block(13, block(1, key), block(2, value)) for key, value in (("location", WEIGHTS), ("length", str(size)))]
    table = block(5, number(1, len(WORDS)), number(1, WIDTH), number(2, kind), block(8, "table"), *where, number(14, 1))
    gather = block(1, block(1, "table"), block(1, "input_ids"), block(2, "last_hidden_state"), block(4, "Gather"))
    inputs = [value_info(11, name, INT64, "batch", "sequence") for name in INPUTS]
    output = value_info(12, "last_hidden_state", kind, "batch", "sequence", WIDTH)
    made = block(7, gather, block(2, "main_graph"), table, *inputs, output)
    return number(1, 8) + block(2, "olive") + made + block(8, number(2, 17))


def write(folder: Path, *, half: bool) -> NDArray[np.float32]:
    """The folder; returns the vectors of the words."""
    table = ((np.arange(len(WORDS) * WIDTH).reshape(len(WORDS), WIDTH) - 9) / 8).astype(np.float32)
    numbers = table.astype(np.float16 if half else np.float32).tobytes()
    (folder / WEIGHTS).write_bytes(numbers)
    (folder / "model.onnx").write_bytes(graph(FLOAT16 if half else FLOAT, len(numbers)))
    words = Tokenizer(WordLevel({word: id for id, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    words.save(str(folder / "tokenizer.json"))
    for name in BESIDE:
        (folder / name).write_text(json.dumps({"model_type": "bert"}))
    return table


class Resident:
    """A residency that keeps everything."""

    @contextlib.asynccontextmanager
    async def hold(self, model: str) -> AsyncIterator[float]:
        """See interfaces.Residency."""
        yield 0.0


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
async def test_model_made_by_olive_is_an_embedding_model(tmp_path: Path, half: bool) -> None:
    """Found by its folder's own names; its weights count; its vectors are the means of its tokens'."""
    table = write(tmp_path, half=half)
    path = tmp_path / "model.onnx"
    assert file.read(path).bytes == path.stat().st_size + (tmp_path / WEIGHTS).stat().st_size
    engine = OnnxEngine(Resident())
    await engine.start()
    try:
        await engine.load(ModelSpec(name="olive", path=str(path), context=32, threads=1, engine="onnx"))
        made = await engine.embed(EmbedJob(model="olive", texts=("the tank is empty", "full")))
    finally:
        await engine.stop()
    assert made.tokens == 6 + 3
    for vector, ids in zip(made.vectors, ([1, 3, 4, 5, 6, 2], [1, 7, 2]), strict=True):
        mean = table[ids].mean(axis=0)
        assert np.allclose(struct.unpack(f"<{WIDTH}f", vector), mean / np.linalg.norm(mean), atol=1e-3)
