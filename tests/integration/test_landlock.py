"""Python tools and edged's own: files, process, sockets. Real children under the kernel's own rules."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from edged import config
from edged.config import PythonTool
from edged.errors import ToolFailed
from edged.models import calibrations, digests
from edged.models.updates import ledger
from edged.tools.python import landlock
from edged.tools.python.landlock import OwnFiles
from edged.tools.python.worker import ToolWorker
from tests.support.broker import until
from tests.support.daemon import Daemon, Wired, entry

pytestmark = pytest.mark.skipif(landlock.missing() is not None, reason=f"no Landlock here: {landlock.missing()}")

MODULE = '''
import errno, os, signal, socket, sqlite3, subprocess, sys, time
from pathlib import Path


def reach(how: str, path: str) -> str:
    """What comes of it: "done", or the name of an error."""
    try:
        WAYS[how](Path(path))
    except OSError as error:
        return errno.errorcode[error.errno]
    except sqlite3.Error as error:
        return type(error).__name__
    return "done"


def program(path):
    done = subprocess.run(["cat", path], capture_output=True)
    if done.returncode:
        raise PermissionError(errno.EACCES, done.stderr.decode())


def database(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS t(x)")
        connection.execute("INSERT INTO t VALUES (1)")


WAYS = {
    "read": lambda path: path.read_bytes(),
    "write": lambda path: path.write_bytes(b"x"),
    "truncate": lambda path: os.truncate(path, 0),
    "remove": lambda path: path.unlink(),
    "rename": lambda path: path.rename(path.with_name("taken")),
    "link": lambda path: os.link(path, path.parent / "plant" / "linked"),
    "through a link": lambda path: (path.parent / "plant" / "link").read_bytes(),
    "program": program,
    "database": database,
    "memory": lambda pid: open(f"/proc/{pid}/mem", "rb"),
    "descriptors": lambda pid: open(f"/proc/{pid}/fd/1", "rb"),
    "kill": lambda pid: os.kill(int(str(pid)), signal.SIGKILL),
}


def fill(path: str, mebibytes: int) -> int:
    """The size the file got."""
    with open(path, "wb", buffering=0) as file:
        for _ in range(mebibytes):
            file.write(bytes(2**20))
    return os.path.getsize(path)


def open_many() -> int:
    """."""
    return len([open("/dev/null") for _ in range(10_000)])


def unlimit() -> None:
    """."""
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


CALL = """
import socket, sys
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[1])
peer.sendall(bytes([0x94, 0, 1, 0xA6]) + b"status" + bytes([0x90]))
peer.settimeout(10)
open(sys.argv[2], "wb").write(peer.recv(65536))
"""
ORPHAN = """
import os, subprocess, sys, time
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
while not os.path.exists(sys.argv[3]):
    time.sleep(0.01)
exec(sys.argv[4])
"""


def call_edged(path: str, answer: str, how: str, go: str) -> str:
    """The daemon's answer goes into a file."""
    source = CALL if how == "child" else ORPHAN
    subprocess.run([sys.executable, "-c", source, path, answer, go, CALL], check=True)
    return "called"
'''

Reach = Callable[..., Any]


class Place:
    """A board's disk in small: edged's own files, and a plant's between them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state, self.tools = folder / "state", folder / "tools"
        for each in (self.tools, self.state / "plant", self.state / "snapshots", folder / "models", folder / "garden"):
            each.mkdir(parents=True)
        (self.tools / "reaching.py").write_text(MODULE)
        self.config = folder / "edged.toml"
        self.key = folder / "key"
        keys = f'[http]\nlisten = ["127.0.0.1:1"]\napi_keys_file = "{self.key}"\n'
        self.config.write_text(
            f'[node]\nid = "n1"\nstate_dir = "{self.state}"\nruntime_dir = "{folder / "run"}"\n'
            f'models_dir = "{folder / "models"}"\n{keys}'
        )
        files = ("state/edged.db", "state/snapshots/s", "state/models.json", "state/plant.db", "models/m.gguf", "key")
        for name in files:
            (folder / name).write_text("secret")
        (self.state / "plant" / "link").symlink_to(self.state / "edged.db")

    def own(self) -> OwnFiles:
        return landlock.own_files(config.load(str(self.config)))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Made anew."""
    return Place(tmp_path)


@pytest.fixture
async def worker(place: Place) -> AsyncIterator[ToolWorker]:
    """Calls `reach`."""
    made = ToolWorker("reach", PythonTool(python="reaching:reach"), place.tools, place.own())
    yield made
    await made.stop()


@pytest.mark.parametrize("how", ["read", "write", "remove", "rename", "link", "program", "truncate", "through a link"])
async def test_what_is_edgeds_is_closed(worker: ToolWorker, place: Place, how: str) -> None:
    """The store, snapshots, keys: to the tool itself, to a program it starts, by any way of the file system."""
    for name in ("state/edged.db", "state/snapshots/s", "state/models.json", "key"):
        path = place.folder / name
        if not (path.parent / "plant").is_dir() and how in ("link", "through a link"):
            continue
        assert await worker.call({"how": how, "path": str(path)}, "r", 0) in ("EACCES", "EXDEV"), path
        assert path.read_text() == "secret"


async def test_what_comes_later_is_closed_too(worker: ToolWorker, place: Place) -> None:
    """A journal and a store set aside have names of their own, and were not there when the process started."""
    assert await worker.call({"how": "read", "path": str(place.state / "plant.db")}, "r", 0) == "done"
    for name in ("edged.db-journal", "edged.db-wal", "edged.db.damaged"):
        (place.state / name).write_text("secret")
        assert await worker.call({"how": "read", "path": str(place.state / name)}, "r", 1) == "EACCES"


async def test_what_is_not_edgeds_stays_open(worker: ToolWorker, place: Place) -> None:
    """A database of the board's wants a folder without anything of edged's: there is its journal."""
    for path in (place.folder / "garden" / "new", place.state / "plant" / "new", place.tools / "notes"):
        for how in ("write", "read", "rename"):
            assert await worker.call({"how": how, "path": str(path)}, "r", 0) == "done", (how, path)
    assert await worker.call({"how": "write", "path": str(place.state / "plant.db")}, "r", 0) == "done"  # was there
    assert await worker.call({"how": "database", "path": str(place.state / "plant" / "own.db")}, "r", 0) == "done"
    assert await worker.call({"how": "write", "path": str(place.state / "new")}, "r", 0) == "EACCES"
    assert await worker.call({"how": "program", "path": "/etc/passwd"}, "r", 0) == "done"


async def test_configuration_and_weights_are_read_and_not_changed(worker: ToolWorker, place: Place) -> None:
    """A tool that could write them would be what it likes after the next start."""
    for path in (place.config, place.folder / "models" / "m.gguf"):
        assert await worker.call({"how": "read", "path": str(path)}, "r", 0) == "done"
        for how in ("write", "truncate", "remove"):
            assert await worker.call({"how": how, "path": str(path)}, "r", 0) == "EACCES", (how, path)
    assert await worker.call({"how": "write", "path": str(place.folder / "models" / "new")}, "r", 0) == "EACCES"


async def test_daemons_process_is_closed(worker: ToolWorker) -> None:
    """Its memory and its descriptors; a tool does not end it either."""
    for how in ("memory", "descriptors", "kill"):
        assert await worker.call({"how": how, "path": str(os.getpid())}, "r", 0) in ("EACCES", "EPERM"), how


async def test_refusal_of_the_kernel_is_explained_in_the_log(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Who wrote the tool sees a PermissionError on a file that is their own."""
    made = ToolWorker("fill", PythonTool(python="reaching:fill"), place.tools, place.own())
    try:
        with pytest.raises(ToolFailed, match="PermissionError"):
            await made.call({"path": str(place.state / "new"), "mebibytes": 1}, "r", 0)
    finally:
        await made.stop()
    assert "takes no new files" in caplog.text


async def test_files_are_limited(place: Place) -> None:
    """Their size, their number, and the limits themselves."""
    tool = PythonTool(python="reaching:fill", file_size="2MiB")
    fill = ToolWorker("fill", tool, place.tools, place.own())
    many = ToolWorker("many", PythonTool(python="reaching:open_many"), place.tools, place.own())
    path = str(place.folder / "garden" / "big")
    try:
        assert await fill.call({"path": path, "mebibytes": 2}, "r", 0) == 2 * 2**20
        with pytest.raises(ToolFailed, match="File too large"):
            await fill.call({"path": path, "mebibytes": 3}, "r", 1)
        with pytest.raises(ToolFailed, match="Too many open files"):
            await many.call({}, "r", 0)
    finally:
        await fill.stop()
        await many.stop()


def test_kernel_without_landlock_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing keeps tools from these files, and everybody knows."""
    for number, says in ((errno.ENOSYS, "no Landlock"), (errno.EOPNOTSUPP, "lsm="), (errno.EPERM, "filter")):

        def refuse(number: int = number) -> int:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(landlock, "_version", refuse)
        assert says in (landlock.missing() or "")
        assert landlock.ruleset(OwnFiles()) is None


async def test_all_that_a_daemon_keeps_in_its_folder_is_closed(tmp_path: Path) -> None:
    """Also after a kill, and what will be there one day: whoever adds a file finds it here."""
    async with Daemon(tmp_path) as daemon:
        async with Wired(daemon.socket) as client:
            assert (await client.call(1, "agent.ask", {"input": "note 1;"}))[0] is None
        own = landlock.own_files(config.load(str(daemon.config)))
        await daemon.kill()
        names = {path.name for path in (tmp_path / "state").iterdir()}
        assert names >= {"edged.db", "edged.db-wal", "edged.lock"}
        assert [name for name in names if not landlock._is_hidden(tmp_path / "state" / name, own)] == []
        assert {path.name for path in own.hidden} >= {
            "snapshots",
            "edged.sock",
            ledger.FILE_NAME,
            digests.FILE_NAME,
            calibrations.FOLDER,
        }


# -- with the daemon -----------------------------------------------------------------------------------------------

CALLER = """
[agents.gardener]
model = "small"
tools = ["call_edged"]
[tools.call_edged]
description = "Call edged."
python = "reaching:call_edged"
"""


@pytest.mark.parametrize("how", ["child", "orphan"])
async def test_tool_is_no_client(tmp_path: Path, how: str) -> None:
    """Not by a program it starts, nor by one that left its group, its session and its parent; everybody else is one."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "reaching.py").write_text(MODULE)
    (tmp_path / "garden").mkdir()
    answer, go = tmp_path / "garden" / "answer", tmp_path / "garden" / "go"
    daemon = Daemon(tmp_path, config=CALLER)
    arguments = {"path": str(daemon.socket), "answer": str(answer), "how": how, "go": str(go)}
    script = entry("call", {"name": "call_edged", "arguments": arguments}, text="Called.")
    (tmp_path / "script.toml").write_text(script)
    async with daemon:
        async with Wired(daemon.socket) as client:
            _, reply = await client.call(1, "agent.ask", {"agent": "gardener", "input": "call"})
            assert reply["tool_calls"][0]["ok"], reply
            go.write_text("")
            await until(lambda: answer.exists() and answer.stat().st_size > 0)
            assert b"forbidden" in answer.read_bytes()
            assert b"a Python tool is called by edged" in answer.read_bytes()
            assert (await client.call(2, "status"))[0] is None
        assert await daemon.stop() == 0
