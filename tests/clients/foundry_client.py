"""Foundry Local's SDK 0.5.1, which finds edged by the program `foundry`, and Agent Framework's client on top of it."""

from __future__ import annotations

import asyncio
from typing import Any

from agent_framework import Agent, tool
from agent_framework_foundry_local import FoundryLocalClient
from foundry_local import FoundryLocalManager
from pydantic import BaseModel
from steps import tried

asked: list[str] = []


class Valve(BaseModel):
    """What the model is to answer with."""

    valve: str


@tool(approval_mode="never_require")
def get_weather(city: str) -> str:
    """The weather in a city."""
    asked.append(city)
    return "sunny"


def manager() -> FoundryLocalManager:
    """Without downloading or loading anything."""
    return FoundryLocalManager(bootstrap=False)


def catalogue() -> bool:
    one = manager()
    names = {model.id for model in one.list_catalog_models()}
    info = one.get_model_info("small")
    return one.is_service_running() and {"small", "house"} <= names and info is not None and info.alias == "small"


def loads() -> bool:
    one = FoundryLocalManager("small")
    loaded = {model.id for model in one.list_loaded_models()}
    one.unload_model("small")
    after = {model.id for model in one.list_loaded_models()}
    cached = {model.id for model in one.list_cached_models()}
    return "small" in loaded and "small" not in after and "small" in cached and bool(one.get_cache_location())


def downloads() -> bool:
    one = manager()
    again = one.download_model("small", force=True).id == "small"  # it is here: success at once
    try:
        one.load_model("away")
    except ValueError as error:
        missing = "not been downloaded" in str(error)
    try:
        one.download_model("away")
    except RuntimeError as error:
        refused = "guest" in str(error)
    try:
        one.download_model("nothing")
    except ValueError as error:
        return again and missing and refused and "not found in the catalog" in str(error)
    return False


async def said(model: str, text: str, *, stream: bool, tools: Any = (), **options: Any) -> Any:
    """An answer of Agent Framework's agent on a model."""
    client = FoundryLocalClient(model=model)
    agent = Agent(client=client, instructions="Be brief.", tools=list(tools), default_options=options)
    if not stream:
        return await agent.run(text)
    running = agent.run(text, stream=True)
    async for _ in running:
        pass
    return await running.get_final_response()


async def text(*, stream: bool) -> bool:
    return bool((await said("small", "say", stream=stream)).text == "one two three")


async def with_tool(*, stream: bool) -> bool:
    asked.clear()
    answer = await said("small", "the weather in Oslo?", stream=stream, tools=[get_weather])
    return (answer.text, asked) == ("It is sunny in Oslo.", ["Oslo"])


async def in_shape(*, stream: bool) -> bool:
    answer = await said("small", "as json", stream=stream, response_format=Valve)
    return bool(answer.value == Valve(valve="north"))


async def edgeds(*, stream: bool) -> bool:
    return bool((await said("house", "open the north valve", stream=stream)).text)


async def main() -> None:
    """The SDK, then the framework."""
    await tried("SDK: catalogue, by id and alias", catalogue)
    await tried("SDK: load, unload, what is loaded", loads)
    await tried("SDK: download of what is here, of what is not, of what there is not", downloads)
    for stream, how in ((False, ""), (True, ", streamed")):
        for what, use in (("text", text), ("a tool", with_tool), ("a shape", in_shape), ("an agent of edged", edgeds)):
            await tried(what + how, lambda u=use, s=stream: u(stream=s))


asyncio.run(main())
