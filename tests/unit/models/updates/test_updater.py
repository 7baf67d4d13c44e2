"""Updates whose files are pulled: which file is taken, kept, removed. The pull, the governor and the model are ours."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edged.agent.dialects.chat_template import Dialect
from edged.engines.llama import gguf
from edged.engines.scripted import ScriptedEngine
from edged.errors import EdgedError, ModelUnavailable, NoMemory
from edged.models import catalog
from edged.models.catalog import ModelFile
from edged.models.pull import Progress, Unreachable
from edged.models.updates.fetch import Fetched
from edged.models.updates.ledger import Ledger
from edged.models.updates.updater import Updater
from edged.types import ModelSpec


class Board:
    """A model "small" of a source without a hash, and an updater; `data` is what the source gives next."""

    SOURCE = "https://example.com/m.gguf"

    def __init__(self, folder: Path) -> None:
        self.models = folder / "models"
        self.models.mkdir(parents=True, exist_ok=True)
        self.first = catalog.resolve(self.SOURCE, self.models).path
        if not self.first.exists():
            self.first.write_bytes(b"first")
        self.data = b"first"
        self.fault: EdgedError | None = None
        self.fetch_fault: EdgedError | None = None
        self.specs = {"small": ModelSpec(name="small", path=str(self.first), context=512)}
        self.admitted: list[str] = []
        self.ledger = Ledger(folder / "state")
        self.updater = Updater(
            {"small": self.SOURCE},
            self.specs,
            self.models,
            self.ledger,
            self,
            ScriptedEngine(),
            dialect=self._dialect,
            is_resident=lambda name: False,
            tell=lambda name, data: None,
            fetch=self._fetch,
        )

    async def _fetch(self, model: ModelFile, report: Callable[[Progress], None]) -> Fetched:
        if self.fetch_fault:
            raise self.fetch_fault
        model.path.write_bytes(self.data)
        return Fetched(hashlib.sha256(self.data).hexdigest(), True)

    async def _dialect(self, spec: ModelSpec) -> Dialect:
        return Dialect(None, {})

    def admit(self, spec: ModelSpec) -> None:
        self.admitted.append(spec.name)

    async def dismiss(self, name: str) -> None:
        self.admitted.remove(name)

    async def load(self, model: str) -> None:
        if self.fault:
            raise self.fault

    async def switch(self, name: str, spec: ModelSpec) -> None:
        assert not self.admitted

    async def update(self, data: bytes) -> Any:
        self.data = data
        return await self.updater.update("small", None)

    def files(self) -> set[bytes]:
        """Contents of what lies in the models' folder."""
        return {path.read_bytes() for path in self.models.iterdir()}


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    monkeypatch.setattr(gguf, "check", lambda path: None)
    return Board(tmp_path)


async def test_same_bytes_are_no_update(board: Board) -> None:
    """Nothing of it stays."""
    assert (await board.update(b"first"))["state"] == "current"
    assert board.files() == {b"first"}
    assert board.specs["small"].path == str(board.first)


async def test_new_bytes_lie_beside_the_old_and_the_oldest_pulled_ones_go(board: Board, tmp_path: Path) -> None:
    """Two files at most beside the one the user pulled; another daemon finds the last one."""
    for number, data in enumerate((b"second", b"third", b"fourth")):
        assert (await board.update(data))["state"] == "done"
        assert Path(board.specs["small"].path).read_bytes() == data
        assert len(board.files()) == (2 if number == 0 else 3)
    assert board.files() == {b"first", b"third", b"fourth"}
    assert Ledger(tmp_path / "state").pages.models["small"].current.path == board.specs["small"].path
    assert (await board.updater.rollback("small"))["state"] == "rolled_back"
    assert Path(board.specs["small"].path).read_bytes() == b"third"


@pytest.mark.parametrize(
    ("fault", "files", "said"),
    [
        (ModelUnavailable("it is damaged"), {b"first"}, "is removed"),
        (NoMemory("it needs more"), {b"first", b"second"}, "is kept"),
    ],
)
async def test_file_that_failed_goes_and_one_that_may_yet_work_stays(
    board: Board, fault: EdgedError, files: set[bytes], said: str
) -> None:
    """The reason says which; the candidate is out of memory in any case."""
    board.fault = fault
    failed = await board.update(b"second")
    assert failed["state"] == "failed"
    assert said in failed["error"]["message"]
    assert (board.files(), board.admitted) == (files, [])
    assert board.updater.status("small")["state"] == "failed"
    assert board.ledger.pages.models == {}
    board.fault = None
    assert (await board.update(b"second"))["state"] == "done"


async def test_pull_that_fails_is_told_and_may_be_asked_again(board: Board) -> None:
    """As the pull said it."""
    board.fetch_fault = Unreachable("no way to the hub")
    failed = await board.update(b"second")
    assert failed["error"] == {"code": "model_unavailable", "message": "no way to the hub", "retryable": True}
    assert board.specs["small"].path == str(board.first)


async def test_rollback_to_a_file_that_is_gone_stays(board: Board) -> None:
    """The one in force answers on."""
    await board.update(b"second")
    board.first.unlink()
    assert "is gone" in (await board.updater.rollback("small"))["error"]["message"]
    assert Path(board.specs["small"].path).read_bytes() == b"second"


async def test_file_has_the_adapter_that_belongs_to_it(board: Board) -> None:
    """An update's at once, and the one of the file in force when it is known."""
    known = {hashlib.sha256(b"second").hexdigest(): "second.lora"}
    board.updater._adapter = lambda name, version: known.get(version.sha256 or "first", "")
    await board.update(b"second")
    assert board.specs["small"].adapter == "second.lora"
    await board.updater.rollback("small")
    assert board.specs["small"].adapter == ""
    known["first"] = "first.lora"
    await board.updater.teach("small")
    assert board.specs["small"].adapter == "first.lora"
