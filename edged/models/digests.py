"""What the bytes of model files are, where no source says: a file's sha256, kept as long as the file stays as it was.

Hashing 500 MB takes seconds of a core and half a minute of a card, so nobody waits for it: a child process of the
lowest priority does it while the daemon works, and a model gets its adapter when the digest is known.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from edged.host import child
from edged.models import adapters
from edged.models.examined import Identity, identity_of
from edged.types import Event

log = logging.getLogger("edged.models.digests")

FILE_NAME = "digests.json"  # in the state folder
CHANGES = {"model_loaded", "model_updated", "model_rolled_back"}  # events after which another file may be there
PR_SET_PDEATHSIG = 1  # prctl.h: it ends with the daemon
NICEST = 19  # setpriority(2); the disk is asked with the priority that belongs to it
CHILD = f"""
import ctypes, hashlib, os, sys
ctypes.CDLL(None).prctl({PR_SET_PDEATHSIG}, {signal.SIGKILL.value})
os.nice({NICEST})
with open(sys.argv[1], "rb") as file:
    print(hashlib.file_digest(file, "sha256").hexdigest())
"""


class Digest(Struct, frozen=True):
    """What a file was found to be. identity: of the file then."""

    identity: Identity
    sha256: str


class Digests:
    """The digests that are known, by path. Lost or damaged they are found out anew."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE_NAME
        self._known: dict[str, Digest] = {}
        with contextlib.suppress(OSError, ValueError, RecursionError):
            self._known = msgspec.json.decode(self._path.read_bytes(), type=dict[str, Digest])

    def of(self, path: Path) -> str | None:
        """A file's sha256; None: nobody has looked, or it has changed since. At most one stat(2)."""
        known = self._known.get(str(path))
        return known.sha256 if known and known.identity == _identity(path) else None

    async def take(self, path: Path) -> str | None:
        """Find a file's sha256 out, and keep it; None: it cannot be read, or changes meanwhile. Cancelled, it ends the
        child."""
        before = _identity(path)
        try:
            ended = await child.run(sys.executable, "-I", "-c", CHILD, str(path))
        except OSError as error:
            log.info("%s cannot be looked at: %s", path, error.strerror)
            return None
        if ended.status != 0 or _identity(path) != before:
            return None
        found = self._known[str(path)] = Digest(before, ended.out.decode().strip())
        await asyncio.to_thread(self._keep)  # which drops it where the file has changed once more
        return found.sha256

    def _keep(self) -> None:
        """Those of files that are still there, replaced as a whole."""
        self._known = {path: known for path, known in self._known.items() if known.identity == _identity(Path(path))}
        draft = self._path.with_name(f"{FILE_NAME}.new")
        try:
            with open(draft, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(msgspec.json.encode(self._known))
            draft.replace(self._path)
        except OSError as error:  # a full disk: the next start looks again
            log.info("%s cannot be written: %s", self._path, error.strerror)


class Hasher:
    """Looks at the models' files while the daemon works, one at a time.

    Args:
        files: of the models whose adapter hangs on a digest that no source says, by name; a live view.
        teach: gives a model the adapter that belongs to its file now.
    """

    def __init__(
        self,
        digests: Digests,
        files: Callable[[], Mapping[str, tuple[Path, ...]]],
        teach: Callable[[str], Awaitable[None]],
    ) -> None:
        self._digests, self._files, self._teach = digests, files, teach
        self._changed = asyncio.Event()

    def heard(self, event: Event) -> None:
        """A subscriber of the bus: another file may be there."""
        if event.name in CHANGES:
            self._changed.set()

    async def run(self) -> None:
        """Until cancelled. Where edged brings no adapters along there is nothing to find out."""
        while True:
            self._changed.clear()
            for name, paths in self._files().items() if adapters.shipped() else ():
                await self._look(name, paths)
            await self._changed.wait()

    async def _look(self, name: str, paths: tuple[Path, ...]) -> None:
        unknown = [path for path in paths if await asyncio.to_thread(path.is_file) and self._digests.of(path) is None]
        if unknown:
            await self._teach(name)  # the file is another one than its adapter was chosen for
        for path in unknown:
            if (sha256 := await self._digests.take(path)) is not None:
                log.info("model %s: the sha256 of %s is %s", name, path, sha256)
        await self._teach(name)


def _identity(path: Path) -> Identity:
    """Inode, size and time of the last change of its contents; () of a file that cannot be looked at."""
    try:
        return identity_of(path)[:3]
    except OSError:  # its card is gone, or its folder closed to this user
        return ()
