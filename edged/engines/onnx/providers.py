"""Which execution provider of onnxruntime computes a model, and why not another one. Pure.

https://onnxruntime.ai/docs/execution-providers/
"""

from __future__ import annotations

from collections.abc import Sequence

CPU = "CPUExecutionProvider"
SUFFIX = "ExecutionProvider"
# Best first. One that takes only part of a model's graph leaves the rest to the CPU.
PREFERRED = ("CUDA", "MIGraphX", "ROCM", "OpenVINO", "QNN", "ACL", "ArmNN", "Xnnpack", "CPU")
AVOIDED = {
    "Tensorrt": "it compiles the model for minutes for every new length of a text",
    "NvTensorRTRTX": "it compiles the model for every new length of a text",
    "Azure": "it asks a server, and nothing leaves the board here",
}
QUANTIZED = "the model's activations are quantized while it runs, which only the CPU can: each product would come back"


def short(name: str) -> str:
    """As it is told: without what all their names end with."""
    return name.removesuffix(SUFFIX)


def choose(offered: Sequence[str], *, quantized: bool) -> tuple[list[str], dict[str, str]]:
    """What to try, in order, the CPU last; and why not the others, by short name.

    Args:
        offered: onnxruntime.get_available_providers().
        quantized: see file.Facts.
    """
    tries: list[str] = []
    why: dict[str, str] = {}
    for name in PREFERRED:
        full = name + SUFFIX
        if full not in offered or name == "CPU":
            continue
        if quantized:
            why[name] = QUANTIZED
        else:
            tries.append(full)
    for full in offered:
        name = short(full)
        if name not in PREFERRED:
            why[name] = AVOIDED.get(name, "edged does not know it")
    return [*tries, CPU], why
