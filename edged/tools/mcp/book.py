"""What is known of an MCP server's tools: as they were accepted, and as the server offers them where that differs. A
file for each server in the state folder, so that a server that changes its words changes nothing by itself."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from edged.config import McpServer
from edged.tools.mcp.schemas import RemoteTool

FOLDER = "mcp"  # in the state folder
MAX_BYTES = 16 * 2**20


class Book(Struct, frozen=True, omit_defaults=True):
    """What is known of one server.

    source: what the configuration says that the server is; of another one nothing is known.
    server: what it calls itself.
    accepted: its tools as they are used.
    offered: its tools as they were seen last, where that differs; None: it does not.
    """

    source: str
    server: str = ""
    accepted: tuple[RemoteTool, ...] = ()
    offered: tuple[RemoteTool, ...] | None = None


class Difference(Struct, frozen=True):
    """Names of tools that are offered otherwise than they were accepted."""

    new: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.new or self.changed or self.gone)

    def __str__(self) -> str:
        parts = (("new", self.new), ("changed", self.changed), ("gone", self.gone))
        return "; ".join(f"{what}: {', '.join(names)}" for what, names in parts if names)


def difference(
    accepted: Iterable[RemoteTool], offered: Iterable[RemoteTool], is_used: Callable[[str], bool]
) -> Difference:
    """What is offered otherwise, among the tools that are used."""
    before = {tool.name: tool for tool in accepted if is_used(tool.name)}
    now = {tool.name: tool for tool in offered if is_used(tool.name)}
    return Difference(
        new=tuple(name for name in now if name not in before),
        changed=tuple(name for name, tool in now.items() if name in before and before[name] != tool),
        gone=tuple(name for name in before if name not in now),
    )


def source(settings: McpServer) -> str:
    """What the configuration says that a server is, as a text that changes with it."""
    about = [settings.command, settings.args, settings.url, settings.file]
    return hashlib.sha256(msgspec.json.encode(about)).hexdigest()


def load(state_dir: Path, name: str, settings: McpServer) -> Book | None:
    """What is known of a server; None: nothing, or it was another one."""
    try:
        with _path(state_dir, name).open("rb") as file:
            book = msgspec.json.decode(file.read(MAX_BYTES), type=Book)
    except (OSError, ValueError):  # none, none that this user may read, or half a one
        return None
    return book if book.source == source(settings) else None


def save(state_dir: Path, name: str, book: Book) -> None:
    """Keep it: after a power cut there is the old or the new one. Raises OSError."""
    path = _path(state_dir, name)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    beside = path.with_suffix(".new")
    with beside.open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(book), indent=1))
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _path(state_dir: Path, name: str) -> Path:
    return state_dir / FOLDER / f"{name}.json"
