"""Which execution provider is taken, and what is said of the others."""

from __future__ import annotations

import pytest

from edged.engines.onnx.providers import AVOIDED, QUANTIZED, choose


@pytest.mark.parametrize(
    ("offered", "quantized", "tries", "why"),
    [
        (["CPU"], False, ["CPU"], {}),
        (["Azure", "CPU"], False, ["CPU"], {"Azure": AVOIDED["Azure"]}),
        (["Tensorrt", "CUDA", "CPU"], False, ["CUDA", "CPU"], {"Tensorrt": AVOIDED["Tensorrt"]}),
        (["Xnnpack", "QNN", "CPU"], False, ["QNN", "Xnnpack", "CPU"], {}),
        (["CUDA", "CPU"], True, ["CPU"], {"CUDA": QUANTIZED}),
        (["Quantum", "CPU"], False, ["CPU"], {"Quantum": "edged does not know it"}),
    ],
    ids=["cpu", "nothing_leaves", "jetson", "npu_first", "quantized", "unknown"],
)
def test_provider_by_what_the_board_has(
    offered: list[str], quantized: bool, tries: list[str], why: dict[str, str]
) -> None:
    """Best first, the CPU last."""
    found, reasons = choose([f"{name}ExecutionProvider" for name in offered], quantized=quantized)
    assert [name.removesuffix("ExecutionProvider") for name in found] == tries
    assert reasons == why
