"""agent-framework-ollama, which brings an older ollama: an agent of its own with a tool, and one of edged's."""

from __future__ import annotations

import asyncio
from typing import Any

from agent_framework.ollama import OllamaChatClient
from steps import URL, tried

CALLED: list[tuple[str, bool]] = []


def switch_light(room: str, on: bool) -> str:
    """Switch the light of a room."""
    CALLED.append((room, on))
    return "done"


def client(model: str) -> Any:
    """For a model or an agent."""
    return OllamaChatClient(host=URL, model=model)


async def tool() -> bool:
    agent = client("small").as_agent(instructions="You are a house.", tools=[switch_light])
    answer = await agent.run("the light in the kitchen, please")
    return bool(answer.text == "The light is on." and CALLED == [("kitchen", True)])


async def edgeds() -> bool:
    agent = client("house").as_agent(instructions="Be short.")
    return bool((await agent.run("tell a story")).text == "one two three")


async def streamed() -> bool:
    agent = client("small").as_agent(instructions="Be short.")
    return "".join([part.text async for part in agent.run("tell a story", stream=True)]) == "one two three"


async def main() -> None:
    """One after the other."""
    await tried("a tool, two rounds", tool)
    await tried("an agent of edged", edgeds)
    await tried("streamed", streamed)


asyncio.run(main())
