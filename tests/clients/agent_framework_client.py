"""Microsoft Agent Framework's OpenAI clients: an agent with a tool on a plain model, and an agent of edged."""

from __future__ import annotations

import asyncio
from typing import Any

from agent_framework import Agent, tool
from agent_framework_openai import OpenAIChatClient, OpenAIChatCompletionClient
from pydantic import BaseModel
from steps import KEY, URL, tried

asked: list[str] = []


class Valve(BaseModel):
    """What the model is to answer with."""

    valve: str


@tool(approval_mode="never_require")
def get_weather(city: str) -> str:
    """The weather in a city."""
    asked.append(city)
    return "sunny"


def agent(kind: Any, model: str, tools: Any = (), **options: Any) -> Any:
    client = kind(model=model, base_url=f"{URL}/v1", api_key=KEY)
    return Agent(client=client, instructions="Be brief.", tools=list(tools), default_options=options)


async def said(of: Any, text: str, *, stream: bool, **options: Any) -> Any:
    """The answer."""
    if not stream:
        return await of.run(text, options=options or None)
    running = of.run(text, stream=True, options=options or None)
    async for _ in running:
        pass
    return await running.get_final_response()


async def with_tool(kind: Any, *, stream: bool, **options: Any) -> bool:
    asked.clear()
    answer = await said(agent(kind, "small", [get_weather], **options), "the weather in Oslo?", stream=stream)
    return (answer.text, asked) == ("It is sunny in Oslo.", ["Oslo"])


async def in_shape(kind: Any, *, stream: bool) -> bool:
    answer = await said(agent(kind, "small"), "as json", stream=stream, response_format=Valve)
    return bool(answer.value == Valve(valve="north"))


async def two_turns(kind: Any, *, stream: bool) -> bool:
    talker = agent(kind, "small")
    session = talker.create_session()
    for text in ("say", "say"):
        if stream:
            running = talker.run(text, session=session, stream=True)
            async for _ in running:
                pass
            answer = await running.get_final_response()
        else:
            answer = await talker.run(text, session=session)
    return bool(answer.text == "one two three")


async def edgeds(kind: Any, *, stream: bool) -> bool:
    answer = await said(agent(kind, "office"), "open the north valve", stream=stream)
    return bool(answer.text == "Valve north is now open.")


async def main() -> None:
    """Responses, then chat completions."""
    for kind, name in ((OpenAIChatClient, "Responses"), (OpenAIChatCompletionClient, "chat completions")):
        for stream, how in ((False, name), (True, f"{name}, streamed")):
            await tried(f"{how}: a tool", lambda k=kind, s=stream: with_tool(k, stream=s))
            if kind is OpenAIChatClient:
                await tried(f"{how}: a tool, store off", lambda k=kind, s=stream: with_tool(k, stream=s, store=False))
            await tried(f"{how}: a shape", lambda k=kind, s=stream: in_shape(k, stream=s))
            await tried(f"{how}: two turns", lambda k=kind, s=stream: two_turns(k, stream=s))
            await tried(f"{how}: an agent of edged", lambda k=kind, s=stream: edgeds(k, stream=s))


asyncio.run(main())
