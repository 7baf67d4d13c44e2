"""This process and its neighbours, as this kernel tells of them."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edged.host import process

SLEEPER = "import sys; sys.stdin.read()"


def test_age_is_since_the_process_was_started() -> None:
    """The interpreter's own start included; the kernel counts in hundredths of a second."""
    code = "import time; from edged.host import process; print(process.age_s(), time.process_time())"
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    age, computed = map(float, done.stdout.split())
    assert computed - 0.05 < age <= time.monotonic() - began + 0.02


def test_parents_and_children_are_found() -> None:
    """Also where a name holds spaces and brackets."""
    with subprocess.Popen([sys.executable, "-c", SLEEPER], stdin=subprocess.PIPE) as child:
        assert process.parent_of(child.pid) == os.getpid()
        assert child.pid in process.children()
        assert child.stdin
        child.stdin.close()
    with pytest.raises(OSError, match=str(child.pid)):
        process.parent_of(child.pid)
    name = "import ctypes; ctypes.CDLL(None).prctl(15, b'a) b (c'); from edged.host import process; import os; "
    done = subprocess.run(
        [sys.executable, "-c", f"{name}print(process.parent_of(os.getpid()))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == os.getpid()


def test_mappings_tell_files_and_where_they_are_mapped(tmp_path: Path) -> None:
    """By device and inode: a file may have been renamed meanwhile; names may hold spaces."""
    path = tmp_path / "some weights"
    path.write_bytes(bytes(3 * mmap.PAGESIZE))
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 2 * mmap.PAGESIZE, offset=mmap.PAGESIZE, access=mmap.ACCESS_READ),
    ):
        state = path.stat()
        [found] = [m for m in process.mappings() if (m.device, m.inode) == (state.st_dev, state.st_ino)]
    assert found.end - found.start == 2 * mmap.PAGESIZE
    assert found.offset == mmap.PAGESIZE
    assert found.path == str(path)
    assert found.rights.startswith("r--")
    assert any(m.path == "[stack]" and not m.inode for m in process.mappings())


def test_pages_that_were_written_are_counted() -> None:
    before = process.dirty_bytes()
    with mmap.mmap(-1, 32 * 2**20) as block:  # of the heap some may have been written before
        block.write(b"x" * len(block))
        assert process.dirty_bytes() - before > 30 * 2**20


def test_first_to_go_is_what_the_kernel_ends_first() -> None:
    """In a process of its own: nobody takes it back."""
    code = "from edged.host import process; process.be_first_to_go(); print(open('/proc/self/oom_score_adj').read())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 1000
