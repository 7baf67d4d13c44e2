"""What is said of models whose files are not here."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.cli.models.fit import Room, verdict, why_never
from edged.engines.llama.predict import predicted_bytes
from edged.models import catalog, fit
from edged.types import ModelSpec
from tests.support import real_model as real

GIB = 2**30


@pytest.mark.parametrize("context", [256, 4096, 8192])
def test_need_by_the_manifest_is_about_what_the_file_says(context: int) -> None:
    """Within a tenth: the manifest has the bytes of keys and values, only the graph's buffers are guessed."""
    path: Path = real.model_path()
    exact = predicted_bytes(ModelSpec(name="m", path=str(path), context=context))
    about = fit.need(catalog.find(path.stem), context)
    assert about == pytest.approx(exact, rel=0.1)


def test_every_generating_model_of_the_catalog_tells_its_keys_and_values() -> None:
    """Without it a model that fits may be refused."""
    for entry in catalog.catalog().values():
        assert bool(entry.kv_bytes_per_token) is (entry.engine == "llama.cpp")


def test_speed_scales_by_bytes_and_parameters() -> None:
    """A board measured with one model says the same of that model, and less of a larger one."""
    small, large = (catalog.find(f"qwen2.5-coder-{n}-instruct-q4_k_m") for n in ("0.5b", "1.5b"))
    board = fit.board(small, prefill_tokens_s=100.0, decode_tokens_s=20.0)
    assert fit.speed(small, board) == pytest.approx((100.0, 20.0))
    prefill, decode = fit.speed(large, board)
    assert prefill == pytest.approx(100 * small.parameters / large.parameters)
    assert decode == pytest.approx(20 * small.bytes / large.bytes)


@pytest.mark.parametrize(
    ("need", "least", "room", "said"),
    [
        (2, 1, Room(10, 5, 5), "yes"),
        (5, 1, Room(10, 5, 5), "yes"),
        (4, 1, Room(10, 5, 3), "not now"),
        (6, 1, Room(10, 5, 5), "over budget"),
        (12, 11, Room(10, 5, 5), "never"),
        (12, 10, Room(10, 5, 5), "over budget"),
    ],
)
def test_verdict(need: int, least: int, room: Room, said: str) -> None:
    """The board counts for the smallest context, the budget and what is free for the one that is meant."""
    assert verdict(need, least, room) == said


def test_model_that_can_never_run_is_refused_with_numbers_and_what_fits() -> None:
    """Nothing on a board where it may."""
    large = catalog.find("qwen2.5-coder-1.5b-instruct-q4_k_m")
    assert why_never(large, Room(2 * GIB, GIB, GIB)) is None
    said = why_never(large, Room(GIB, GIB // 2, GIB // 2))
    assert said is not None
    assert "MiB" in said
    assert "what fits: all-minilm-l6-v2-int8, smollm2-135m-instruct-q4_1;" in said
