"""What stays out of memory until it is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    *("llama_cpp", "onnxruntime", "numpy", "llguidance", "tokenizers", "typer", "rich", "aiohttp", "jinja2"),
    *("prometheus_client", "stdnum"),
}


MODULES = [
    "edged",
    "edged.client",
    "edged.daemon.supervisor",
    "edged.cli",
    "edged.upstreams",
    "edged.engines.llama",
    "edged.engines.onnx",
    "edged.models.pull",
]


@pytest.mark.parametrize("module", MODULES)
def test_importing_loads_nothing_heavy(module: str) -> None:
    """An idle daemon and a client carry none of the big libraries."""
    code = f"import {module}, sys; print(*(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & HEAVY


def test_the_client_needs_msgpack_only() -> None:
    """A device app pays for MessagePack, not for the daemon."""
    code = "import sys; before = set(sys.modules); import edged.client; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = set(done.stdout.split())
    assert "msgpack" in names
    assert not {name.split(".")[0] for name in names} & {"apsw", "paho", "psutil", "msgspec"}
    assert {name for name in names if name.startswith("edged")} == {"edged", "edged.client"}
