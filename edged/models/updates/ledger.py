"""Which file a model's name means where it is not the configured one, and how the last update went. One small file of
the state folder, replaced as a whole: whoever is killed while writing leaves the old one.

The configuration wins: a record is about the `source` that was configured when it was made, and is void once another
one is.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct, structs

from edged.engines import registry

log = logging.getLogger("edged.models.updates")

FILE_NAME = "models.json"
INTERRUPTED = "the daemon ended meanwhile; the old file is in force, and the same update goes on with what is here"


class Version(Struct, frozen=True, omit_defaults=True):
    """A file that a model's name meant once.

    source: as it is written in a configuration. sha256: None where nobody has looked. ours: an update pulled the file,
    so an update may remove it.
    """

    source: str
    path: str
    sha256: str | None = None
    ours: bool = False


class Record(Struct, frozen=True):
    """What a name means. configured: the `source` of the configuration when this was written."""

    configured: str
    current: Version
    previous: Version | None = None


class Attempt(Struct, frozen=True):
    """The last update of a model.

    state: pulling | loading | testing | switching | done | current | failed | rolled_back. reason: why it failed, or
    what else is to be said. at: wall clock, when that was so.
    """

    state: str
    source: str
    reason: str | None = None
    at: float = 0.0

    @property
    def ended(self) -> bool:
        return self.state in ("done", "current", "failed", "rolled_back")


class Pages(Struct, frozen=True):
    """The whole file."""

    models: dict[str, Record] = {}
    attempts: dict[str, Attempt] = {}


class InForce(Struct, frozen=True):
    """What the records mean for a configuration: by model its version, and sentences about those that are void."""

    versions: dict[str, Version]
    notes: tuple[str, ...] = ()


def read(state_dir: Path) -> Pages:
    """The file's contents. Without it, or where it may not be read or is damaged, what is configured is in force."""
    path = state_dir / FILE_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=Pages)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.info("%s cannot be read: %s", path, error.strerror)
    except (ValueError, RecursionError) as error:  # also what is not UTF-8, or nested without end
        log.warning("%s is damaged, the configured models are in force: %s", path, error)
    return Pages()


def in_force(pages: Pages, configured: Mapping[str, str]) -> InForce:
    """Which records count for these sources, by model."""
    versions, notes = {}, []
    for name, record in pages.models.items():
        if name not in configured:
            continue
        current = record.current
        if record.configured != configured[name]:
            notes.append(
                f"models.{name}: the configuration names another source, {configured[name]}; it is in force, and no "
                f"longer the update to {current.source}"
            )
        elif not Path(current.path).is_file():
            notes.append(f"models.{name}: {current.path}, to which it was updated, is gone; {configured[name]} is used")
        else:
            versions[name] = current
    return InForce(versions, tuple(notes))


class Ledger:
    """The file, for the daemon that owns the state folder. Writes block for as long as the disk does: call them in a
    thread."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE_NAME
        self.pages = read(state_dir)

    def open(self, configured: Mapping[str, str]) -> tuple[str, ...]:
        """Forget what is void, and call updates that a crash ended failed. Returns sentences about what was void."""
        found = in_force(self.pages, configured)
        models = {name: record for name, record in self.pages.models.items() if name in found.versions}
        attempts = {
            name: attempt if attempt.ended else structs.replace(attempt, state="failed", reason=INTERRUPTED)
            for name, attempt in self.pages.attempts.items()
            if name in configured
        }
        if (models, attempts) != (self.pages.models, self.pages.attempts):
            self._write(Pages(models, attempts))
        return found.notes

    def note(self, name: str, attempt: Attempt) -> None:
        """How an update goes."""
        self._write(Pages(self.pages.models, {**self.pages.attempts, name: attempt}))

    def record(self, name: str, record: Record | None, attempt: Attempt) -> None:
        """What a name means from now on (None: what is configured); durable when this returns."""
        models = {key: value for key, value in self.pages.models.items() if key != name}
        if record is not None:
            models[name] = record
        self._write(Pages(models, {**self.pages.attempts, name: attempt}))

    def paths(self) -> set[str]:
        """Files that some name means, or may go back to."""
        records = self.pages.models.values()
        return {version.path for r in records for version in (r.current, r.previous) if version}

    def _write(self, pages: Pages) -> None:
        data = msgspec.json.format(msgspec.json.encode(pages), indent=1) + b"\n"
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self._path.with_suffix(".new")
        with open(draft, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)  # the name, not only the bytes
        finally:
            os.close(folder)
        self.pages = pages


def forget_file(path: Path) -> bool:
    """Remove a file that no name means, and what was made of it; whether it is gone."""
    kind = registry.by_suffix(path.suffix)
    with contextlib.suppress(OSError):
        for each in (path, *(kind.made_from(path) if kind else ())):
            each.unlink(missing_ok=True)
    return not path.exists()
