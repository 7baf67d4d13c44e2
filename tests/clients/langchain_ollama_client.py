"""langchain-ollama: chat models that look whether their model is there, tools, texts and vectors."""

from __future__ import annotations

import asyncio

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_ollama import ChatOllama, OllamaEmbeddings, OllamaLLM
from steps import URL, tried


@tool
def switch_light(room: str, on: bool) -> str:
    """Switch the light of a room."""
    return f"{room}: {on}"


def streamed(model: str) -> bool:
    chat = ChatOllama(model=model, base_url=URL, validate_model_on_init=True)
    return "".join(str(part.content) for part in chat.stream("tell a story")) == "one two three"


def tool_loop() -> bool:
    chat = ChatOllama(model="small", base_url=URL).bind_tools([switch_light])
    asked = [HumanMessage("the light in the kitchen, please")]
    first = chat.invoke(asked)
    [call] = first.tool_calls
    answer = chat.invoke([*asked, first, ToolMessage("done", tool_call_id=call["id"])])
    return bool(call["args"] == {"room": "kitchen", "on": True} and answer.content == "The light is on.")


def text() -> bool:
    return bool(OllamaLLM(model="small", base_url=URL).invoke("tell a story") == "one two three")


def vectors() -> bool:
    return len(OllamaEmbeddings(model="vectors", base_url=URL).embed_query("x")) == 8


async def main() -> None:
    """One after the other."""
    await tried("ChatOllama, streamed: a model", lambda: streamed("small"))
    await tried("ChatOllama, streamed: an agent of edged", lambda: streamed("house"))
    await tried("ChatOllama: a tool, two rounds", tool_loop)
    await tried("OllamaLLM", text)
    await tried("OllamaEmbeddings", vectors)


asyncio.run(main())
