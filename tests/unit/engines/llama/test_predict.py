"""What a model will take, from the numbers in its file, and from what llama.cpp says of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edged.engines.llama import drop_pages, gguf, predict, sizes
from edged.engines.llama.dryrun import Buffers, Measured
from edged.engines.llama.gguf import Tensor
from edged.errors import ModelUnavailable
from edged.types import KvType, ModelSpec
from tests.support.real_model import model_path

MIB = 2**20
EMBEDDING = Tensor("token_embd.weight", (64, 1000), 8, 0, 70_000)
BASE: dict[str, Any] = {
    "general.architecture": "x",
    "x.block_count": 4,
    "x.embedding_length": 64,
    "x.attention.head_count": 8,
}


def shape(**more: Any) -> sizes.Shape:
    """Of a small model with these keys besides."""
    return predict.shape_of({**BASE, **{f"x.{k.replace('__', '.')}": v for k, v in more.items()}}, [EMBEDDING], "m")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, {"heads_kv": (8,) * 4, "head_k": 8, "n_vocab": 1000, "n_ff": 256}),
        ({"attention__head_count_kv": 2}, {"heads_kv": (2,) * 4}),
        ({"attention__head_count_kv": [0, 0, 4, 0]}, {"heads_kv": (0, 0, 4, 0)}),
        ({"attention__key_length": 32, "attention__value_length": 16}, {"head_k": 32, "head_v": 16}),
        ({"attention__sliding_window": 512}, {"window": 512, "windowed": ()}),
        ({"attention__sliding_window_pattern": 2}, {"windowed": (True, False, True, False)}),
        ({"attention__sliding_window_pattern": [1, 1, 0, 1]}, {"windowed": (True, True, False, True)}),
        (
            {"ssm__inner_size": 128, "ssm__state_size": 16, "ssm__conv_kernel": 4, "ssm__group_count": 1},
            {"heads_kv": (0,) * 4, "state": 128 * 16 + 3 * (128 + 32)},
        ),
    ],
    ids=["plain", "grouped", "hybrid", "heads", "window", "every-second-whole", "listed-windows", "recurrent"],
)
def test_shape_is_read_from_the_metadata(more: dict[str, Any], expected: dict[str, Any]) -> None:
    """Attention of all kinds, and none at all."""
    found = shape(**more)
    assert {name: getattr(found, name) for name in expected} == expected


def test_file_that_does_not_tell_its_shape_is_named() -> None:
    """So is what is missing."""
    with pytest.raises(ModelUnavailable, match="m does not tell its embedding_length"):
        predict.shape_of({"general.architecture": "x", "x.block_count": 1}, [], "m")


@pytest.mark.parametrize("more", [{"block_count": 2**40}, {"block_count": 0}, {"embedding_length": 0}])
def test_absurd_shape_is_refused(more: dict[str, Any]) -> None:
    """A damaged file must not take the memory that it is asked about."""
    with pytest.raises(ModelUnavailable, match="m is damaged"):
        shape(**more)


def test_counted_parts_are_what_the_buffers_hold() -> None:
    """What is kept in another order is mapped no more."""
    buffers = {"CPU": Buffers(60_000, 5_000, 700), "CPU_REPACK": Buffers(10_000, 0, 0)}
    need = predict.counted(Measured(buffers, output=96_000, heap=3_000), [EMBEDDING])
    around = 3_000 + 1000 * predict.GRAMMAR_BYTES + predict.REQUEST_BYTES
    assert (need.weights, need.kv, need.compute, need.output) == (60_000 + 10_000 + around, 5_000, 700, 96_000)
    assert need.prefixes == sizes.SWAPPED_BYTES
    assert need.total == need.loaded + need.prefixes


def test_copied_matrices_beside_what_is_used_in_place_stay() -> None:
    """As far as they lie in one window with it; which types were copied follows from how many bytes were."""
    window = predict.WINDOW_BYTES
    tensors = [
        Tensor("token_embd.weight", (1, 1), 12, 0, window),
        Tensor("a", (1, 1), 12, window, 3 * window),  # alone in its windows
        Tensor("norm", (1,), 0, 4 * window, 100),
        Tensor("b", (1, 1), 12, 4 * window + 100, 2 * window - 100),  # its first window is the norm's, too
        Tensor("c", (1, 1), 14, 6 * window, window // 2),
        Tensor("d", (1, 1), 12, 6 * window + window // 2, 1000),  # and this one c's
    ]
    copied = sum(t.size for t in tensors if t.kind == 12 and t.name != "token_embd.weight")
    assert predict.neighbours(tensors, copied) == window - 100 + 1000
    assert predict.neighbours(tensors, 0) == 0
    assert predict.neighbours(tensors, 7 * window) == 0  # of nothing that we understand


def spec(path: Path, **more: Any) -> ModelSpec:
    return ModelSpec(name="m", path=str(path), context=512, **more)


def test_identity_changes_with_all_that_decides_the_size(tmp_path: Path) -> None:
    """The file, its other parts, the context, the type; not the alias."""
    path = tmp_path / "m-00001-of-00002.gguf"
    other = tmp_path / "m-00002-of-00002.gguf"
    path.write_bytes(b"1")
    with pytest.raises(ModelUnavailable, match="m-00002"):
        predict.identity(spec(path))
    other.write_bytes(b"2")
    first = predict.identity(spec(path))
    assert predict.identity(ModelSpec(name="n", path=str(path), context=512)) == first
    assert predict.identity(spec(path, kv_type=KvType.Q8_0)) != first
    assert predict.identity(ModelSpec(name="m", path=str(path), context=1024)) != first
    os.utime(other, (1, 1))
    assert predict.identity(spec(path)) != first


def test_file_that_llama_cpp_does_not_take_is_not_counted(tmp_path: Path) -> None:
    """The process says why, and nothing else happens."""
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF and nothing")
    assert predict.dry_run(spec(path)) is None


def test_dry_run_ends_where_its_parent_has_gone(tmp_path: Path) -> None:
    """Nobody would read what it says."""
    command = [sys.executable, "-m", "edged.engines.llama.dryrun", str(model_path()), "256", "f16", "1"]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b""


@pytest.mark.parametrize("kv_type", list(KvType))
def test_calculation_agrees_with_llama_cpp(kv_type: KvType) -> None:
    """Keys and values to the byte, the graph a little above."""
    said, calculated = (
        predict.dry_run(spec(model_path(), kv_type=kv_type)),
        predict.predict(spec(model_path(), kv_type=kv_type)),
    )
    assert said is not None
    assert (said.kv, said.output, said.prefixes) == (calculated.kv, calculated.output, calculated.prefixes)
    assert said.compute <= calculated.compute <= 1.25 * said.compute
    # a copy of the embeddings, which are the output's matrix as well, may be made or not: that is the CPU's choice
    embeddings = next(t.size for t in gguf.header(model_path())[1] if t.name == drop_pages.EMBEDDINGS)
    assert -8 * MIB < calculated.loaded - said.loaded < 8 * MIB + embeddings
