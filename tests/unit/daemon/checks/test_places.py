"""Folders that the daemon writes in, and paths that the kernel takes for sockets."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from edged.config import Config, Http, Node
from edged.daemon.checks import places
from edged.daemon.checks.finding import WHOLE, Finding, Inspection, Level
from edged.host.users import user_name

NAMELESS = 54321


def inspected(folder: Path, *, runtime: Path | None = None, http: Http | None = None) -> Inspection:
    """A configuration with its folders in one."""
    node = Node(id="n", state_dir=f"{folder}/state", runtime_dir=str(runtime or folder / "run"))
    return Inspection(settings=Config(node=node, http=http or Http()))


def state_folder(looked: Inspection) -> Finding:
    """What is found of it."""
    return next(finding for finding in places.look(looked) if finding.check == "state folder")


def test_folder_that_is_not_there_yet_is_made_later(tmp_path: Path) -> None:
    """Nothing is made by looking."""
    finding = state_folder(inspected(tmp_path))
    assert (finding.level, "at the first start" in finding.message) == (Level.OK, True)
    assert list(tmp_path.iterdir()) == []


def test_file_in_the_folders_place_fails(tmp_path: Path) -> None:
    """Nothing could be written below it; the key is named."""
    (tmp_path / "state").write_text("")
    finding = state_folder(inspected(tmp_path))
    assert (finding.level, finding.key, finding.subject) == (Level.FAIL, "node.state_dir", WHOLE)


def test_folder_of_somebody_else_is_a_warning_that_names_him(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether he may write there cannot be told from here; the daemon itself, which is no other, is in trouble."""
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    monkeypatch.setattr(os, "geteuid", lambda: NAMELESS)
    looked = inspected(tmp_path)
    finding = state_folder(looked)
    assert finding.level is Level.WARN
    assert user_name(tmp_path.stat().st_uid) in (finding.do or "")
    itself = Inspection(settings=looked.settings, in_service=True)
    assert state_folder(itself).level is Level.FAIL


class ReadOnly:
    """What statvfs says after an error on the card."""

    f_flag = os.ST_RDONLY


def test_read_only_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel does after an error on the card."""
    monkeypatch.setattr(os, "statvfs", lambda _: ReadOnly())
    assert "read-only" in state_folder(inspected(tmp_path)).message


def test_path_that_no_socket_can_have_is_found_before_one_is_made(tmp_path: Path) -> None:
    """To the byte: the kernel takes the longest that passes."""
    room = places.LONGEST_SOCKET - len(os.fsencode(tmp_path)) - len("/") - len("/edged.sock")
    for length, wrong in ((room, []), (room + 1, ["node.runtime_dir"])):
        runtime = tmp_path / ("x" * length)
        found = list(places.sockets(inspected(tmp_path, runtime=runtime, http=Http(listen=()))))
        assert [finding.key for finding in found] == wrong
        runtime.mkdir()
        with socket.socket(socket.AF_UNIX) as made:
            if wrong:
                with pytest.raises(OSError, match="too long"):
                    made.bind(str(runtime / "edged.sock"))
            else:
                made.bind(str(runtime / "edged.sock"))


def test_listener_of_http_is_measured_too(tmp_path: Path) -> None:
    """By its own key."""
    [finding] = places.sockets(inspected(tmp_path, http=Http(listen=(f"unix:{'y' * 120}",))))
    assert (finding.key, finding.level) == ("http.listen", Level.FAIL)
