"""Clients of the OpenAI API as they are published, each in an environment of its own, at the real daemon."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import clients
from tests.support.broker import free_port
from tests.support.daemon import Daemon, entry

KEY = "sk-clients-0123456789abcdef"
WEATHER: Any = {"name": "get_weather", "arguments": {"city": "Oslo"}}
HANDOFF: Any = {"name": "transfer_to_poet", "arguments": {}}
OPEN: Any = {"name": "set_valve", "arguments": {"valve": "north", "position": "open"}}
SCRIPT = "".join(
    (
        entry("weather in Oslo", WEATHER, text="It is sunny in Oslo."),
        entry("hand over", HANDOFF, text="one two three"),
        entry("open the north valve", OPEN),
        entry("as json", text='{"valve": "north"}'),
        entry("say", text="one two three"),
    )
)


@pytest.fixture
async def environment(tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    """Of a client's script: where the daemon is. Its agent is called office, as no model of OpenAI's."""
    port = free_port()
    (tmp_path / "keys").write_text(f"mine:{KEY}\n")
    config = (
        f'[http]\nlisten = ["127.0.0.1:{port}"]\napi_keys_file = "{tmp_path}/keys"\n'
        '[agents.office]\nmodel = "small"\ntools = ["set_valve"]\n'
    )
    async with Daemon(tmp_path, config=config, script=SCRIPT):
        yield {"EDGED_URL": f"http://127.0.0.1:{port}", "EDGED_KEY": KEY}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("client", "packages", "script"),
    [
        (
            "agent-framework-openai",
            ("agent-framework-openai==1.17.0", "agent-framework-core==1.23.0"),
            "agent_framework_client.py",
        ),
        ("openai-agents", ("openai-agents==0.24.0",), "openai_agents_client.py"),
        ("litellm", ("litellm==1.110.2",), "litellm_client.py"),
        ("openai 3.10", ("openai==3.10.0",), "openai_client.py"),  # Home Assistant's
        ("openai 3.57", ("openai==3.57.0",), "openai_client.py"),
    ],
)
async def test_published_client_works_unchanged(
    environment: dict[str, str], client: str, packages: tuple[str, ...], script: str
) -> None:
    """All that it tries; what came of it is the README's table."""
    python = await clients.install(client.replace(" ", "-"), *packages)
    tried = await clients.run(python, script, environment)
    assert tried
    clients.record(client, packages[0].partition("==")[2], tried)
    assert {what: result for what, result in tried.items() if result != clients.OK} == {}


def test_readme_shows_what_was_tried_last() -> None:
    """The table is made of the file, and by nobody's hand."""
    readme = clients.README.read_text()
    assert clients.table() in readme.partition(clients.BEGIN)[2].partition(clients.END)[0]
    assert json.loads(clients.RESULTS.read_text())
