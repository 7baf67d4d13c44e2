"""A daemon that speaks Ollama's API, with scripted models: what its tests and its clients' tests share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.broker import free_port
from tests.support.daemon import SCRIPT, Daemon, entry

KEY = "sk-panel-0123456789abcdef"
LIGHT: dict[str, Any] = {"name": "switch_light", "arguments": {"room": "kitchen", "on": True}}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "switch_light",
        "description": "Switch the light of a room.",
        "parameters": {
            "type": "object",
            "properties": {"room": {"type": "string"}, "on": {"type": "boolean"}},
            "required": ["room", "on"],
        },
    },
}
TALK = "".join(
    (
        SCRIPT,
        entry("light in the kitchen", LIGHT, text="The light is on."),
        entry("think first", text="<think>It is a question.</think>Yes."),
        entry("a person in JSON", text='{"name": "Ada", "age": 36}'),
        entry("speaks and breaks", text="word " * 40, token_s=0.05),
    )
)
WIDTH = 8


class OllamaDaemon(Daemon):
    """Models: `small`, `Lamp` (a script of its own), `vectors` (embeddings), `away` (a file that is not there); agent
    `house`. It listens on a socket, on a port that wants a key, and on one that wants none."""

    def __init__(self, folder: Path, *, config: str = "", http: str = "", **more: Any) -> None:
        self.keyed, self.open = free_port(), free_port()
        (folder / "keys").write_text(f"panel:{KEY}\n")
        (folder / "talk.toml").write_text(TALK)
        (folder / "vectors.toml").write_text(f"dimensions = {WIDTH}\n")
        super().__init__(
            folder,
            script=TALK,
            config=(
                f'[http]\nlisten = ["unix:http.sock", "127.0.0.1:{self.keyed}"]\napi_keys_file = "{folder}/keys"\n'
                f'ollama = "127.0.0.1:{self.open}"\n{http}'
                f'[models.Lamp]\nsource = "scripted:{folder}/talk.toml"\n'
                f'[models.vectors]\nsource = "scripted:{folder}/vectors.toml"\n'
                f'[models.away]\nsource = "file:{folder}/away.gguf"\n{config}'
            ),
            **more,
        )

    @property
    def url(self) -> str:
        """Of the listener that wants no key."""
        return f"http://127.0.0.1:{self.open}"

    def session(self, **headers: str) -> aiohttp.ClientSession:
        """A client without a key."""
        return aiohttp.ClientSession(self.url, headers=headers)

    def with_key(self, **headers: str) -> aiohttp.ClientSession:
        """A client of the listener that wants one; without headers it shows the right one."""
        shown = headers or {"Authorization": f"Bearer {KEY}"}
        return aiohttp.ClientSession(f"http://127.0.0.1:{self.keyed}", headers=shown)

    def on_socket(self) -> aiohttp.ClientSession:
        """A client that the kernel names."""
        connector = aiohttp.UnixConnector(str(self.folder / "run" / "http.sock"))
        return aiohttp.ClientSession("http://edged", connector=connector)


async def lines(response: aiohttp.ClientResponse) -> list[dict[str, Any]]:
    """The documents of a stream; there is nothing else in it."""
    assert (response.status, response.content_type) == (200, "application/x-ndjson"), await response.text()
    text = await response.text()
    assert text.endswith("\n")
    assert "\n\n" not in text
    return [json.loads(line) for line in text.splitlines()]


async def error(response: aiohttp.ClientResponse) -> tuple[int, str]:
    """(status, what it says) of an error in Ollama's shape."""
    assert response.content_type == "application/json"
    body = json.loads(await response.read())
    assert list(body) == ["error"]
    return response.status, body["error"]
