"""Tools as others publish them: how many become grammars, and whether what the grammars let through is valid.

Servers of the Model Context Protocol from the npm registry and PyPI, home automation's among them, are installed into a
folder of the user's cache, without their install scripts, and asked for their tools over stdio; none of the tools is
called. Home Assistant's own actions come out of its package (see `home_actions`). Each different tool is
taken as a client's: its schema becomes a grammar whole, in part (the rest is checked afterwards), or is refused. From
each grammar 20 calls are drawn at random, byte by byte, and judged by `jsonschema` under the schema as published.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks import home_actions
from benchmarks.report import Result, Row, say
from edged.agent.grammars import precheck
from edged.types import JSON

DRAWN = 20  # calls of each tool
ANSWER_S = 30.0  # a server that has not listed its tools by then starts in vain: some want their service first
MOST_BYTES, LONG_BYTES = 4000, 300  # of a drawn call; from the second on it tends to an end
NONE = "none"  # in place of keys, without which they do not start
NOWHERE = "http://127.0.0.1:1"  # where no service listens
PROTOCOL = "2025-06-18"  # of MCP; the newest that all of these servers speak


@dataclass(frozen=True)
class Server:
    """A package with a server. program: below node_modules/.bin or the environment's bin; {folder}: an empty one.

    environment: what it wants to see before it starts; none of it opens anything.
    """

    package: str
    program: str
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


def _official(name: str, *arguments: str, **environment: str) -> Server:
    return Server(f"@modelcontextprotocol/server-{name}", f"mcp-server-{name}", arguments, environment)


NPM = (
    _official("filesystem", "{folder}"),
    _official("everything"),
    _official("memory"),
    _official("github", GITHUB_PERSONAL_ACCESS_TOKEN=NONE),
    _official("gitlab", GITLAB_PERSONAL_ACCESS_TOKEN=NONE),
    _official("slack", SLACK_BOT_TOKEN=f"xoxb-{NONE}", SLACK_TEAM_ID="T0"),
    _official("google-maps", GOOGLE_MAPS_API_KEY="none"),
    _official("sequential-thinking"),
    _official("brave-search", BRAVE_API_KEY="none"),
    Server("@playwright/mcp", "playwright-mcp", ("--caps", "vision,pdf,testing,tracing,verify")),
    Server("@notionhq/notion-mcp-server", "notion-mcp-server", (), {"NOTION_TOKEN": "none"}),
    Server("@upstash/context7-mcp", "context7-mcp"),
    Server("firecrawl-mcp", "firecrawl-mcp", (), {"FIRECRAWL_API_KEY": "fc-none"}),
    Server("tavily-mcp", "tavily-mcp", (), {"TAVILY_API_KEY": "none"}),
    Server("@cyanheads/git-mcp-server", "git-mcp-server", (), {"MCP_TRANSPORT_TYPE": "stdio"}),
    Server("mongodb-mcp-server", "mongodb-mcp-server", ("--connectionString", "mongodb://127.0.0.1:1/none")),
    Server("mcp-server-kubernetes", "mcp-server-kubernetes"),
)
# By environment: they do not agree about the version of the libraries that they are made with.
PYPI = {
    "python": (
        Server("mcp-server-git", "mcp-server-git"),
        Server("mcp-server-time", "mcp-server-time", ("--local-timezone", "UTC")),
        Server("mcp-server-fetch", "mcp-server-fetch"),
    ),
    "home": (
        Server("ha-mcp", "ha-mcp", (), {"HOMEASSISTANT_URL": NOWHERE, "HOMEASSISTANT_TOKEN": NONE}),
        Server("workbuddy-mcp-homeassistant", "workbuddy-ha-mcp", (), {"HA_URL": NOWHERE, "HA_TOKEN": NONE}),
        Server("clr-homeassistant-mcp", "clr-homeassistant-mcp", (), {"HA_URL": NOWHERE, "HA_TOKEN": NONE}),
    ),
}
# Home Assistant itself. The wheel is read and not installed: it wants this Python.
ACTIONS, ACTIONS_PYTHON = "homeassistant", "3.13"


def run(cycles: int = DRAWN) -> Result:
    """Rows: package, tools, whole, part, refused, drawn, invalid; the last row has the sums.

    Args:
        cycles: calls drawn of each tool.
    """
    folder = _installed()
    chance = random.Random(1)  # noqa: S311 - repeatable, no secret
    rows: list[Row] = []
    about: dict[str, Any] = {"drawn of each tool": cycles}
    left_out: Counter[str] = Counter()
    failed: list[str] = []
    known: set[str] = set()
    for package, tools in _published(folder):
        if not tools:
            failed.append(f"{package} listed no tools within {ANSWER_S:.0f} s")
            continue
        row: Row = dict.fromkeys(("whole", "part", "refused", "drawn", "invalid"), 0)
        count = 0
        for tool in tools:
            if (key := json.dumps([tool["name"], tool["inputSchema"]], sort_keys=True)) in known:
                continue
            known.add(key)
            count += 1
            judged = asyncio.run(_judged(tool["inputSchema"], cycles, chance))
            row = {name: row[name] + judged.get(name, 0) for name in row}
            left_out.update(judged["left_out"])
            if "why" in judged:
                failed.append(f"{package}: {tool['name']}: {judged['why']}")
        rows.append({"package": package, "tools": count, **row})
        say(f"{package}: {count} tools")
    names = ("tools", "whole", "part", "refused", "drawn", "invalid")
    rows.append({"package": "all", **{name: sum(row[name] for row in rows) for name in names}})
    about["checked afterwards"] = ", ".join(f"{word} ({count})" for word, count in left_out.most_common()) or "nothing"
    return Result(rows, about, failed)


def _published(home: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Each package with its tools."""
    for server in NPM:
        yield server.package, listed(home, server, home / "node_modules" / ".bin")
    for environment, servers in PYPI.items():
        for server in servers:
            yield server.package, listed(home, server, home / environment / "bin")
    [wheel] = home.glob(f"{ACTIONS}-*.whl")
    yield ACTIONS, home_actions.tools(wheel)


async def _judged(schema: dict[str, JSON], cycles: int, chance: random.Random) -> dict[str, Any]:
    """How a schema is taken, and how many of the calls drawn from its grammar are not valid under it."""
    try:
        [taken] = await precheck.fitted([schema])
    except precheck.Inexpressible as why:
        return {"refused": 1, "left_out": (), "why": why.reason}
    valid = wrong = 0
    for _ in range(10 * cycles):  # of what is checked afterwards some is asked for once more
        if valid + wrong == cycles:
            break
        if (call := drawn(taken.schema, chance)) is None:
            continue
        if not _is_valid(schema, call):
            if taken.after:  # a client never gets it
                continue
            wrong += 1
        else:
            valid += 1
    return {
        ("part" if taken.after else "whole"): 1,
        "left_out": taken.left_out,
        "drawn": valid + wrong,
        "invalid": wrong,
        **({"why": f"{wrong} of {cycles} drawn calls are not valid"} if wrong else {}),
        **({"why": f"only {valid} of {cycles} calls could be drawn"} if valid + wrong < cycles else {}),
    }


def drawn(schema: dict[str, JSON], chance: random.Random) -> JSON:
    """A value that the grammar of a schema lets through, byte by byte at random; None where it finds no end."""
    from llguidance import LLMatcher, LLTokenizer

    from edged.agent.grammars import grammar

    matcher, out = LLMatcher(LLTokenizer("byte"), grammar.answer(schema), log_level=0), bytearray()
    while len(out) < MOST_BYTES and not matcher.is_stopped():
        bits = int.from_bytes(matcher.compute_bitmask(), "little")
        allowed = [byte for byte in range(256) if bits >> byte & 1]
        long = len(out) > LONG_BYTES
        if matcher.is_accepting() and (long or not allowed or chance.random() < 0.3):
            break
        ends = [byte for byte in allowed if chr(byte) in '"}]']
        plain = [byte for byte in allowed if 32 <= byte < 127]
        some = ends if ends and (long or chance.random() < 0.35) else plain if chance.random() < 0.95 else allowed
        out.append(chance.choice(some or allowed))
        matcher.consume_token(out[-1])
    return json.loads(out) if matcher.is_accepting() or matcher.is_stopped() else None


def _is_valid(schema: dict[str, JSON], value: JSON) -> bool:
    import jsonschema

    return jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(schema).is_valid(value)


def _installed() -> Path:
    """The folder with all packages: complete or not at all."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edged" / "schemas"
    wanted = "\n".join([*(server.package for server in chain(NPM, *PYPI.values())), ACTIONS])
    complete = home / "complete"
    if complete.exists() and complete.read_text() == wanted:
        return home
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    say("installing the packages, once")
    npm = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent", "--prefix", str(home)]
    subprocess.run([*npm, *(server.package for server in NPM)], check=True)
    for environment, servers in PYPI.items():
        subprocess.run([sys.executable, "-m", "venv", str(home / environment)], check=True)
        _pip(home / environment, "install", *(server.package for server in servers))
    binary = ("--no-deps", "--only-binary", ":all:", "--python-version", ACTIONS_PYTHON)
    _pip(home / "python", "download", *binary, "--dest", str(home), ACTIONS)
    complete.write_text(wanted)
    return home


def _pip(environment: Path, verb: str, *arguments: str) -> None:
    pip = [str(environment / "bin" / "python"), "-m", "pip", verb, "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *arguments], check=True)


def listed(home: Path, server: Server, programs: Path) -> list[dict[str, Any]]:
    """A server's tools, by MCP's `tools/list` over stdio; none where it does not answer in time."""
    empty = home / "empty"
    empty.mkdir(exist_ok=True)
    command = [str(programs / server.program), *(each.format(folder=empty) for each in server.arguments)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **server.environment},
        start_new_session=True,
        cwd=empty,
    )

    def end() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    late = threading.Timer(ANSWER_S, end)
    late.start()
    try:
        return _talk(process)
    except OSError:  # it ended
        return []
    finally:
        late.cancel()
        end()
        process.wait()


def _talk(process: subprocess.Popen[bytes]) -> list[dict[str, Any]]:
    assert process.stdin is not None
    assert process.stdout is not None

    def send(**message: JSON) -> None:
        assert process.stdin is not None
        process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
        process.stdin.flush()

    about = {"protocolVersion": PROTOCOL, "capabilities": {}, "clientInfo": {"name": "edged", "version": "0"}}
    send(id=1, method="initialize", params=about)
    tools: list[dict[str, Any]] = []
    for line in process.stdout:
        with contextlib.suppress(ValueError):
            message = json.loads(line)
            if message.get("id") == 1 and "result" in message:
                send(method="notifications/initialized")
                send(id=2, method="tools/list")
            elif message.get("id") == 2:
                found = message.get("result", {})
                tools += found.get("tools", ())
                if "nextCursor" not in found:
                    return tools
                send(id=2, method="tools/list", params={"cursor": found["nextCursor"]})
            elif "method" in message and "id" in message:  # it asks us: there is nothing to tell
                send(id=message["id"], result={"roots": []})
    return tools
