"""Keys and values in 8 bits, in llama.cpp."""

from __future__ import annotations

from edged.engines.llama import sizes
from edged.engines.llama.bindings import Llama
from edged.types import KvType
from tests.support.real_model import model_path

TOKENS = 32


def state(kv_type: KvType) -> tuple[str, bytes]:
    """Of some tokens: the layout, and the bytes that mean something in that layout only."""
    native = Llama(str(model_path()), 256, 1, kv_type=kv_type)
    try:
        native.decode([(i + 100, i, 0, i == TOKENS - 1) for i in range(TOKENS)])
        return native.layout, bytes(native.state(0))
    finally:
        native.close()


def test_state_of_one_type_is_never_taken_for_that_of_the_other() -> None:
    """The layout is part of a stored state's name; and llama.cpp refuses what comes all the same."""
    (half_layout, half), (quantized_layout, quantized) = map(state, (KvType.F16, KvType.Q8_0))
    assert half_layout != quantized_layout
    block, size = sizes.KV_BLOCKS[KvType.Q8_0]
    assert abs(len(quantized) / len(half) - size / block / 2) < 0.01
    native = Llama(str(model_path()), 256, 1, kv_type=KvType.Q8_0)
    try:
        assert not native.restore(0, half)
        assert native.span(0) == (-1, -1)
        assert native.restore(0, quantized)
        assert native.span(0) == (0, TOKENS - 1)
    finally:
        native.close()
