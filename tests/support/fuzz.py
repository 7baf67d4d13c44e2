"""What strangers send, for properties of parsers: values, bytes that are nearly right, and what a parser may cost."""

from __future__ import annotations

import gc
import itertools
import json
import math
import time
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hypothesis import strategies as st

MIB = 2**20

# Characters that parsers trip over: control and line ends, digits that are none, surrogates' neighbours, private use.
ODD = "\0\t\n\r\x1b\x7f\x85\u00b2\u0660\u2028\ud7ff\ue000\ue001\ufffd\uffff\U0001f600{}[]\"'\\/+#%:;,.@<>_-= "
texts = st.one_of(
    st.text(max_size=20), st.text(alphabet=ODD, max_size=20), st.text(alphabet="0123456789.+-eE", max_size=12)
)
integers = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([s * (2**bits + d) for bits in (31, 32, 53, 63, 64) for d in (-1, 0, 1) for s in (1, -1)]),
    st.sampled_from([10**30, -(10**30), 10**4000]),
)
floats = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([0.0, -0.0, 5e-324, 1e308]))
scalars = st.one_of(st.none(), st.booleans(), integers, floats, texts)


def values(leaves: st.SearchStrategy[Any] = scalars, keys: st.SearchStrategy[str] = texts) -> st.SearchStrategy[Any]:
    """JSON of any shape."""
    return st.recursive(
        leaves, lambda below: st.lists(below, max_size=4) | st.dictionaries(keys, below, max_size=4), max_leaves=12
    )


json_values = values()


def maps(known: Sequence[str], likely: dict[str, st.SearchStrategy[Any]] | None = None) -> st.SearchStrategy[Any]:
    """Maps of known names with values that are likely, or any."""
    fields = {name: (likely or {}).get(name, st.nothing()) | json_values for name in known}
    right = st.fixed_dictionaries({}, optional=fields)
    return st.one_of(right, st.builds(lambda a, b: {**a, **b}, right, st.dictionaries(texts, json_values, max_size=2)))


def written(value: Any) -> bytes:
    """As JSON, also what the world's JSON is not: bare NaN, halves of surrogate pairs."""
    return json.dumps(value).encode()


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes] | bytes, *, edits: int = 4) -> bytes:
    """Bytes that a few edits away were right: cut off, flipped, filled with others, doubled."""
    data = bytearray(whole if isinstance(whole, bytes) else draw(whole))
    for _ in range(draw(st.integers(0, edits))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 16))
        match draw(st.sampled_from(("cut", "flip", "fill", "insert", "remove", "double"))):
            case "cut":
                del data[at:]
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "fill":
                data[at : at + length] = draw(st.sampled_from((b"\0", b"\xff", b"\x80", b"\x7f"))) * length
            case "insert":
                data[at:at] = draw(st.binary(max_size=16))
            case "remove":
                del data[at : at + length]
            case _:
                data[at:at] = data[at : at + length]
    return bytes(data)


def anything(*whole: bytes) -> st.SearchStrategy[bytes]:
    """Bytes: any, and such as were right before they were damaged."""
    return st.one_of(st.binary(max_size=200), *(damaged(one) for one in whole))


@st.composite
def pieces(draw: st.DrawFn, length: int) -> list[int]:
    """Where something of that length is cut, in order."""
    return sorted(draw(st.lists(st.integers(0, length), max_size=8)))


def cut(whole: Any, places: Iterable[int]) -> list[Any]:
    """A text, or bytes, in pieces."""
    ends = [0, *places, len(whole)]
    return [whole[a:b] for a, b in itertools.pairwise(ends)]


def cpu_s(work: Callable[[], object]) -> float:
    """CPU time of this thread: what else runs on the machine does not count."""
    began = time.thread_time()
    work()
    return time.thread_time() - began


def peak_bytes(work: Callable[[], object]) -> int:
    """The most memory that Python had for it at once, beyond what there was before."""
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def is_finite(value: Any) -> bool:
    """Whether JSON can say it: no number that is none, however deep."""
    rest = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, float) and not math.isfinite(item):
            return False
        rest += item.values() if isinstance(item, dict) else item if isinstance(item, list | tuple) else ()
    return True


def toml(table: dict[str, Any]) -> str:
    """A table as TOML. Inline all the way: what is below may be anything."""
    return "".join(f"{_quoted(key)} = {_inline(value)}\n" for key, value in table.items())


def _inline(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_quoted(key)} = {_inline(below)}" for key, below in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return value.isoformat() if hasattr(value, "isoformat") else repr(value)


def _quoted(text: str) -> str:
    escaped = (f"\\U{ord(c):08X}" if not c.isprintable() or c in '"\\' else c for c in text)
    return f'"{"".join(escaped)}"'
