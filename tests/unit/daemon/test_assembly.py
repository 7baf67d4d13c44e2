"""From a configuration to parts: constructors only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from edged import config
from edged.daemon import assembly
from edged.daemon.assembly import TRANSPORTS, assemble


async def test_parts_are_a_value_and_nothing_runs_yet(tmp_path: Path) -> None:
    """No file, no socket, no thread: a reload may throw them away."""
    (tmp_path / "edged.toml").write_text(f'[node]\nstate_dir = "{tmp_path}/state"\nruntime_dir = "{tmp_path}/run"\n')
    parts = assemble(config.load(str(tmp_path / "edged.toml")))
    assert [path.name for path in tmp_path.iterdir()] == ["edged.toml"]
    assert {transport.name for transport in parts.transports} == {"unix", "http"}  # the others are not configured
    assert len(parts.transports) == len(TRANSPORTS) - 2
    with pytest.raises(AttributeError, match="immutable"):
        parts.pipeline = parts.pipeline  # type: ignore[misc]


def test_nothing_on_the_way_of_a_request_is_defined_in_the_composition_root() -> None:
    """What is wired there is somebody's method: a function of its own would be called later, by everybody."""
    tree = ast.parse(Path(assembly.__file__).read_text(encoding="utf-8"))
    subscribed = [
        argument
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "subscribe"
        for argument in call.args
    ]
    own = [node for node in ast.walk(tree) if isinstance(node, ast.Lambda) and node not in subscribed]
    nested = [
        inner
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        for inner in ast.walk(outer)
        if inner is not outer and isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert own == []
    assert nested == []
    stored = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)]
    assert stored == [], "no attribute is set after construction"
