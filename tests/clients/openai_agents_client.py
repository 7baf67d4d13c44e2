"""OpenAI's Agents SDK: an agent of its own with a tool and one that it hands over to, and an agent of edged."""

from __future__ import annotations

import asyncio

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from steps import KEY, URL, tried

asked: list[str] = []


@function_tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    asked.append(city)
    return "sunny"


def model(name: str, kind: type = OpenAIResponsesModel) -> object:
    return kind(model=name, openai_client=AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0))


async def said(agent: Agent, text: str, *, stream: bool) -> tuple[str, str]:
    """The answer, and who gave it."""
    if not stream:
        made = await Runner.run(agent, text)
        return str(made.final_output), made.last_agent.name
    running = Runner.run_streamed(agent, text)
    async for _ in running.stream_events():
        pass
    return str(running.final_output), running.last_agent.name


async def with_tool(*, stream: bool, kind: type = OpenAIResponsesModel, store: bool | None = None) -> bool:
    asked.clear()
    settings = ModelSettings(store=store)
    agent = Agent(name="one", model=model("small", kind), tools=[get_weather], model_settings=settings)
    answer = await said(agent, "the weather in Oslo?", stream=stream)
    return (answer, asked) == (("It is sunny in Oslo.", "one"), ["Oslo"])


async def handed_over(*, stream: bool) -> bool:
    other = Agent(name="poet", handoff_description="Writes.", model=model("small"))
    agent = Agent(name="one", model=model("small"), handoffs=[other])
    return await said(agent, "hand over", stream=stream) == ("one two three", "poet")


async def edgeds(*, stream: bool) -> bool:
    agent = Agent(name="one", model=model("office"))
    return (await said(agent, "open the north valve", stream=stream))[0] == "Valve north is now open."


async def main() -> None:
    """Whole and streamed."""
    set_tracing_disabled(True)
    for stream, how in ((False, "Responses"), (True, "Responses, streamed")):
        await tried(f"{how}: a tool", lambda s=stream: with_tool(stream=s))
        await tried(f"{how}: a tool, store off", lambda s=stream: with_tool(stream=s, store=False))
        await tried(f"{how}: a handoff", lambda s=stream: handed_over(stream=s))
        await tried(f"{how}: an agent of edged", lambda s=stream: edgeds(stream=s))
    await tried("chat completions: a tool", lambda: with_tool(stream=True, kind=OpenAIChatCompletionsModel))


asyncio.run(main())
