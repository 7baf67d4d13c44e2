"""Verdicts of rehearsals, kept by digests of everything they depend on: what was found once is known at every start."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import msgspec

from edged.daemon.checks.rehearsal import Verdict

log = logging.getLogger("edged.daemon.checks")

MOST = 256  # verdicts, 30 KB: more agents and tools than a board has, in several configurations; the oldest go first


class Verdicts:
    """A file of verdicts in the state folder. It is a cache: whatever goes wrong with it costs a rehearsal.

    Args:
        writes: False: what is kept is used, and the file stays as it is, as for who only looks.
    """

    def __init__(self, path: Path, *, writes: bool) -> None:
        self._path, self._writes = path, writes
        self._kept: dict[str, Verdict] = {}
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            self._kept = msgspec.json.decode(path.read_bytes(), type=dict[str, Verdict])

    def get(self, digest: str) -> Verdict | None:
        """What is known."""
        return self._kept.get(digest)

    def keep(self, new: dict[str, Verdict]) -> None:
        """Remember verdicts by their digests. Blocks: writes the file anew, whole or not at all."""
        self._kept = dict(list({**self._kept, **new}.items())[-MOST:])
        if not self._writes:
            return
        draft = self._path.with_suffix(".new")
        try:
            draft.write_bytes(msgspec.json.encode(self._kept))
            draft.replace(self._path)
        except OSError as error:
            log.info("%s cannot be written, the next start rehearses again: %s", self._path, error.strerror)
            draft.unlink(missing_ok=True)
