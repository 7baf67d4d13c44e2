"""One room reads the kernel's files."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "edged"
KERNEL = ("/proc/", "/sys/")
# The process of a Python tool has nothing of edged's in it.
APART = {ROOT / "tools" / "python" / "child.py"}
FILES = sorted(set(ROOT.rglob("*.py")) - set((ROOT / "host").rglob("*.py")) - APART)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_host_names_files_of_the_kernel(path: Path) -> None:
    """Paths in /proc and /sys are written in `edged/host` only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert not [text for text in texts if text.startswith(KERNEL)]
