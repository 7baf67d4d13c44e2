"""Folders and sockets: can the daemon write where it keeps its state, and can clients connect where it listens."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from edged.daemon.checks.finding import Finding, Inspection, Level, nearest, ok
from edged.host.users import own_name, user_name

LONGEST_SOCKET = 107  # bytes of a path: sun_path has 108 (unix(7)), and a zero ends it


def look(inspected: Inspection) -> Iterator[Finding]:
    """Both folders, then the paths of the sockets."""
    node = inspected.settings.node
    yield folder(inspected, "state folder", "state_dir", Path(node.state_dir))
    yield folder(inspected, "runtime folder", "runtime_dir", Path(node.runtime_dir))
    yield from sockets(inspected)


def folder(inspected: Inspection, check: str, key: str, path: Path) -> Finding:
    """Whether the daemon can write in a folder that [node] names. Nothing is made."""
    at = ("node", key)
    try:
        there = nearest(path)
        if os.statvfs(there).f_flag & os.ST_RDONLY:
            message = f"{path} is on a file system that is mounted read-only"
            return inspected.at(check, at, message, f"remount it writable, or set [node] {key} to another disk")
        if there.exists() and not there.is_dir():
            return inspected.at(check, at, f"{there} is no folder", f"move it away, or set [node] {key}")
        if not os.access(there, os.W_OK | os.X_OK):
            owner = user_name(there.stat().st_uid)
            message = f"{there} belongs to {owner} and cannot be written by {own_name()}"
            level = Level.FAIL if inspected.sees_all else Level.WARN
            return inspected.at(check, at, message, f"run edged (and this) as {owner}, or set [node] {key}", level)
    except PermissionError as error:
        message = f"{error.filename} may not be looked into by {own_name()}"
        return inspected.at(check, at, message, "run: sudo edged doctor", Level.WARN)
    made = "" if there == path else "; it is made at the first start"
    return ok(check, f"{path} can be written{made}")


def sockets(inspected: Inspection) -> Iterator[Finding]:
    """Whether the kernel takes the paths of the sockets."""
    settings = inspected.settings
    listening = [path for path in settings.http_listeners if isinstance(path, Path)]
    for key, path in ((("node", "runtime_dir"), settings.socket_path), *((("http", "listen"), p) for p in listening)):
        if (length := len(os.fsencode(path))) > LONGEST_SOCKET:
            message = f"the path of a socket has at most {LONGEST_SOCKET} bytes, and {path} has {length}"
            yield inspected.at("sockets", key, message, "set [node] runtime_dir to a shorter path, such as /run/edged")
