"""Which calibration counts for an agent: the one that was made of its owner's examples, else the one that came with the
adapter of its model, else none.

An owner's own is a file of the state folder, one an agent. It says what it was made with; with other weights, another
adapter or another dialect it counts no more, and stays where it is: whoever goes back to the old file has it again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from edged.agent.calibration import Calibration
from edged.agent.dialects.chat_template import Dialect
from edged.config import Agent
from edged.errors import ConfigError
from edged.models import adapters
from edged.types import ModelSpec

log = logging.getLogger("edged.models")

FOLDER = "calibrations"  # in the state folder
ENDS = 2**20  # bytes of a file's beginning and end; another quantization or training differs in both


class Made(Struct, frozen=True):
    """An owner's own, and what it was made with: digests of both files, and the dialect."""

    weights: str
    adapter: str
    dialect: str
    calibration: Calibration


class Calibrations:
    """What is known of the models of all agents. Looked up once, until something changes.

    Args:
        folder: of the owner's own.
        agents: those that this board's own models answer for.
        spec_of: the file that a model's name stands for now. Raises ModelUnavailable, NoMemory.
        dialect_of: how it is spoken to. Raises likewise.
    """

    def __init__(
        self,
        folder: Path,
        agents: Mapping[str, Agent],
        spec_of: Callable[[str], Awaitable[ModelSpec]],
        dialect_of: Callable[[ModelSpec], Awaitable[Dialect]],
    ) -> None:
        self._folder, self._agents = folder, agents
        self._spec_of, self._dialect_of = spec_of, dialect_of
        self._known: dict[tuple[str, str, str], Calibration | None] = {}  # by agent, file and adapter

    async def of(self, agent: str) -> Calibration | None:
        """What counts for an agent; None: nothing is known, or a server runs its model. Raises as `spec_of`."""
        if agent not in self._agents:
            return None
        spec = await self._spec_of(self._agents[agent].model)
        key = (agent, spec.path, spec.adapter)
        if key not in self._known:
            dialect = (await self._dialect_of(spec)).taught
            self._known[key] = await asyncio.to_thread(self._read, agent, spec, dialect)
        return self._known[key]

    async def shipped(self, agent: str) -> Calibration | None:
        """What came with the adapter, whatever the owner made. Raises as `spec_of`."""
        spec = await self._spec_of(self._agents[agent].model)
        return await asyncio.to_thread(_shipped, spec, (await self._dialect_of(spec)).taught)

    async def keep(self, agent: str, calibration: Calibration) -> Path:
        """From now on this one counts, as long as weights, adapter and dialect are what they are; returns its file.
        OSError; and raises as `spec_of`."""
        spec = await self._spec_of(self._agents[agent].model)
        dialect = (await self._dialect_of(spec)).taught
        path = await asyncio.to_thread(self._write, agent, spec, dialect, calibration)
        self._known[agent, spec.path, spec.adapter] = calibration
        return path

    def _path(self, agent: str) -> Path:
        return self._folder / f"{agent}.json"

    def _read(self, agent: str, spec: ModelSpec, dialect: str) -> Calibration | None:
        path = self._path(agent)
        try:
            made = msgspec.json.decode(path.read_bytes(), type=Made)
            if (made.weights, made.adapter, made.dialect) == (*_digests(spec), dialect):
                return made.calibration
            log.info("%s is of other weights, another adapter or another dialect: it does not count", path)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:  # ValueError: what is no UTF-8, too
            log.warning("%s cannot be read, `edged calibrate %s` makes it anew: %s", path, agent, error)
        return _shipped(spec, dialect)

    def _write(self, agent: str, spec: ModelSpec, dialect: str, calibration: Calibration) -> Path:
        path = self._path(agent)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        draft = path.with_suffix(".new")
        draft.write_bytes(msgspec.json.encode(Made(*_digests(spec), dialect, calibration)))
        draft.replace(path)
        return path


def is_there(folder: Path, agent: str, spec: ModelSpec) -> bool:
    """Whether there may be a calibration, as far as this user may look; reads no model. Blocks."""
    try:
        manifest = adapters.manifest(Path(spec.adapter)) if spec.adapter else None
        return (manifest is not None and manifest.calibration is not None) or (folder / f"{agent}.json").exists()
    except (PermissionError, ConfigError):  # the check of the models says what is wrong with a manifest
        return True


def _shipped(spec: ModelSpec, dialect: str) -> Calibration | None:
    try:
        manifest = adapters.manifest(Path(spec.adapter)) if spec.adapter else None
    except ConfigError as error:
        log.warning("the adapter's calibration cannot be read: %s", error)
        return None
    return manifest.calibration if manifest is not None and manifest.dialect == dialect else None


def _digests(spec: ModelSpec) -> tuple[str, str]:
    """Of weights and adapter; empty: it has none."""
    return _digest(spec.path), _digest(spec.adapter) if spec.adapter else ""


def _digest(path: str) -> str:
    """Of a file's size, its beginning and its end: whole files take seconds. OSError."""
    digest = hashlib.sha256()
    with Path(path).open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(f"{size}\n".encode())
        digest.update(os.pread(file.fileno(), ENDS, 0))
        digest.update(os.pread(file.fileno(), ENDS, max(0, size - ENDS)))
    return digest.hexdigest()
