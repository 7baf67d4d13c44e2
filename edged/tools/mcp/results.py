"""What an MCP server gives back for a call, as a result of edged's. A result is data: bounded, and never instructions.

What a server calls an error (`isError`) is a result that the model of a reading tool words; of a tool that writes it is
the failure that it is, so that nobody is told that something was done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from edged.errors import ToolFailed
from edged.tools import check
from edged.tools.mcp.channel import printable
from edged.tools.mcp.schemas import RemoteTool
from edged.types import JSON

MAX_RESULT_BYTES = 64 * 1024  # as of a Python tool: more does not fit a model's context
MAX_MESSAGE = 500  # characters of an error


async def value(tool: RemoteTool, result: Mapping[str, Any], *, is_write: bool) -> JSON:
    """The structured content where there is some, else the text.

    Raises:
        ToolFailed: the server says that a write failed, or its result is not what it may be.
    """
    half = ": a part of it may have happened" if is_write else ""
    content = result.get("content")
    texts = list(_texts(content if isinstance(content, list) else []))
    if result.get("isError") is True:
        said = "\n".join(texts)[:MAX_MESSAGE] or "it gives no reason"
        if is_write:
            raise ToolFailed(f"the server says that it failed: {said}")
        return {"isError": True, "text": said}
    structured = result.get("structuredContent")
    if structured is None:
        if tool.output is not None:
            raise ToolFailed(f"its result has no structuredContent, which its outputSchema promises{half}")
        return _cut("\n".join(texts))
    if tool.output is not None and (problem := await check.problem(tool.output, structured)) is not None:
        raise ToolFailed(f"its result does not fit its outputSchema: {problem}{half}")
    try:
        msgspec.msgpack.encode(structured)  # replies are msgpack too, whose integers have an end
    except (OverflowError, ValueError):
        raise ToolFailed(f"its result holds a number outside -2^63 to 2^64-1{half}") from None
    if (size := len(msgspec.json.encode(structured))) > MAX_RESULT_BYTES:
        raise ToolFailed(f"its result has {size} bytes as JSON; at most {MAX_RESULT_BYTES} are taken{half}")
    return structured


def _texts(content: list[Any]) -> Iterator[str]:
    """Every part of the content: texts as they are, the rest by its name."""
    for part in content:
        match part:
            case {"type": "text", "text": str(text)}:
                yield text
            case {"type": "image" | "audio" as kind, **rest}:
                yield f"({kind}, {_of(rest)}, is left out)"
            case {"type": "resource_link", "uri": str(uri)}:
                yield f"(link: {printable(uri)})"
            case {"type": "resource", "resource": {"text": str(text)}}:
                yield text
            case {"type": "resource", "resource": {**rest}}:
                yield f"(resource, {_of(rest)}, is left out)"


def _of(part: Mapping[Any, Any]) -> str:
    """What kind of data a part is, and how much."""
    data = part.get("data", part.get("blob"))
    size = len(data) * 3 // 4 if isinstance(data, str) else 0
    return f"{printable(str(part.get('mimeType', 'of no type')))}, {size} bytes"


def _cut(text: str) -> str:
    data = text.encode(errors="replace")
    if len(data) <= MAX_RESULT_BYTES:
        return text
    return f"{data[:MAX_RESULT_BYTES].decode(errors='ignore')}\n(cut: the result has {len(data)} bytes)"
