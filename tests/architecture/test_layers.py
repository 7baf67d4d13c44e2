"""Imports point down. The picture is in edged/DESIGN.md; this file reads it there and keeps it true."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "edged"
PICTURES = re.findall(r"^```\n(.*?)^```$", (ROOT / "DESIGN.md").read_text(), re.DOTALL | re.MULTILINE)
LAYERS = [row.partition("#")[0].split() for row in PICTURES[0].splitlines()]  # top first
PURE = PICTURES[1].split()
RANK = {room: row for row, rooms in enumerate(LAYERS) for room in rooms}
SHARED = {"base", "sockets"}  # what transports have in common; it knows none of them
FILES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")
MODULES = {"edged." + ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in FILES}


def room(path: Path) -> str:
    """The room a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def module(path: Path) -> str:
    """A file's dotted name."""
    return "edged." + ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """Modules of edged that a file imports, anywhere in it, functions included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES
            names |= found if len(found) == len(node.names) else found | {node.module}
    return names & MODULES


def test_picture_has_the_rooms_that_there_are() -> None:
    """A new room needs its row; one that is gone loses it."""
    assert {room(path) for path in FILES} == set(RANK)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    """A room imports only rooms below its own row."""
    mine = room(path)
    wrong = {other for name in imported(path) if (other := name.split(".")[1]) != mine and RANK[other] <= RANK[mine]}
    assert not wrong, f"{mine} must not import {sorted(wrong)}"


@pytest.mark.parametrize("path", sorted((ROOT / "transport").rglob("*.py")), ids=str)
def test_transports_do_not_know_each_other(path: Path) -> None:
    """No transport imports another one; what they share lies in a module of its own."""
    mine = path.relative_to(ROOT / "transport").parts[0].removesuffix(".py")
    others = {name.split(".")[2] for name in imported(path) if name.startswith("edged.transport.")}
    assert not others - {mine} - SHARED


def test_no_import_circles() -> None:
    """No module reaches itself by imports, those inside functions included."""
    graph = {module(path): imported(path) - {module(path)} for path in FILES}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_have_no_coroutines_and_no_files(name: str) -> None:
    """What is said to be pure has no async function, opens nothing and sleeps nowhere."""
    tree = ast.parse((ROOT / f"{name}.py").read_text())
    calls = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.AsyncFunctionDef | ast.Await)]
    assert not calls & {"open", "sleep", "print"}
