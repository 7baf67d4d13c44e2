"""The one downloader: brings the files of a model here, whatever carries them, and believes only their sha256.

Per file: the sources in order, each until it gives the bytes or fails; `<file>.part` grows and is hashed meanwhile,
and gets the file's name once it is right. Whatever interrupts a pull, the next one goes on where it ended.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from edged.engines import registry
from edged.models import catalog
from edged.models.catalog import FileSpec, ModelFile, Source
from edged.models.pull.archives import Archive, Journal, append_member, locate
from edged.models.pull.disk import CHUNK, Sink, ensure_room, exclusive, in_thread, mib, publish, sha256_of
from edged.models.pull.errors import PullFailed, SourceFailed, Unreachable
from edged.models.pull.fetch import Patience, Target, download, hub_target, session

if TYPE_CHECKING:
    import threading

    import aiohttp

__all__ = [
    "Patience",
    "Progress",
    "PullFailed",
    "Unreachable",
    "installed",
    "partial",
    "pull",
    "remove",
    "sha256",
    "verify",
]

REPORTS_PER_S = 5  # what a progress bar can show; more would cost a small board time
RATE_WINDOW_S = 5.0  # long enough to be steady, short enough to show a link that slows down


class Progress(Struct, frozen=True):
    """How far one file is.

    done, total: bytes of the file; total None where no source told it yet. rate: bytes per second of the last
    seconds. note: a sentence worth a line of its own (a source failed and why, another pull is waited for), else "".
    """

    file: str
    done: int
    total: int | None
    rate: float
    note: str = ""


Report = Callable[[Progress], None]


async def pull(model: ModelFile, *, progress: Report, force: bool = False, patience: Patience | None = None) -> bool:
    """Makes a model present; False when it was already. `force` fetches it again and then replaces it.

    Cancelling keeps what has arrived. Two pulls of one model, in any processes, do the work once.

    Raises:
        Unreachable: no source gave the bytes, at least one because of the network.
        PullFailed: ... for other reasons, no room, a folder that cannot be written; the message names every source.
    """
    if not model.files:
        raise PullFailed(f"{model.path} is the user's own file: there is nowhere to pull it from")
    folder = model.path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        waiting = _Meter(model.path.name, model.bytes, progress)
        async with exclusive(_lock(model), lambda: waiting.say("another pull of it is running; waiting for that")):
            if model.present() and not force:
                return False
            async with session(patience or Patience()) as client:
                for spec in model.files:
                    if force or not _complete(spec, folder):
                        await _FilePull(spec, folder, client, progress).run()
    except OSError as error:
        raise PullFailed(f"{error.filename or folder}: {error.strerror or error}") from error
    return True


async def verify(model: ModelFile, *, progress: Report) -> list[str]:
    """What is wrong with a model's files, one sentence each; empty when all is right.

    A pulled file whose sha256 differs is deleted: it is not that model. A file of the user's own is left alone.
    """
    problems = []
    specs = model.files or (FileSpec(model.path.name, model.sha256, model.bytes, ()),)
    for spec in specs:
        path = model.path.with_name(spec.name)
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif spec.sha256 is not None and (found := await _hash(path, progress)) != spec.sha256:
            outcome = ""
            if model.files:
                path.unlink(missing_ok=True)
                outcome = "; deleted"
            problems.append(f"{path}: sha256 is {found}, expected {spec.sha256}{outcome}")
    return problems


async def remove(model: ModelFile, *, progress: Report) -> int:
    """Deletes a pulled model, what was made of it and everything left of interrupted pulls; returns the freed bytes.

    Raises:
        PullFailed: the file is the user's own, or cannot be deleted.
    """
    if not model.files:
        raise PullFailed(f"{model.path} is the user's own file: edged does not delete it")
    if not model.path.parent.is_dir():
        return 0
    freed = 0
    meter = _Meter(model.path.name, model.bytes, progress)
    try:
        async with exclusive(_lock(model), lambda: meter.say("a pull of it is running; waiting for that")):
            kind = registry.by_suffix(model.path.suffix)
            for spec in model.files:
                file = model.path.with_name(spec.name)
                made = kind.made_from(file) if kind else []
                for path in (file, *made, *_leftovers(model.path.parent, spec)):
                    if path.exists():
                        freed += path.stat().st_size
                        path.unlink()
    except OSError as error:
        raise PullFailed(f"{error.filename or model.path}: {error.strerror or error}") from error
    return freed


def installed(models_dir: Path) -> list[ModelFile]:
    """The catalog's models that are present, smallest first."""
    models = (catalog.of_entry(entry, models_dir) for entry in catalog.catalog().values())
    return [model for model in models if model.present()]


def partial(model: ModelFile) -> int:
    """Bytes of an interrupted pull that the next one builds on."""
    parts = (_part(model.path.parent, spec) for spec in model.files)
    return sum(part.stat().st_size for part in parts if part.is_file())


def _complete(spec: FileSpec, folder: Path) -> bool:
    path = folder / spec.name
    return path.is_file() and (spec.bytes is None or path.stat().st_size == spec.bytes)


def _lock(model: ModelFile) -> Path:
    return model.path.with_name(f".{model.name}.lock")


def _part(folder: Path, spec: FileSpec) -> Path:
    return folder / f"{spec.name}.part"


def _archive(folder: Path, spec: FileSpec) -> Path:
    return folder / f"{spec.name}.archive.part"


def _journal(folder: Path, spec: FileSpec) -> Path:
    return folder / f"{spec.name}.part.json"


def _leftovers(folder: Path, spec: FileSpec) -> tuple[Path, ...]:
    return _part(folder, spec), _archive(folder, spec), _journal(folder, spec)


async def sha256(path: Path, *, progress: Report) -> str:
    """Hex digest of a file.

    Raises:
        PullFailed: it cannot be read.
    """
    try:
        return await _hash(path, progress)
    except OSError as error:
        raise PullFailed(f"{error.filename or path}: {error.strerror or error}") from error


async def _hash(path: Path, progress: Report) -> str:
    meter = _Meter(path.name, path.stat().st_size, progress)
    loop = asyncio.get_running_loop()

    def from_thread(done: int) -> None:
        loop.call_soon_threadsafe(meter.at, done)

    return await sha256_of(path, from_thread)


class _Meter:
    """Turns byte counts into Progress, a few times a second."""

    def __init__(self, file: str, total: int | None, report: Report) -> None:
        self._file = file
        self._total = total
        self._report = report
        self._done = 0
        self._reported_at = 0.0
        self._recent: deque[tuple[float, int]] = deque()

    def at(self, done: int) -> None:
        """`done` bytes of the file are there, or are certain to be."""
        now = time.monotonic()
        self._done = done
        if now - self._reported_at < 1 / REPORTS_PER_S and done != self._total:
            return
        self._reported_at = now
        self._recent.append((now, done))
        while now - self._recent[0][0] > RATE_WINDOW_S and len(self._recent) > 2:
            self._recent.popleft()
        self._send("")

    def say(self, note: str) -> None:
        self._send(note)

    def _send(self, note: str) -> None:
        self._report(Progress(self._file, self._done, self._total, self._rate(), note))

    def _rate(self) -> float:
        if len(self._recent) < 2:
            return 0.0
        (began, first), (ended, last) = self._recent[0], self._recent[-1]
        return max(0.0, (last - first) / (ended - began)) if ended > began else 0.0


class _FilePull:
    """One file of a model: its sources in order, into one partial file. The model's lock is held."""

    def __init__(self, spec: FileSpec, folder: Path, client: aiohttp.ClientSession, progress: Report) -> None:
        self._spec = spec
        self._folder = folder
        self._client = client
        self._part = _part(folder, spec)
        self._meter = _Meter(spec.name, spec.bytes, progress)

    async def run(self) -> None:
        self._ensure_room()
        failures: list[tuple[Source, SourceFailed]] = []
        for source in self._spec.sources:
            self._meter.say(f"from {source}")
            try:
                await self._from(source)
            except SourceFailed as failure:
                failures.append((source, failure))
                self._meter.say(f"{source}: {failure.reason}")
            else:
                for leftover in _leftovers(self._folder, self._spec):
                    leftover.unlink(missing_ok=True)
                return
        reasons = "; ".join(f"{source}: {failure.reason}" for source, failure in failures)
        kind = Unreachable if any(failure.retryable for _, failure in failures) else PullFailed
        raise kind(f"{self._spec.name} could not be pulled: {reasons or 'no source is known'}")

    def _ensure_room(self) -> None:
        if self._spec.bytes is not None:
            there = self._part.stat().st_size if self._part.exists() else 0
            ensure_room(self._folder, self._spec.bytes - there, self._spec.name)

    async def _from(self, source: Source) -> None:
        """The right bytes from this source, or SourceFailed.

        Wrong ones are deleted; when some of them came from an earlier attempt (another source, a captive portal), this
        one is asked again from the start, because it may be innocent.
        """
        wrong, resumed = await self._obtain(source)
        if wrong and resumed:
            self._meter.say(f"{source}: what was kept of an earlier attempt is wrong; starting over")
            wrong, _ = await self._obtain(source)
        if wrong:
            raise SourceFailed(wrong)
        publish(self._part, self._folder / self._spec.name)

    async def _obtain(self, source: Source) -> tuple[str, bool]:
        """Fills the partial file. Returns what is wrong with it ("" when it is right; else it is gone) and whether
        a part of it had been there before."""
        journal = Journal(_journal(self._folder, self._spec), str(source))
        sink = await Sink.open(self._part, keep=self._keep(source, journal))
        resumed = sink.size > 0
        try:
            if resumed:
                self._meter.say(f"going on after {mib(sink.size)}")
            self._meter.at(sink.size)
            await self._fill(sink, source, journal)
            await in_thread(lambda _: sink.sync())
        finally:
            sink.close()
        found = sink.digest().hex()
        if self._spec.sha256 is None:
            self._meter.say(f"sha256={found}: add #sha256={found} to the source to accept nothing else")
        if self._spec.sha256 in (None, found):
            return "", resumed
        self._part.unlink()
        journal.clear()
        return f"sha256 is {found}, expected {self._spec.sha256}; deleted", resumed

    def _keep(self, source: Source, journal: Journal) -> int | None:
        """How much of the partial file this source can build on, in bytes; None: all of it."""
        there = self._part.stat().st_size if self._part.exists() else 0
        if source.archive is not None:
            while journal.ends and journal.ends[-1] > there:  # noted, but lost: a disk that lies about fsync
                journal.ends.pop()
            return journal.ends[-1] if journal.ends else 0
        # Nothing could tell that a file went on with the bytes of another one.
        return None if self._spec.sha256 is not None else 0

    async def _fill(self, sink: Sink, source: Source, journal: Journal) -> None:
        if source.archive is not None:
            await self._from_archives(sink, source, journal)
        elif source.file is not None:
            await self._copy(sink, Path(source.file))
        elif source.hf is not None:
            await self._download(sink, hub_target(source.hf, source.revision))
        else:
            assert source.https is not None  # a source has exactly one place
            await self._download(sink, Target(source.https))

    async def _download(self, sink: Sink, target: Target) -> None:
        await download(self._client, target, sink, size=self._spec.bytes, on_bytes=self._meter.at)

    async def _copy(self, sink: Sink, path: Path) -> None:
        def work(stop: threading.Event) -> None:
            with path.open("rb") as file:
                file.seek(sink.size)
                while not stop.is_set() and (chunk := file.read(CHUNK)):
                    sink.write(chunk)

        if not path.is_file():
            raise SourceFailed("there is no such file")
        await in_thread(work)

    async def _from_archives(self, sink: Sink, source: Source, journal: Journal) -> None:
        members = source.members()
        for number, (name, member) in enumerate(members[len(journal.ends) :], start=len(journal.ends) + 1):
            if len(members) > 1:
                self._meter.say(f"part {number} of {len(members)}: {name}")
            await self._join(sink, await locate(name), member)
            await in_thread(lambda _: sink.sync())
            journal.add(sink.size)
            self._meter.at(sink.size)

    async def _join(self, sink: Sink, archive: Archive, member: str) -> None:
        """Appends one archive's member; the archive is deleted once it was read."""
        path = archive.local or await self._fetch_archive(sink, archive)
        if self._spec.bytes is not None:
            ensure_room(self._folder, self._spec.bytes - sink.size, self._spec.name)
        await in_thread(lambda stop: append_member(path, archive.kind, member, sink, limit=self._spec.bytes, stop=stop))
        _archive(self._folder, self._spec).unlink(missing_ok=True)

    async def _fetch_archive(self, sink: Sink, archive: Archive) -> Path:
        """The archive on disk, with the hash that its registry tells; resumed like any download."""
        path = _archive(self._folder, self._spec)
        for _ in range(2):  # once more where what was kept of an earlier attempt turns out wrong
            file = await Sink.open(path, archive.algorithm)
            resumed = file.size > 0
            try:
                # The archive's bytes stand for those of the part inside, which are about as many.
                await download(
                    self._client,
                    Target(archive.url),
                    file,
                    size=None,
                    on_bytes=lambda got: self._meter.at(self._capped(sink.size + got)),
                )
            finally:
                file.close()
            if file.digest() == archive.digest:
                return path
            path.unlink()
            if not resumed:
                break
        raise SourceFailed(f"the archive's {archive.algorithm} is not the one the registry tells; deleted")

    def _capped(self, done: int) -> int:
        return done if self._spec.bytes is None else min(done, self._spec.bytes)
