"""50 clients of mixed kinds at once, for ten minutes: is every answer in its shape, and does the memory stay level?

The daemon is a real child process with a scripted engine, so this is everything but the model: the surfaces, the queue,
the store and its retention. Each client asks, reads its answer to the end, looks whether it is what its protocol
promises, waits a moment and asks again, each time about something new. Wrong is what has another status, another shape
or another text.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.ipc import daemon, free_port
from benchmarks.report import Result, Row, percentile, say
from edged.client import AsyncClient

CLIENTS = 50
SECONDS = 600
# Between two requests of a client: 50 of them then keep the daemon busy for about half of the time on two cores, as a
# house full of programs would at its worst.
PAUSE_S = 0.5
SAMPLE_S = 2.0  # between two looks at the memory
# What may be more at the end than after the first fifth: the store's pages in memory and the allocator's spare room.
LEVEL_MIB = 4.0
WRONG_SHOWN = 5
TEXT = "one two three"
WIDTH = 8
TOOL = {"type": "function", "function": {"name": "light", "parameters": {"type": "object", "properties": {}}}}
NDJSON, EVENTS = "application/x-ndjson", "text/event-stream"


@dataclass
class Seen:
    """What one kind of client saw. took: milliseconds of right answers. wrong: what was not right."""

    took: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Ways:
    """How the daemon is reached."""

    unix: aiohttp.ClientSession
    ollama: aiohttp.ClientSession
    foundry: aiohttp.ClientSession
    socket: Path


Kind = Callable[[Ways, str], Awaitable[None]]


def run(seconds: int = SECONDS) -> Result:
    """Rows: each kind of client, then the memory. seconds: how long they ask."""
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as name:
        folder = Path(name)
        ollama, foundry = free_port(), free_port()
        _write_config(folder, ollama, foundry)
        with daemon(folder) as (pid, _):
            seen, memory = asyncio.run(_all(folder, pid, ollama, foundry, seconds))
    return _result(seen, memory)


def _write_config(folder: Path, ollama: int, foundry: int) -> None:
    (folder / "script.toml").write_text(
        '[[replies]]\nmatch = "switch"\ncalls = [{ name = "light", arguments = {} }]\ntext = "on"\n'
        f'[[replies]]\nmatch = ""\ntext = "{TEXT}"\ntoken_s = 0.01\n'
    )
    (folder / "vectors.toml").write_text(f"dimensions = {WIDTH}\n")
    (folder / "edged.toml").write_text(
        f'[node]\nid = "bench"\nstate_dir = "{folder}/state"\nruntime_dir = "{folder}/run"\n'
        f'[http]\nollama = "127.0.0.1:{ollama}"\nfoundry = "127.0.0.1:{foundry}"\n'
        f'[models.small]\nsource = "scripted:{folder}/script.toml"\n'
        f'[models.vectors]\nsource = "scripted:{folder}/vectors.toml"\n[agents.house]\nmodel = "small"\n'
    )


async def _all(folder: Path, pid: int, ollama: int, foundry: int, seconds: int) -> tuple[dict[str, Seen], list[float]]:
    """(what each kind saw, MiB of private memory from then to then)."""
    connector = aiohttp.UnixConnector(str(folder / "run" / "http.sock"), limit=0)
    unix = aiohttp.ClientSession("http://edged", connector=connector)
    first, second = (aiohttp.ClientSession(f"http://127.0.0.1:{port}") for port in (ollama, foundry))
    async with unix, first, second:
        ways = Ways(unix, first, second, folder / "run" / "edged.sock")
        seen = {name: Seen() for name in KINDS}
        until = time.monotonic() + seconds
        kinds = itertools.islice(itertools.cycle(KINDS.items()), CLIENTS)
        asking = [_client(ways, number, name, kind, seen[name], until) for number, (name, kind) in enumerate(kinds)]
        memory: list[float] = []
        await asyncio.gather(_watch(pid, memory, until), *asking)
    return seen, memory


async def _client(ways: Ways, number: int, name: str, kind: Kind, seen: Seen, until: float) -> None:
    chance = random.Random(number)  # noqa: S311  # the same pauses in every run
    for turn in itertools.count():
        await asyncio.sleep(chance.uniform(0, 2 * PAUSE_S))
        if time.monotonic() > until:
            return
        started = time.perf_counter()
        try:
            await kind(ways, f"question {turn} of client {number}")
        except (AssertionError, aiohttp.ClientError, LookupError, TypeError, ValueError, OSError) as error:
            seen.wrong.append(f"{name}: {type(error).__name__}: {error}"[:300])
        else:
            seen.took.append((time.perf_counter() - started) * 1000)


async def _watch(pid: int, memory: list[float], until: float) -> None:
    """Private memory, in MiB, every few seconds."""
    while time.monotonic() < until:
        await asyncio.sleep(SAMPLE_S)
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
        fields = dict(line.split(":", 1) for line in lines)
        memory.append(sum(int(fields[name].split()[0]) for name in ("Private_Clean", "Private_Dirty")) / 1024)
        if len(memory) % 30 == 0:
            say(f"{memory[-1]:.1f} MiB, {max(0.0, until - time.monotonic()):.0f} s to go")


def _result(seen: dict[str, Seen], memory: list[float]) -> Result:
    rows: list[Row] = []
    for name, one in seen.items():
        took = {"median ms": percentile(one.took, 0.5), "p99 ms": percentile(one.took, 0.99)} if one.took else {}
        rows.append({"what": name, "answers": len(one.took), "wrong": len(one.wrong), **took})
    early, late = level(memory)
    grown = late - early
    rows.append(
        {"what": "private memory, MiB", "after a fifth": early, "at the end": late, "to reach": f"+{LEVEL_MIB}"}
    )
    wrong = [why for one in seen.values() for why in one.wrong]
    failed = wrong[:WRONG_SHOWN] + ([f"and {len(wrong) - WRONG_SHOWN} more"] if len(wrong) > WRONG_SHOWN else [])
    failed += [f"{name} was never answered" for name, one in seen.items() if not one.took]
    failed += [f"memory grew by {grown:.1f} MiB; at most {LEVEL_MIB}"] if grown > LEVEL_MIB else []
    return Result(rows, {"clients": CLIENTS, "answers": sum(len(one.took) for one in seen.values())}, failed)


def level(memory: list[float]) -> tuple[float, float]:
    """Medians of the second and of the last fifth: the first one is what every start takes."""
    fifth = max(1, len(memory) // 5)
    return percentile(memory[fifth : 2 * fifth] or memory, 0.5), percentile(memory[-fifth:], 0.5)


# -- the clients -------------------------------------------------------------------------------------------------------


async def _post(session: aiohttp.ClientSession, path: str, body: Any, kind: str = "application/json") -> str:
    async with session.post(path, json=body) as response:
        text = await response.text()
        assert response.status == 200, f"{response.status} {text[:200]}"
        assert response.content_type == kind, response.content_type
        return text


async def _get(session: aiohttp.ClientSession, path: str) -> Any:
    async with session.get(path) as response:
        assert response.status == 200, response.status
        return json.loads(await response.text())


def _is(found: object, wanted: object) -> None:
    assert found == wanted, f"{found!r} instead of {wanted!r}"


def _events(text: str) -> list[Any]:
    """The documents of server-sent events, without [DONE]."""
    data = re.findall(r"^data: (.*)$", text, re.MULTILINE)
    return [json.loads(one) for one in data if one != "[DONE]"]


def _asked(text: str, model: str = "small", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


async def chat(ways: Ways, text: str) -> None:
    """OpenAI's completions, whole."""
    answer = json.loads(await _post(ways.unix, "/v1/chat/completions", _asked(text)))
    choice = answer["choices"][0]
    _is((answer["object"], choice["message"]["content"], choice["finish_reason"]), ("chat.completion", TEXT, "stop"))
    assert answer["usage"]["completion_tokens"] > 0


async def chat_streamed(ways: Ways, text: str) -> None:
    """The same in pieces, of an agent."""
    sent = await _post(ways.unix, "/v1/chat/completions", _asked(text, "house", stream=True), EVENTS)
    assert sent.rstrip().endswith("data: [DONE]")
    choices = [event["choices"][0] for event in _events(sent) if event["choices"]]
    _is("".join(choice["delta"].get("content") or "" for choice in choices), TEXT)
    _is([choice["finish_reason"] for choice in choices if choice["finish_reason"]], ["stop"])


async def client_tools(ways: Ways, text: str) -> None:
    """A client's own tool."""
    answer = json.loads(await _post(ways.unix, "/v1/chat/completions", _asked(f"switch: {text}", tools=[TOOL])))
    choice = answer["choices"][0]
    _is((choice["finish_reason"], choice["message"]["tool_calls"][0]["function"]["name"]), ("tool_calls", "light"))


async def responses(ways: Ways, text: str) -> None:
    """Responses, streamed: numbered events from created to completed."""
    body = {"model": "small", "input": text, "stream": True, "store": False}
    events = _events(await _post(ways.unix, "/v1/responses", body, EVENTS))
    _is([event["sequence_number"] for event in events], list(range(len(events))))
    _is((events[0]["type"], events[-1]["type"]), ("response.created", "response.completed"))
    _is("".join(event["delta"] for event in events if event["type"] == "response.output_text.delta"), TEXT)


async def embeddings(ways: Ways, text: str) -> None:
    """Vectors."""
    answer = json.loads(await _post(ways.unix, "/v1/embeddings", {"model": "vectors", "input": [text, "two"]}))
    _is([len(one["embedding"]) for one in answer["data"]], [WIDTH, WIDTH])


async def native(ways: Ways, text: str) -> None:
    """edged's own requests."""
    reply = json.loads(await _post(ways.unix, "/v1/agents/house/requests", {"input": text}))
    _is((reply["status"], reply["output"], reply["error"]), ("done", TEXT, None))


async def ollama_chat(ways: Ways, text: str) -> None:
    """Ollama's chat, streamed as it is by default."""
    lines = (await _post(ways.ollama, "/api/chat", _asked(text, "house:latest"), NDJSON)).splitlines()
    parts = [json.loads(line) for line in lines]
    _is("".join(part["message"]["content"] for part in parts), TEXT)
    _is([part["done"] for part in parts], [False] * (len(parts) - 1) + [True])
    _is(parts[-1]["done_reason"], "stop")


async def ollama_lists(ways: Ways, text: str) -> None:
    """What Ollama's clients look at before they ask, and a whole answer."""
    names = [model["name"] for model in (await _get(ways.ollama, "/api/tags"))["models"]]
    assert "house:latest" in names, names
    await _get(ways.ollama, "/api/ps")
    body = {"model": "small", "prompt": text, "stream": False}
    _is(json.loads(await _post(ways.ollama, "/api/generate", body))["response"], TEXT)


async def foundry(ways: Ways, text: str) -> None:
    """The catalogue and a completion, as Foundry Local's SDK asks."""
    names = {model["name"] for model in await _get(ways.foundry, "/foundry/list")}
    _is(names, {"small", "vectors", "house"})
    answer = json.loads(await _post(ways.foundry, "/v1/chat/completions", _asked(text)))
    _is(answer["choices"][0]["message"]["content"], TEXT)


async def over_socket(ways: Ways, text: str) -> None:
    """The Unix socket, on a connection of its own."""
    async with AsyncClient(ways.socket) as client:
        reply = await client.ask(text, agent="house")
        _is((reply["status"], reply["output"]), ("done", TEXT))


KINDS: dict[str, Kind] = {
    "OpenAI chat": chat,
    "OpenAI chat, streamed, an agent": chat_streamed,
    "OpenAI chat, a client's tool": client_tools,
    "OpenAI responses, streamed": responses,
    "OpenAI embeddings": embeddings,
    "edged's requests": native,
    "Ollama chat, an agent": ollama_chat,
    "Ollama lists and generate": ollama_lists,
    "Foundry Local": foundry,
    "Unix socket": over_socket,
}
