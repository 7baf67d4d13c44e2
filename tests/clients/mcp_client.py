"""The official MCP SDK, of either major version: lists and calls over HTTP and through `edged mcp`."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import AsyncExitStack
from importlib.metadata import version
from typing import Any

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
from steps import KEY, URL, tried

BRIDGE = json.loads(os.environ["EDGED_BRIDGE"])
IS_OLD = version("mcp").startswith("1.")
STDIO = StdioServerParameters(command=BRIDGE[0], args=BRIDGE[1:])
SECRET = f"{URL}/mcp/{KEY}"


async def session(stack: AsyncExitStack, streams: Any) -> Any:
    """A legacy session over what a transport gives."""
    reads, writes, *_ = await stack.enter_async_context(streams)
    made = await stack.enter_async_context(ClientSession(reads, writes))
    await made.initialize()
    return made


def over_http() -> Any:
    """The legacy transport, at a path that holds the key."""
    if IS_OLD:
        from mcp.client.streamable_http import streamablehttp_client

        return streamablehttp_client(SECRET)
    from mcp.client.streamable_http import streamable_http_client

    return streamable_http_client(SECRET)


async def all_of(client: Any) -> bool:
    """List, call, call wrongly, an unknown tool, an agent, a resource."""
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert {"ask_office", "get_answer", "set_valve"} <= set(tools), tools
    right = await client.call_tool("set_valve", {"valve": "north", "position": "open"})
    assert not _is_error(right), right
    assert _is_error(await client.call_tool("set_valve", {"valve": "east"}))
    answered = await client.call_tool("ask_office", {"text": "say"})
    assert answered.content[0].text == "one two three", answered
    status = await client.read_resource("edged://status")
    assert "agents" in json.loads(status.contents[0].text)
    try:
        await client.call_tool("nope", {})
    except Exception as error:
        return "unknown tool" in str(error)
    return False


def _is_error(result: Any) -> bool:
    return bool(getattr(result, "isError", getattr(result, "is_error", False)))


async def legacy(streams: Any) -> bool:
    async with AsyncExitStack() as stack:
        return await all_of(await session(stack, streams))


async def by_itself(server: Any) -> bool:
    """The era that the SDK finds out."""
    from mcp import Client

    async with Client(server) as client:
        assert client.protocol_version == "2026-07-28", client.protocol_version
        return await all_of(client)


async def main() -> None:
    await tried("initialize, tools, agents, resources over HTTP", lambda: legacy(over_http()))
    await tried("the same through `edged mcp`", lambda: legacy(stdio_client(STDIO)))
    if not IS_OLD:
        await tried("`Client` over HTTP, 2026-07-28", lambda: by_itself(SECRET))
        await tried("`Client` through `edged mcp`, 2026-07-28", lambda: by_itself(STDIO))


asyncio.run(main())
