"""A model whose file no catalog knows gets its adapter while the daemon runs, and has it at once after a start."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

from tests.support.cloud_daemon import ask
from tests.support.daemon import ROOT, Daemon, Wired

MEMBERS = {"EDGED_TEST_MEMBERS": str(ROOT / "tests" / "support" / "taught.py")}


async def adapter(daemon: Daemon) -> str | None:
    async with Wired(daemon.socket) as client:
        error, status = await client.call(1, "status", {})
        assert error is None
        found: str | None = status["models"]["small"].get("adapter")
        return found


async def test_adapter_comes_when_the_file_is_known(tmp_path: Path) -> None:
    """Requests are answered before, meanwhile and after; another file of the same name has it no more."""
    wanted = str(tmp_path / "own.gguf")
    daemon = Daemon(tmp_path, environment={**MEMBERS, "EDGED_TEST_ADAPTER": wanted})
    script = tmp_path / "script.toml"
    daemon.environment["EDGED_TEST_WEIGHTS"] = hashlib.sha256(script.read_bytes()).hexdigest()
    try:
        await daemon.start()
        assert (await ask(daemon, "how full"))["output"] == "It is 41 percent full."
        async with asyncio.timeout(20):
            while await adapter(daemon) != wanted:
                await asyncio.sleep(0.05)
        assert (await ask(daemon, "how full"))["output"] == "It is 41 percent full."
        await daemon.__aexit__()
        await daemon.start()
        assert await adapter(daemon) == wanted
        await daemon.__aexit__()
        script.write_text(script.read_text() + "\n# another\n")
        await daemon.start()
        assert await adapter(daemon) is None
    finally:
        await daemon.__aexit__()
