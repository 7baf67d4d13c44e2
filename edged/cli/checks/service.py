"""The daemon as others see it: does it answer, is it the installed one, who may ask it, does systemd mind it."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import shutil
from pathlib import Path
from typing import Any

from edged import __version__
from edged.cli.checks.finding import Finding, fail, ok, warn
from edged.cli.common import span
from edged.cli.connection import join_command
from edged.client import AsyncClient, EdgedCallError
from edged.config import Config
from edged.host.users import own_name, user_name

PATIENCE_S = 5.0  # a daemon that is computing answers in milliseconds; one that hangs, never
BOOTED = Path("/run/systemd/system")  # sd_booted(3)
UNIT = "edged.service"
PROPERTIES = ("LoadState", "ActiveState", "SubState", "UnitFileState", "Result", "NRestarts")


async def daemon(where: Path) -> tuple[Finding, dict[str, Any] | None]:
    """Whether a daemon answers, and what it said of itself."""
    try:
        async with asyncio.timeout(PATIENCE_S), AsyncClient(where) as client:
            status: dict[str, Any] = await client.call("status")
    except EdgedCallError as error:
        return fail("daemon", f"{where}: {error.message}", "ask whoever runs edged for access"), None
    except PermissionError:
        return warn("daemon", f"{where} may not be used by {own_name()}", "see the check of the socket's group"), None
    except FileNotFoundError:
        message = f"none answers: there is no socket {where}"
        return warn("daemon", message, "start it: edged run, or sudo systemctl start edged"), None
    except OSError as error:
        message = f"{where} is there, but no daemon answers ({error.strerror or str(error) or 'it takes too long'})"
        return fail("daemon", message, "start it again; its log says why it ended (journalctl -u edged)"), None
    told = f"edged {status['version']} answers on {where}, pid {status['pid']}, up {span(status['uptime_s'])}"
    if status["version"] != __version__:
        do = "restart the daemon: sudo systemctl restart edged"
        return warn("daemon", f"{told}; this command is of edged {__version__}", do), status
    return ok("daemon", told), status


def group(settings: Config | None, where: Path) -> Finding:
    """Whether this user may use the socket."""
    named = settings.ipc.group if settings else "edged"
    try:
        entry = where.stat()
    except PermissionError as error:
        return warn("socket group", f"{error.filename} may not be looked into by {own_name()}", _join(named))
    except OSError:
        return _without_a_socket(named)
    owner, gid = entry.st_uid, entry.st_gid
    name = _group_name(gid)
    if os.geteuid() in (0, owner):
        return ok("socket group", f"{where} belongs to {user_name(owner)} and group {name}; {own_name()} may use it")
    if gid in (os.getegid(), *os.getgroups()):
        return ok("socket group", f"{own_name()} is in group {name} and may use {where}")
    return fail("socket group", f"{own_name()} is not in group {name} of {where}", _join(name))


def _without_a_socket(named: str) -> Finding:
    try:
        found = grp.getgrnam(named)
    except KeyError:
        message = f"there is no group {named!r}: only root and the daemon's own user will be able to ask it"
        return ok("socket group", message)
    if os.geteuid() == 0 or found.gr_gid in (os.getegid(), *os.getgroups()):
        return ok("socket group", f"{own_name()} will be able to use the socket of group {named}")
    return warn("socket group", f"{own_name()} is not in group {named}", _join(named))


def _join(name: str) -> str:
    """What lets this user in; being a member takes effect at the next login only."""
    with contextlib.suppress(KeyError):
        if own_name() in grp.getgrnam(name).gr_mem:
            return "log in again: the membership is newer than this session"
    return join_command(name)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


async def unit() -> Finding | None:
    """Whether systemd starts edged and keeps it running; None where systemd does not run."""
    if not BOOTED.is_dir() or shutil.which("systemctl") is None:
        return None
    asked = [argument for name in PROPERTIES for argument in ("--property", name)]
    try:
        child = await asyncio.create_subprocess_exec(
            *("systemctl", "show", UNIT, *asked),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(PATIENCE_S):
            told, _ = await child.communicate()
    except OSError:  # a timeout is one too
        return warn("systemd", f"systemctl does not tell about {UNIT}", f"try: systemctl status {UNIT}")
    return judge(dict(entry.partition("=")[::2] for entry in told.decode(errors="replace").splitlines()))


def judge(shown: dict[str, str]) -> Finding:
    """What `systemctl show` said, as a finding."""
    if shown.get("LoadState") == "not-found":
        do = "install systemd/edged.service, then: sudo systemctl enable --now edged"
        return warn("systemd", f"there is no {UNIT}: edged does not start with the board", do)
    if shown.get("LoadState") not in ("loaded", None):
        do = f"systemd-analyze verify {UNIT} says what is wrong with it"
        return fail("systemd", f"{UNIT} cannot be loaded ({shown['LoadState']})", do)
    state, restarts = shown.get("ActiveState", "unknown"), shown.get("NRestarts", "0")
    if state == "failed":
        do = "journalctl -u edged says why; then: sudo systemctl restart edged"
        return fail("systemd", f"{UNIT} failed ({shown.get('Result', 'unknown')})", do)
    if shown.get("UnitFileState") not in ("enabled", "enabled-runtime", "static", "linked"):
        message = f"{UNIT} is {state}, but not enabled: edged does not start with the board"
        return warn("systemd", message, "sudo systemctl enable --now edged")
    if state not in ("active", "reloading"):
        message = f"{UNIT} is {state} ({shown.get('SubState', '')}), restarted {restarts} times"
        return warn("systemd", message, "sudo systemctl start edged; journalctl -u edged says why it is not running")
    if restarts not in ("", "0"):
        message = f"{UNIT} is active, but was restarted {restarts} times since it was started"
        return warn("systemd", message, "journalctl -u edged says why")
    return ok("systemd", f"{UNIT} is enabled and active")
