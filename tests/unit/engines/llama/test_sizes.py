"""Bytes before anything is loaded. The measured figures are what llama.cpp's own log says."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from edged.engines.llama import sizes
from edged.engines.llama.sizes import Shape
from edged.types import KvType

SMOLLM2_135M = Shape(n_embd=576, n_ff=1536, heads_kv=(3,) * 30, head_k=64, head_v=64, n_vocab=49_152)
QWEN25_05B = Shape(n_embd=896, n_ff=4864, heads_kv=(2,) * 24, head_k=64, head_v=64, n_vocab=151_936)
QWEN25_15B = Shape(n_embd=1536, n_ff=8960, heads_kv=(2,) * 28, head_k=128, head_v=128, n_vocab=151_936)
MIB = 2**20


@pytest.mark.parametrize(
    ("spec_context", "cells"), [(1, 256), (128, 256), (512, 1024), (2048, 4096), (4096, 8192), (32_768, 36_864)]
)
def test_context_cells(spec_context: int, cells: int) -> None:
    assert sizes.context_cells(spec_context) == cells


def test_context_cells_hold_the_largest_request_for_every_context() -> None:
    for spec_context in range(1, 20_000, 37):
        cells = sizes.context_cells(spec_context)
        assert cells >= spec_context
        assert cells % sizes.CELL_ALIGNMENT == 0


def test_context_cells_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="at least one"):
        sizes.context_cells(0)


@pytest.mark.parametrize(
    ("shape", "cells", "kv_mib", "compute_mib"),
    [
        (SMOLLM2_135M, 1024, 22.5, 7.48 + 4.5),
        (SMOLLM2_135M, 8192, 180.0, 11.09 + 4.5),
        (QWEN25_05B, 1024, 12.0, 18.83 + 13.91),
        (QWEN25_05B, 12_288, 144.0, 24.5 + 13.91),
        (QWEN25_15B, 8192, 224.0, 37.39 + 13.91),
    ],
)
def test_bytes_agree_with_what_llama_cpp_reports(shape: Shape, cells: int, kv_mib: float, compute_mib: float) -> None:
    """Keys and values to the byte; compute and output buffers not below, and not a third above."""
    assert sizes.kv_bytes(shape, cells) == kv_mib * MIB
    both = sizes.compute_bytes(shape, cells) + sizes.output_bytes(shape.n_vocab)
    assert compute_mib * MIB <= both <= 1.33 * compute_mib * MIB


@pytest.mark.parametrize(
    ("shape", "cells", "kv_mib"), [(SMOLLM2_135M, 8192, 95.625), (QWEN25_05B, 4096, 25.5)], ids=["135m", "0.5b"]
)
def test_quantized_keys_and_values_take_34_bytes_for_32(shape: Shape, cells: int, kv_mib: float) -> None:
    """To the byte what llama.cpp reports."""
    assert sizes.kv_bytes(shape, cells, KvType.Q8_0) == kv_mib * MIB


def test_layers_with_a_window_keep_that_much_for_each_sequence() -> None:
    """And a batch; never more than the context has."""
    shape = Shape(**{**as_dict(SMOLLM2_135M), "heads_kv": (1, 1, 1), "window": 32, "windowed": (True, True, False)})
    row = (64 + 64) * 2
    windowed = 1024  # 32 tokens of 24 sequences, and a batch of 256
    assert sizes.kv_bytes(shape, 8192) == row * (2 * windowed + 8192)
    assert sizes.kv_bytes(shape, 512) == row * 3 * 512


def test_recurrent_layers_keep_a_state_for_each_sequence() -> None:
    """It does not grow with the context; layers with attention beside them do."""
    shape = Shape(**{**as_dict(SMOLLM2_135M), "heads_kv": (0, 0, 2), "state": 1000})
    assert sizes.kv_bytes(shape, 256) == 2 * 1000 * 4 * 24 + 2 * (64 + 64) * 2 * 256


def as_dict(shape: Shape) -> dict[str, Any]:
    """Its fields, to change some of them."""
    return {name: getattr(shape, name) for name in shape.__struct_fields__}


@pytest.mark.parametrize("name", ["llama_cpp", "numpy", "llguidance"], ids=lambda n: f"without_{n}")
def test_engine_package_loads_no_native_library(name: str) -> None:
    """The idle daemon imports the engine and has no model."""
    code = f"import sys, edged.engines.llama, edged.engines.llama.sizes; sys.exit({name!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
