"""What the bytes of files are, found out beside everything else, and which adapter a model gets by it."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from pathlib import Path

import pytest

from edged.config import Config, Model, Node
from edged.host import process
from edged.models import adapters
from edged.models.digests import FILE_NAME, Digests, Hasher
from edged.models.files import adapter_of, hang_on_digests, model_aliases
from edged.models.updates.ledger import Version
from edged.types import Event

BYTES = b"weights"
SHA256 = hashlib.sha256(BYTES).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "own.gguf"
    path.write_bytes(BYTES)
    return path


async def test_digest_is_kept_as_long_as_the_file_stays_as_it_is(tmp_path: Path, file: Path) -> None:
    """Over a start, and not when other bytes are there."""
    digests = Digests(tmp_path)
    assert digests.of(file) is None
    assert await digests.take(file) == digests.of(file) == SHA256
    assert Digests(tmp_path).of(file) == SHA256
    file.chmod(0o600)
    assert Digests(tmp_path).of(file) == SHA256
    before = file.stat()
    file.write_bytes(BYTES[::-1])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert digests.of(file) is None
    file.unlink()
    assert digests.of(file) is None


@pytest.mark.parametrize("damaged", [b"", b"{", b"[1]", b'{"a": {"identity": 3}}', b"\xff"])
async def test_damaged_digests_are_found_out_anew(tmp_path: Path, file: Path, damaged: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(damaged)
    assert Digests(tmp_path).of(file) is None
    assert await Digests(tmp_path).take(file) == SHA256
    assert Digests(tmp_path).of(file) == SHA256


async def test_file_that_cannot_be_read_has_none(tmp_path: Path) -> None:
    assert await Digests(tmp_path).take(tmp_path / "none.gguf") is None
    assert not (tmp_path / FILE_NAME).exists()


async def test_board_that_cannot_look_goes_on(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without memory for another process, or with a folder that is closed to this user: the next look may find it."""
    digests = Digests(tmp_path)

    async def none(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with monkeypatch.context() as patched:
        patched.setattr(asyncio, "create_subprocess_exec", none)
        assert await digests.take(file) is None
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert digests.of(loop) is None
    assert await digests.take(loop) is None
    assert await digests.take(file) is not None


async def test_file_that_changes_while_its_digest_is_kept_is_looked_at_again(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found is told of the file that was read; nothing is known of the one that is there now."""
    digests = Digests(tmp_path)
    keep = digests._keep

    def changing() -> None:
        file.write_bytes(b"other weights")
        keep()

    monkeypatch.setattr(digests, "_keep", changing)
    assert await digests.take(file) == SHA256
    assert digests.of(file) is None


async def test_cancelled_look_ends_its_child(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "endless")  # nobody ever writes into it
    before = set(process.children())  # of whatever else ran in this process
    looking = asyncio.create_task(Digests(tmp_path).take(tmp_path / "endless"))
    async with asyncio.timeout(20):
        while not (begun := set(process.children()) - before):
            await asyncio.sleep(0.01)
        looking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await looking
    assert begun.isdisjoint(process.children())


def settings(tmp_path: Path, file: Path, **more: object) -> Config:
    """Models of a file, of the same with another adapter, and of the catalog."""
    own = f"file:{file}"
    sources = {
        "own": Model(source=own),
        "bare": Model(source=own, adapter="none"),
        "known": Model(source="catalog:qwen2.5-coder-0.5b-instruct-q4_k_m"),
        "vectors": Model(source="catalog:all-minilm-l6-v2-int8"),
    }
    return Config(node=Node(state_dir=str(tmp_path), models_dir=str(tmp_path)), models=sources)


async def test_adapter_is_found_by_the_bytes_of_a_file(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what no source says has to be found out, and only where it decides."""
    monkeypatch.setattr(adapters, "shipped", lambda: {SHA256: tmp_path / "a.gguf"})
    config = settings(tmp_path, file)
    aliases = model_aliases(config)
    assert {name: alias.variants[0].adapter for name, alias in aliases.items()} == dict.fromkeys(config.models, "")
    assert hang_on_digests(config, aliases, dict) == {"own": (file,)}
    own = Version(f"file:{file}", str(file))
    assert hang_on_digests(config, aliases, lambda: {"own": own}) == {"own": (file,)}
    pulled = Version("https://x.org/m.gguf", "/gone.gguf", SHA256)
    assert hang_on_digests(config, aliases, lambda: {"own": pulled}) == {}
    digests = Digests(tmp_path)
    await digests.take(file)
    found = {name: alias.variants[0].adapter for name, alias in model_aliases(config).items()}
    assert found == {"own": str(tmp_path / "a.gguf"), "bare": "", "known": "", "vectors": ""}
    for version in (own, pulled):
        assert adapter_of(config, aliases, digests, "own", version) == str(tmp_path / "a.gguf")
        assert adapter_of(config, aliases, digests, "bare", version) == ""
        assert adapter_of(config, aliases, digests, "vectors", version) == ""


class Watched:
    """A hasher of one file; `taught` has what was known of it at each wish."""

    def __init__(self, tmp_path: Path, file: Path) -> None:
        self.digests, self.file = Digests(tmp_path), file
        self.taught: list[str | None] = []
        self.hasher = Hasher(self.digests, lambda: {"own": (file,)}, self.teach)

    async def teach(self, name: str) -> None:
        self.taught.append(self.digests.of(self.file))

    async def until(self, *taught: str | None) -> None:
        async with asyncio.timeout(20):
            while self.taught != [*taught]:
                await asyncio.sleep(0.01)


async def test_models_are_taught_when_their_file_is_known_and_when_it_changes(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not known any more is taken away first."""
    monkeypatch.setattr(adapters, "shipped", lambda: {SHA256: tmp_path / "a.gguf"})
    watched = Watched(tmp_path, file)
    running = asyncio.create_task(watched.hasher.run())
    await watched.until(None, SHA256)
    file.write_bytes(b"other weights")
    other = hashlib.sha256(b"other weights").hexdigest()
    watched.hasher.heard(Event("model_loaded", 0.0))
    await watched.until(None, SHA256, None, other)
    running.cancel()


async def test_nothing_is_hashed_where_no_adapter_comes_with_edged(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "shipped", dict)
    watched = Watched(tmp_path, file)
    running = asyncio.create_task(watched.hasher.run())
    await asyncio.sleep(0.1)
    running.cancel()
    assert (watched.taught, watched.digests.of(file)) == ([], None)
