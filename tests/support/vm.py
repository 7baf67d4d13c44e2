"""Whole machines for tests of the service: a Debian with a real systemd as PID 1, in namespaces of its own.

No container engine is needed, but root is. The root file system is made once (half a minute) and kept in the user's
cache folder; every machine gets a copy.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[2]
LAB = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edged" / "lab"
# The Debian whose Python is ours: wheels made here have to fit there.
SUITES = {(3, 11): "bookworm", (3, 13): "trixie"}
PACKAGES = "systemd,systemd-sysv,dbus,python3,python3-venv,mosquitto,mosquitto-clients,libgomp1"
NEEDED = {"mmdebstrap": "mmdebstrap", "unshare": "util-linux", "setpriv": "util-linux", "nsenter": "util-linux"}
BOOT_S = 60.0  # two seconds on an idle machine
END_S = 90.0  # systemd's own patience with what does not stop


def reason_to_skip() -> str | None:
    """Why there can be no machine here."""
    if os.getuid() != 0:
        return "only root can boot a machine"
    if sys.version_info[:2] not in SUITES:
        return f"no Debian has Python {sys.version_info[0]}.{sys.version_info[1]}"
    if shutil.which("mmdebstrap") is None and shutil.which("apt-get") is None:
        return "needs mmdebstrap, which Debian and its relatives have"
    return None


def prepared() -> tuple[Path, Path]:
    """(root file system as a tar, wheelhouse with edged as it is now), both in the cache."""
    if any(shutil.which(program) is None for program in NEEDED):
        _run("apt-get", "update")
        _run("apt-get", "install", "-y", "--no-install-recommends", *sorted(set(NEEDED.values())))
    LAB.mkdir(parents=True, exist_ok=True)
    suite = SUITES[sys.version_info[:2]]
    root, wheelhouse = LAB / f"{suite}.tar", LAB / f"wheelhouse-{suite}"
    with (LAB / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs would write the same files
        if not root.exists():
            part = root.with_suffix(".part")
            without = [f"--dpkgopt=path-exclude=/usr/share/{kind}/*" for kind in ("doc", "man", "locale")]
            _run("mmdebstrap", "--variant=minbase", "--format=tar", f"--include={PACKAGES}", *without, suite, str(part))
            part.rename(root)
        _run(str(ROOT / "scripts" / "install"), "--make-wheelhouse", str(wheelhouse))
    return root, wheelhouse


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stderr[-3000:]}"


class Machine:
    """One machine; its files lie in `folder` and stay between two boots."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = folder / "root"
        self._log = folder / "console.log"
        self._name = f"edged-lab-{os.getpid()}-{folder.name}"
        self._outer: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self.folder.mkdir()
        _run("tar", "-xpf", str(root), "-C", str(self.folder))
        (self.folder / "etc" / "hosts").write_text("127.0.0.1 localhost\n")

    def __enter__(self) -> Self:
        try:
            self.boot()
        except BaseException:
            self.cut_power()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.cut_power()

    def boot(self) -> None:
        """Start it and wait until its systemd has started everything."""
        command = [str(ROOT / "tests" / "support" / "vm.sh"), "boot", self._name, str(self.folder)]
        with self._log.open("ab") as log:
            self._outer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        outer = Path(f"/proc/{self._outer.pid}")
        children = outer / "task" / outer.name / "children"
        self.until(lambda: self._alive() and (outer / "comm").read_text() == "unshare\n", BOOT_S, "no namespaces")
        self.until(lambda: self._alive() and children.read_text().split(), BOOT_S, "no PID 1")
        self._pid = int(children.read_text())
        self.until(
            lambda: self._alive() and self.run("systemctl", "is-system-running").strip() in ("running", "degraded"),
            BOOT_S,
            "it does not come up",
        )

    def shut_down(self) -> None:
        """As a person switches it off."""
        self.run("systemctl", "--no-block", "poweroff")
        assert self._outer is not None
        self._outer.wait(END_S)
        self.cut_power()

    def cut_power(self) -> None:
        """End all of it now, and remove its cgroups."""
        outer, self._outer = self._outer, None
        if outer is None:
            return
        outer.kill()  # PID 1 inside goes with it, and everything else with that
        outer.wait(END_S)
        hierarchies = [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]
        for folder in [h / self._name for h in hierarchies if (h / self._name).is_dir()]:
            self.until(lambda folder=folder: _remove(folder), END_S, f"{folder} cannot be removed")  # type: ignore[misc]

    def run(self, *command: str, within_s: float = 60.0) -> str:
        """What a command inside prints, whatever its exit status is."""
        return self._enter(command, within_s).stdout

    def do(self, *command: str, within_s: float = 120.0) -> str:
        """What a command inside prints; it must succeed."""
        done = self._enter(command, within_s)
        assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def status(self, *command: str) -> int:
        """The exit status of a command inside."""
        return self._enter(command, 60.0).returncode

    def path(self, inside: str) -> Path:
        """A path inside, as seen from here; sockets can be connected to by it."""
        return Path(f"/proc/{self._pid}/root") / inside.lstrip("/")

    def put(self, inside: str, text: str) -> None:
        """Write a file inside."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def until(self, condition: Callable[[], object], within_s: float, otherwise: str) -> float:
        """Wait until something is so; the seconds it took."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > within_s:
                raise AssertionError(f"{otherwise} within {within_s:.0f} s\n{self._log.read_text()[-2000:]}")
            time.sleep(0.02)
        return time.monotonic() - began

    def _enter(self, command: tuple[str, ...], within_s: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nsenter", "-t", str(self._pid), "-a", *command],
            env={"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )

    def _alive(self) -> bool:
        assert self._outer is not None
        assert self._outer.poll() is None, f"it ended:\n{self._log.read_text()[-2000:]}"
        return True


def _remove(folder: Path) -> bool:
    """Remove a cgroup with all below it; False while something is left in it."""
    with contextlib.suppress(OSError):
        for below in _deepest_first(folder):
            below.rmdir()
    return not folder.exists()


def _deepest_first(folder: Path) -> Iterator[Path]:
    for path, _, _ in os.walk(folder, topdown=False):
        yield Path(path)
