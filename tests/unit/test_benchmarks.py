"""What the benchmarks conclude from what they measured: figures, and whether a call is the wanted one."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(name="module")
def _module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports `benchmarks.NAME` the way scripts/bench finds it; afterwards nothing of it is left."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield lambda name: importlib.import_module(f"benchmarks.{name}")
    for name in set(sys.modules) - before:
        if name.split(".")[0] == "benchmarks":
            del sys.modules[name]


def test_a_ratio_is_the_median_of_neighbouring_blocks_not_of_all_values(module: Any) -> None:
    # the machine was ten times slower in the second block, for both: the ratio is what it was
    blocks = [([1.0, 3.0], [4.0]), ([20.0, 20.0], [40.0]), ([2.0], [8.0])]
    found = module("figures").ratio_of_means(blocks)
    assert (found.middle, found.least, found.most) == (0.5, 0.25, 0.5)


@pytest.mark.parametrize(
    ("values", "share", "wanted"),
    [
        ([5.0], 0.95, 5.0),
        ([float(n) for n in range(1, 101)], 0.95, 95.0),
        ([float(n) for n in range(1, 101)], 0.99, 99.0),
        ([float(n) for n in range(20, 0, -1)], 0.95, 19.0),
        ([1.0, 2.0, 3.0], 0.5, 2.0),
    ],
)
def test_a_percentile_is_the_nearest_rank(module: Any, values: list[float], share: float, wanted: float) -> None:
    assert module("figures").nearest_rank(values, share) == wanted


@pytest.mark.parametrize(
    ("counts", "share", "wanted"),
    [
        ((0, 100, 100, 100), 0.5, 0.0015),  # in the middle of the second bucket
        ((99, 99, 100, 100), 0.99, 0.001),
        ((98, 98, 100, 100), 0.99, 0.006),
        ((0, 0, 0, 10), 0.99, 0.01),  # beyond the last bound: no more is known
    ],
)
def test_a_histograms_quantile_lies_within_its_bucket(
    module: Any, counts: tuple[int, ...], share: float, wanted: float
) -> None:
    buckets = list(zip((0.001, 0.002, 0.01, math.inf), counts, strict=True))
    assert module("figures").histogram_quantile(buckets, share) == pytest.approx(wanted)


def test_a_histogram_without_observations_has_no_quantile(module: Any) -> None:
    assert math.isnan(module("figures").histogram_quantile([(0.001, 0), (math.inf, 0)], 0.99))


@pytest.mark.parametrize(
    ("made", "right"),
    [
        (("announce", {"text": "The bus is here."}), True),
        (("announce", {"text": "the bus was here"}), False),
        (("announce", {"text": "the bus is here", "room": "lobby"}), False),
        (("announce", {}), False),
        (("announce", "the bus is here"), False),
        (("set_light", {"text": "the bus is here"}), False),
        (None, False),
    ],
)
def test_a_call_is_compared_by_tool_and_arguments_and_free_text_by_its_words(
    module: Any, made: Any, right: bool
) -> None:
    assert module("workload").same(made, ("announce", {"text": "the bus is here"})) is right


def test_a_number_is_not_its_text(module: Any) -> None:
    assert not module("workload").same(("set_temperature", {"celsius": "21"}), ("set_temperature", {"celsius": 21}))


@pytest.mark.parametrize("text", ['{"name": "a", "arguments": {"x"', "", "[]", '{"name": "a"}', "3"])
def test_what_a_peer_did_not_finish_is_no_call(module: Any, text: str) -> None:
    assert module("workload").parsed(text) is None


def test_the_workload_asks_for_what_its_tools_can_do(module: Any) -> None:
    workload = module("workload")
    assert len(workload.TOOLS) == 8
    assert len(workload.REQUESTS) == 30
    assert {call[0] for _, call in workload.REQUESTS} == set(workload.TOOLS)
    for _, (name, arguments) in workload.REQUESTS:
        parameters = workload.TOOLS[name]["parameters"]
        assert arguments.keys() == parameters.keys()
        assert all(arguments[k] in p["enum"] for k, p in parameters.items() if "enum" in p)


def test_the_pins_of_a_lock_keep_their_markers_and_lose_their_hashes(module: Any) -> None:
    lock = (
        "a-b==1.2 \\\n    --hash=sha256:00\n    # via c\nnumpy==2.4 ; python_full_version < '3.12' \\\n    --hash=1\n"
    )
    assert module("peers").pins(lock) == ["a-b==1.2", "numpy==2.4 ; python_full_version < '3.12'"]
