"""Which adapter a model gets: by what its file is, not by how it is called."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from edged.agent.calibration import Calibration, Curve
from edged.agent.dialects.chat_template import Dialect
from edged.config import Agent
from edged.engines.llama.kind import LlamaKind
from edged.errors import ConfigError
from edged.models import adapters, catalog
from edged.models.calibrations import Calibrations
from edged.models.examined import Examined
from edged.types import ModelSpec
from tests.support.real_model import model_path

MANIFEST = """
weights = "{weights}"
sha256 = "{sha}"
bytes = 1
dialect = "compact"
licence = "Apache-2.0"
trained = "by hand"
"""
MOST_BYTES = 20_000_000  # what a clone of the repository may cost for one
ONE, OTHER = "1" * 64, "2" * 64


def test_adapter_is_found_by_the_digest_of_its_weights(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(MANIFEST.format(weights=ONE, sha=OTHER))
    assert adapters.load(tmp_path) == {ONE: tmp_path / "small.gguf"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (MANIFEST.format(weights="abc", sha=OTHER), "weights"),
        (MANIFEST.format(weights=ONE, sha=OTHER).replace("compact", "loud"), "dialect"),
        (MANIFEST.format(weights=ONE, sha=OTHER) + "colour = 1", "colour"),
    ],
)
def test_manifest_that_says_something_else_is_named(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "small.toml").write_text(text)
    with pytest.raises(ConfigError, match=says):
        adapters.load(tmp_path)


def test_shipped_adapters_are_what_is_said_of_them() -> None:
    """Each belongs to weights of the catalog, and its file is the one that was measured."""
    known = {entry.sha256 for entry in catalog.catalog().values()}
    assert adapters.shipped()
    for weights, path in adapters.shipped().items():
        said, file = adapters.manifest(path), path.read_bytes()
        assert said is not None
        assert weights in known
        assert (hashlib.sha256(file).hexdigest(), len(file)) == (said.sha256, said.bytes)
        assert said.bytes <= MOST_BYTES
        assert LlamaKind().dialect_of(path) == said.dialect


def test_configuration_chooses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The one that belongs to the weights, none, or a file of the user's own."""
    monkeypatch.setattr(adapters, "shipped", lambda: {ONE: tmp_path / "small.gguf"})
    assert adapters.chosen("auto", ONE) == str(tmp_path / "small.gguf")
    assert adapters.chosen("auto", OTHER) == ""
    assert adapters.chosen("auto", None) == ""
    assert adapters.chosen("none", ONE) == ""
    assert adapters.chosen("file:/models/own.gguf", OTHER) == "/models/own.gguf"


def test_adapter_that_cannot_be_read_is_found_with_its_model(tmp_path: Path) -> None:
    """Not by the first request; and it is found to be there once it is."""
    adapter, examined = tmp_path / "own.gguf", Examined()
    spec = ModelSpec(name="small", path=str(model_path()), context=256, adapter=str(adapter))
    assert examined.examine(spec, None) == f"its adapter {adapter}: own.gguf cannot be read: No such file or directory"
    adapter.write_bytes(b"<html>")
    assert (examined.examine(spec, None) or "").startswith(f"its adapter {adapter}: own.gguf is no GGUF file")
    adapter.unlink()
    adapter.symlink_to(model_path())
    assert examined.examine(spec, None) is None


CALIBRATION = """
[calibration]
auto = 0.9
decisions = 600
[calibration.calls]
a = 0.8
b = 1.1
c = 0.2
"""


async def test_calibration_counts_for_its_dialect_and_gives_way_to_the_owners(tmp_path: Path) -> None:
    """The owner's own, for as long as weights and adapter are what they were."""
    weights, adapter = tmp_path / "small.gguf", tmp_path / "own.gguf"
    weights.write_bytes(b"weights")
    adapter.write_bytes(b"adapter")
    adapter.with_suffix(".toml").write_text(MANIFEST.format(weights=ONE, sha=OTHER) + CALIBRATION)
    spec = ModelSpec(name="small", path=str(weights), context=256, adapter=str(adapter))
    dialect = "compact"

    async def spec_of(_: str) -> ModelSpec:
        return spec

    async def dialect_of(_: ModelSpec) -> Dialect:
        return Dialect(None, {}, dialect)

    def known() -> Calibrations:
        return Calibrations(tmp_path / "calibrations", {"house": Agent(model="small")}, spec_of, dialect_of)

    shipped = await known().of("house")
    assert shipped == Calibration(calls=Curve(0.8, 1.1, 0.2), auto=0.9, decisions=600)
    assert await known().of("barn") is None  # a server runs its model
    own = Calibration(calls=Curve(1, 1, 0), auto=0.5, decisions=40)
    kept = known()
    await kept.keep("house", own)
    assert await kept.of("house") == await known().of("house") == own
    assert await known().shipped("house") == shipped
    adapter.write_bytes(b"another")
    assert await known().of("house") == shipped
    dialect = ""
    assert await known().of("house") is None


async def test_manifest_that_cannot_be_read_is_no_calibration(tmp_path: Path) -> None:
    """The model answers all the same; where it came with edged, `edged check` names it."""
    (tmp_path / "own.toml").write_text("calibration = 1")
    spec = ModelSpec(name="small", path=str(tmp_path / "x"), context=256, adapter=str(tmp_path / "own.gguf"))

    async def spec_of(_: str) -> ModelSpec:
        return spec

    async def dialect_of(_: ModelSpec) -> Dialect:
        return Dialect(None, {}, "compact")

    known = Calibrations(tmp_path / "calibrations", {"house": Agent(model="small")}, spec_of, dialect_of)
    assert await known.of("house") is None
