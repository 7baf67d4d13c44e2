"""What an ONNX file says of its model, and what is foreseen from that."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.engines.onnx import file, sizes
from edged.engines.onnx.file import Facts
from edged.errors import ModelUnavailable

MIB = 2**20


def varint(value: int) -> bytes:
    made = b""
    while value > 0x7F:
        made, value = made + bytes([value & 0x7F | 0x80]), value >> 7
    return made + bytes([value])


def block(number: int, content: bytes) -> bytes:
    """A field with bytes."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def tensor(name: str, *dims: int, packed: bool, external: bool = False) -> bytes:
    shape = block(1, b"".join(map(varint, dims))) if packed else b"".join(number(1, dim) for dim in dims)
    return block(5, shape + number(2, 1) + block(8, name.encode()) + (number(14, 1) if external else block(9, b"1234")))


def model(*parts: bytes) -> bytes:
    """A file with some fields before and behind its graph."""
    return number(1, 8) + block(2, b"test") + block(7, b"".join(parts)) + block(8, number(2, 14))


def node(op: str) -> bytes:
    return block(1, block(1, b"input") + block(4, op.encode()))


@pytest.mark.parametrize("packed", [False, True], ids=["unpacked", "packed"])
def test_facts_of_a_file(tmp_path: Path, packed: bool) -> None:
    """Positions, widths, how it is quantized."""
    path = tmp_path / "model.onnx"
    path.write_bytes(
        model(
            node("Gather"),
            node("DynamicQuantizeLinear"),
            tensor("embeddings.word_embeddings.weight", 30522, 384, packed=packed),
            tensor("embeddings.position_embeddings.weight_quantized", 512, 384, packed=packed),
            tensor("onnx::MatMul_1", 384, 1536, packed=packed),
            tensor("onnx::MatMul_2", 1536, 384, packed=packed),
        )
    )
    assert file.read(path) == Facts(bytes=path.stat().st_size, positions=512, width=384, widest=1536, quantized=True)


def test_weights_in_a_file_of_their_own_count(tmp_path: Path) -> None:
    """As exporters name it."""
    path = tmp_path / "model.onnx"
    path.write_bytes(model(node("MatMul"), tensor("w", 4, 4, packed=True, external=True)))
    (tmp_path / "model.onnx_data").write_bytes(b"0" * 1000)
    found = file.read(path)
    assert found.bytes == path.stat().st_size + 1000
    assert (found.positions, found.width, found.quantized) == (None, None, False)


def test_no_onnx_file_is_told(tmp_path: Path) -> None:
    """Missing, empty, something else, or cut off anywhere."""
    whole = model(node("Gather"), tensor("position_embeddings", 300, 384, packed=True))
    path = tmp_path / "model.onnx"
    with pytest.raises(ModelUnavailable, match="cannot be read"):
        file.read(path)
    for content in (b"", b"GGUF\x03\x00\x00\x00", b"\xff" * 100, *(whole[:n] for n in range(len(whole) - 5))):
        path.write_bytes(content)
        with pytest.raises(ModelUnavailable, match="no ONNX model"):
            file.read(path)


def test_context_is_bounded_by_the_model() -> None:
    """Or by the configuration."""
    assert sizes.limit(4096, Facts(bytes=1, positions=512)) == 512
    assert sizes.limit(256, Facts(bytes=1, positions=512)) == 256
    assert sizes.limit(4096, Facts(bytes=1)) == 4096


@pytest.mark.parametrize(("longest", "measured_mib"), [(256, 9.5), (512, 26.6)])
def test_bytes_agree_with_what_was_measured(longest: int, measured_mib: float) -> None:
    """Of the int8 MiniLM at its largest batch: not below, and not a third above."""
    facts = Facts(bytes=22_972_370, positions=512, width=384, widest=1536, quantized=True)
    need = sizes.need(facts, longest)
    assert measured_mib * MIB <= need.compute + need.output <= 1.33 * measured_mib * MIB
    assert 29.4 * MIB <= need.weights <= 1.05 * 29.4 * MIB
