"""Our own cgroup and those above it, from faked files of the kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.host import cgroups


@pytest.mark.parametrize(
    ("listing", "found"),
    [
        (b"0::/a/b\n", [(2, "a/b"), (2, "a"), (2, ".")]),
        (b"0::/\n", [(2, ".")]),
        (b"3:cpu,memory:/x\n", [(1, "memory/x"), (1, "memory")]),
        (b"3:memory:/x\n0::/a\n", [(1, "memory/x"), (1, "memory"), (2, "a"), (2, ".")]),
        (b"3:cpu:/x\n", []),
        (b"0::/\xff\n", [(2, "\udcff"), (2, ".")]),
        (b"nonsense\n\n:\n", []),
        (b"", []),
    ],
    ids=["v2", "root", "v1", "both", "other-controller", "any-bytes", "nonsense", "empty"],
)
def test_folders_are_ours_and_all_above_it(tmp_path: Path, listing: bytes, found: list[tuple[int, str]]) -> None:
    (tmp_path / "own").write_bytes(listing)
    root = tmp_path / "sys"
    expected = [cgroups.Folder(version, root / path) for version, path in found]
    assert list(cgroups.up("memory", root, tmp_path / "own")) == expected
    ours = [folder for folder, above in zip(expected, [None, *expected], strict=False) if _begins(folder, above)]
    assert list(cgroups.own("memory", root, tmp_path / "own")) == ours


def _begins(folder: cgroups.Folder, before: cgroups.Folder | None) -> bool:
    """Whether it is the first of its version."""
    return before is None or before.version != folder.version


def test_no_file_is_no_group(tmp_path: Path) -> None:
    """A kernel without cgroups."""
    assert list(cgroups.own("memory", tmp_path, tmp_path / "none")) == []


def test_names_that_lead_out_of_the_root_end(tmp_path: Path) -> None:
    """In a namespace the kernel writes them so."""
    (tmp_path / "own").write_text("0::/../../x\n")
    assert len(list(cgroups.up("memory", tmp_path / "sys", tmp_path / "own"))) == 4
