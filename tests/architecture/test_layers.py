"""Imports point down. The picture is in edged/DESIGN.md; this file is what keeps it true."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "edged"
LAYERS = [  # top first; a part may import parts below its own row, and itself
    {"__main__"},
    {"cli"},
    {"supervisor"},
    {"app"},
    {"listeners", "metering", "engines", "aliases"},
    {"methods"},
    {"service"},
    {"transport", "pipeline", "updates"},
    {"agent"},
    {"engine", "onnx", "governor", "tools", "cloud", "store", "pull"},
    {"gate"},
    {"router", "gguf", "wire", "access", "sandbox", "estimate", "testing"},
    {"catalog"},
    {"interfaces"},
    {"config", "log", "metrics", "systemd", "native"},
    {"roles"},
    {"types", "errors", "clock", "faults", "client", "loopback", "heap", "mounts"},
]
RANK = {part: row for row, parts in enumerate(LAYERS) for part in parts}
SHARED = "sockets"  # what transports have in common; it knows none of them
FILES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


def part(path: Path) -> str:
    """The row's member a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Modules of edged that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "edged":
            names |= {f"edged.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name.startswith("edged.") and name != "edged.__version__"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    """A part imports only what lies below its row."""
    mine = part(path)
    wrong = {other for name in imported(path) if (other := name.split(".")[1]) != mine and RANK[other] <= RANK[mine]}
    assert not wrong, f"{mine} must not import {sorted(wrong)}"


@pytest.mark.parametrize("path", sorted((ROOT / "transport").rglob("*.py")), ids=str)
def test_transports_do_not_know_each_other(path: Path) -> None:
    """No transport imports another one; what they share lies in a module of its own."""
    mine = path.relative_to(ROOT / "transport").parts[0].removesuffix(".py")
    others = {name.split(".")[2] for name in imported(path) if name.startswith("edged.transport.")}
    wrong = others - {mine, SHARED}
    assert not wrong


PURE = """
    router access wire estimate loopback cloud/answer cloud/link cloud/request cloud/sse cloud/trouble store/lifecycle
    governor/budget governor/ladder governor/policy governor/refusal governor/turns agent/dialect agent/grammar
    agent/output agent/calls agent/schemas engine/cells engine/costs engine/drafts engine/duel engine/rates
    engine/scheduler engine/sizes engine/snapshot_worth engine/threads onnx/batches onnx/providers tools/values
    transport/http/openai_request transport/http/openai_embeddings transport/http/openai_reply
    transport/http/openai_stream transport/http/browsers
"""


@pytest.mark.parametrize("name", PURE.split())
def test_pure_modules_have_no_coroutines_and_no_files(name: str) -> None:
    """What is said to be pure has no async function, opens nothing and sleeps nowhere."""
    tree = ast.parse((ROOT / f"{name}.py").read_text())
    calls = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.AsyncFunctionDef | ast.Await)]
    assert not calls & {"open", "sleep", "print"}


def test_every_part_is_in_the_picture() -> None:
    """A new module or folder needs its row, here and in DESIGN.md."""
    parts = {part(path) for path in FILES}
    assert parts <= set(RANK)
    picture = (ROOT / "DESIGN.md").read_text()
    missing = [name for name in sorted(parts) if name not in picture]
    assert not missing, f"DESIGN.md does not mention {missing}"
