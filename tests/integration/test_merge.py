"""An adapter merged into weights computes what it does applied, in a file that is there whole or not at all."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edged.engines.llama import gguf, merged
from edged.engines.llama.bindings import Llama
from edged.engines.llama.kind import LlamaKind
from edged.engines.llama.merge import merge
from edged.models.preparing import Preparer
from edged.models.updates.ledger import forget_file
from edged.types import Event, ModelSpec
from tests.support.gguf import write_adapter
from tests.support.real_model import model_path

RANK, ALPHA = 4, 8.0
Q8_0 = 8
TEXT = "The pump in the cellar"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that changes what the model says: random, of every block's largest matrices."""
    rng = np.random.default_rng(1)
    _, tensors = gguf.header(model_path())
    changed = {t.name: t.dims for t in tensors if t.name.endswith(("ffn_down.weight", "attn_q.weight"))}

    def drawn(rows: int, width: int) -> NDArray[np.float32]:
        return rng.normal(0, 0.06, (rows, width)).astype(np.float32)

    path = tmp_path_factory.mktemp("adapter") / "own.gguf"
    write_adapter(path, {n: (drawn(RANK, dims[0]), drawn(dims[1], RANK)) for n, dims in changed.items()}, ALPHA)
    return path


@pytest.fixture
def spec(tmp_path: Path, adapter: Path) -> ModelSpec:
    """The smallest model in a folder of its own, with the adapter."""
    weights = tmp_path / "small.gguf"
    weights.symlink_to(model_path())
    return ModelSpec(name="small", path=str(weights), context=256, adapter=str(adapter))


def logits(path: Path, adapter: str = "") -> NDArray[np.float32]:
    native = Llama(str(path), 256, 1, adapter=adapter)
    try:
        tokens = native.tokenize(TEXT, special=False)
        native.decode([(token, place, 0, place == len(tokens) - 1) for place, token in enumerate(tokens)])
        return native.logits(len(tokens) - 1).copy()
    finally:
        native.close()


def likeness(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    one, other = one - one.mean(), other - other.mean()
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_merged_weights_compute_what_the_adapter_does(tmp_path: Path, adapter: Path) -> None:
    out = tmp_path / "merged" / "small-1.gguf"
    merge(model_path(), adapter, out, kind=Q8_0)
    applied = logits(model_path(), str(adapter))
    assert likeness(logits(model_path()), applied) < 0.99  # the adapter changes something
    assert likeness(logits(out), applied) > 0.999
    assert list(out.parent.iterdir()) == [out]


def test_a_model_is_loaded_from_its_merged_file_once_there_is_one(spec: ModelSpec, adapter: Path) -> None:
    assert merged.as_loaded(spec) == spec
    wanted = merged.preparation(spec)
    assert wanted is not None
    subprocess.run(wanted.command, check=True)
    found = merged.as_loaded(spec)
    assert found.adapter == ""
    assert Path(found.path).parent == wanted.folder
    assert merged.preparation(spec) is None
    other = adapter.with_name("other.gguf")
    other.write_bytes(adapter.read_bytes())
    assert merged.as_loaded(msgspec.structs.replace(spec, adapter=str(other))).adapter == str(other)


def test_adapter_taught_anew_is_another_one_though_size_and_time_are_the_same(spec: ModelSpec, tmp_path: Path) -> None:
    """Images give all their files one time, and the size hangs on the rank."""
    own = tmp_path / "own.gguf"
    own.write_bytes(b"first")
    os.utime(own, ns=(1, 1))
    mine = msgspec.structs.replace(spec, adapter=str(own))
    merge_as_if(mine)
    assert merged.as_loaded(mine).adapter == ""
    own.write_bytes(b"other")
    os.utime(own, ns=(1, 1))
    assert merged.as_loaded(mine) == mine


def test_what_was_made_before_goes_and_what_others_made_stays(spec: ModelSpec, tmp_path: Path) -> None:
    """A merged file is as large as its weights. Those of another adapter, of weights whose name begins alike, and one
    that is being written now are in use."""
    own = tmp_path / "own.gguf"
    own.write_bytes(b"first")
    mine = msgspec.structs.replace(spec, adapter=str(own))
    old = merge_as_if(mine)
    rest, written = (old.with_name(f"{old.name}.part{process}") for process in (2**22 + 1, os.getpid()))
    other, beside = (old.with_name(old.name.replace("small+own", name)) for name in ("small+other", "small-2+own"))
    for path in (rest, written, other, beside):
        path.write_bytes(b"")
    own.write_bytes(b"second")
    assert merged.preparation(mine) is not None
    assert set(old.parent.iterdir()) == {written, other, beside}
    assert set(LlamaKind().made_from(Path(spec.path))) == {other}


def test_weights_that_are_removed_take_along_what_was_made_of_them(spec: ModelSpec) -> None:
    made = merge_as_if(spec)
    assert forget_file(Path(spec.path))
    assert not made.exists()


def test_disk_that_gets_full_is_not_left_full(spec: ModelSpec, tmp_path: Path) -> None:
    out = tmp_path / "merged" / "small-1.gguf"
    limit = 20 * 2**20
    command = [sys.executable, "-m", "edged.engines.llama.merge", spec.path, spec.adapter, str(out), str(Q8_0)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert (done.returncode, "File too large" in done.stderr) == (1, True)
    assert list(out.parent.iterdir()) == []


def merge_as_if(spec: ModelSpec) -> Path:
    """An empty file where the merged one would be."""
    wanted = merged.preparation(spec)
    assert wanted is not None
    wanted.folder.mkdir(exist_ok=True)
    made = Path(wanted.command[-2])
    made.write_bytes(b"")
    return made


def test_no_adapter_has_nothing_to_merge(spec: ModelSpec) -> None:
    assert LlamaKind().preparation(msgspec.structs.replace(spec, adapter="")) is None


@pytest.mark.parametrize(
    ("broken", "said"), [(b"no model", "is no GGUF file"), (b"", "cannot be read|is no GGUF file")]
)
def test_what_cannot_be_merged_leaves_no_file(spec: ModelSpec, tmp_path: Path, broken: bytes, said: str) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(broken)
    out = tmp_path / "merged" / "small-1.gguf"
    command = [sys.executable, "-m", "edged.engines.llama.merge", spec.path, str(bad), str(out), str(Q8_0)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert any(each in done.stderr for each in said.split("|"))
    assert not out.parent.exists()


class Kept:
    """Implements `interfaces.Residents` as far as it is used here."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.loaded = asyncio.Event()

    def admit(self, spec: ModelSpec) -> None:
        raise AssertionError

    async def dismiss(self, name: str) -> None:
        raise AssertionError

    async def load(self, model: str) -> None:
        self.heard.append(f"load {model}")
        self.loaded.set()

    async def switch(self, name: str, spec: ModelSpec) -> None:
        self.heard.append(f"switch {name}")


async def test_a_resident_model_is_loaded_again_when_its_file_is_made(
    spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edged.models.preparing.AFTER_S", 0.0)
    residents = Kept()
    preparer = Preparer(lambda: {"small": spec}, residents, lambda: 2**40, lambda name: True)
    task = asyncio.create_task(preparer.run())
    try:
        preparer.heard(Event("model_loaded", 0.0))
        async with asyncio.timeout(60):
            await residents.loaded.wait()
    finally:
        task.cancel()
    assert residents.heard == ["switch small", "load small"]
    assert merged.as_loaded(spec).adapter == ""


async def test_file_that_an_update_brings_meanwhile_is_not_switched_back(
    spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The update waits for a request that runs; a switch that comes behind it would undo it."""
    monkeypatch.setattr("edged.models.preparing.AFTER_S", 0.0)
    asked = asyncio.Event()

    def updates() -> bool:
        asked.set()
        return True

    residents = Kept()
    preparer = Preparer(lambda: {"small": spec}, residents, lambda: 2**40, lambda name: True, updates)
    task = asyncio.create_task(preparer.run())
    try:
        preparer.heard(Event("model_loaded", 0.0))
        async with asyncio.timeout(60):
            await asked.wait()
        await asyncio.sleep(0.05)
    finally:
        task.cancel()
    assert residents.heard == []


async def test_board_that_cannot_start_a_process_goes_on(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task is one of those with which the daemon ends."""
    monkeypatch.setattr("edged.models.preparing.AFTER_S", 0.0)
    tried = asyncio.Event()

    async def none(*_: object, **__: object) -> None:
        tried.set()
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(asyncio, "create_subprocess_exec", none)
    preparer = Preparer(lambda: {"small": spec}, Kept(), lambda: 2**40, lambda name: True)
    task = asyncio.create_task(preparer.run())
    preparer.heard(Event("model_loaded", 0.0))
    async with asyncio.timeout(10):
        await tried.wait()
    await asyncio.sleep(0.05)
    assert not task.done()
    task.cancel()


async def test_nothing_is_made_without_room_in_memory(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edged.models.preparing.AFTER_S", 0.0)
    looked = asyncio.Event()

    def room() -> int:
        looked.set()
        return 0

    preparer = Preparer(lambda: {"small": spec}, Kept(), room, lambda name: True)
    task = asyncio.create_task(preparer.run())
    try:
        preparer.heard(Event("model_loaded", 0.0))
        async with asyncio.timeout(10):
            await looked.wait()
    finally:
        task.cancel()
    assert merged.as_loaded(spec) == spec
