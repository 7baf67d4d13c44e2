"""How the last process ended: what its successor finds."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edged.host import last_end, memory, process
from edged.host.last_end import LastEnd

SERVICE = Path(__file__).parents[3] / "systemd" / "edged.service"
CHILD = """
import os, sys
from pathlib import Path
from edged.host import last_end
print(last_end.take(Path(sys.argv[1])), flush=True)
exec(sys.argv[2])
"""


@pytest.mark.parametrize(
    ("record", "own"),
    [
        ("success exited 0 0", False),
        ("success killed TERM 0", False),
        ("signal killed KILL 0", False),
        ("signal killed KILL 2", False),
        ("signal killed KILL 3", True),
        ("signal killed KILL", False),
        ("timeout killed KILL 0", False),
        ("watchdog dumped ABRT 0", True),
        ("watchdog killed ABRT 0", True),
        ("watchdog killed KILL 0", True),
        ("core-dump dumped SEGV 0", True),
        ("signal killed BUS 0", True),
        ("signal killed HUP 0", False),
        ("exit-code exited 70 0", True),
        ("oom-kill killed KILL 0", True),
        ("", False),
        ("nonsense", False),
    ],
)
def test_what_systemd_tells_is_the_process_own_fault_or_is_not(record: str, own: bool) -> None:
    """Two processes of the cgroup had been ended for their memory when it began."""
    assert last_end.by_record(record, oom_kills_before=2).own is own


def child(folder: Path, then: str) -> tuple[str, int]:
    """A process that looks, and then does something: what it found, and how it ended."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONFAULTHANDLER"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), then],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env=environment,
    )
    return done.stdout, done.returncode


def test_signal_of_its_own_leaves_stacks_and_sigkill_leaves_nothing(tmp_path: Path) -> None:
    """Without systemd; each is told once."""
    assert child(tmp_path, "os.abort()")[1] == -signal.SIGABRT
    found, status = child(tmp_path, "os.kill(os.getpid(), 9)")
    assert status == -signal.SIGKILL
    assert "own=True" in found
    assert "Fatal Python error: Aborted" in found
    found, _ = child(tmp_path, "last_end.admit('the thread x died'); os._exit(70)")
    assert "own=False" in found
    found, _ = child(tmp_path, "")
    assert "own=True" in found
    assert "the thread x died" in found
    assert "own=False" in child(tmp_path, "")[0]


def test_process_that_looks_again_has_not_ended(tmp_path: Path) -> None:
    """A reload: what lies there is of itself."""
    assert "own=False" in child(tmp_path, "print(last_end.take(Path(sys.argv[1])))")[0].splitlines()[0]
    assert child(tmp_path, "print(last_end.take(Path(sys.argv[1])))")[0].splitlines()[1] == "None"


def test_record_of_systemd_is_believed_and_read_once(tmp_path: Path) -> None:
    """Whatever else lies there."""
    child(tmp_path, "os.abort()")
    (tmp_path / last_end.RECORD).write_text("signal killed TERM\n")
    assert "own=False" in child(tmp_path, "")[0]
    assert not (tmp_path / last_end.RECORD).exists()


def test_oom_kill_shows_in_the_counter_of_the_cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared with what it was when the process began."""
    counted = iter([3, 3, 4])
    monkeypatch.setattr(memory, "oom_kills", lambda: next(counted))
    numbers = iter(range(3))
    monkeypatch.setattr(process, "began_ticks", lambda: next(numbers))  # another process each time
    ends = [last_end.take(tmp_path) for _ in range(3)]
    assert [end.own for end in ends if end is not None] == [False, False, True]


def test_folder_that_cannot_be_written_holds_up_nobody(tmp_path: Path) -> None:
    """Nothing is known then."""
    assert last_end.take(tmp_path / "none" / "there") == LastEnd(False, "nothing is known of it")


@pytest.mark.skipif(shutil.which("sed") is None, reason="needs sed")
def test_command_of_the_unit_writes_what_is_read(tmp_path: Path) -> None:
    """As systemd runs it: the quoted words are one argument of the shell."""
    [line] = re.findall(r"^ExecStopPost=-(.*)$", SERVICE.read_text(), re.MULTILINE)
    shell, option, script = re.fullmatch(r"(\S+) (\S+) '([^']*)'", line).groups()  # type: ignore[union-attr]
    told = {
        "RUNTIME_DIRECTORY": str(tmp_path),
        "SERVICE_RESULT": "watchdog",
        "EXIT_CODE": "killed",
        "EXIT_STATUS": "ABRT",
    }
    for result in ("watchdog", "success"):  # the second is not read yet by anybody: the first one counts
        subprocess.run([shell, option, script], env={**os.environ, **told, "SERVICE_RESULT": result}, check=False)
    record = (tmp_path / last_end.RECORD).read_text()
    assert record.startswith("watchdog killed ABRT")
    assert last_end.by_record(record, oom_kills_before=0).own
