"""What MCP clients are shown: tools and agents as tools with names that every client takes, and results of calls.
Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from typing import Any

import msgspec
from msgspec import Struct

from edged.types import JSON

NAME_CHARS = 64  # clients of OpenAI's API allow no more, and no dot
ASK = "ask_"  # before an agent's name
ANSWER = "get_answer"
NOTHING: dict[str, JSON] = {"type": "object", "additionalProperties": False}
TEXT: dict[str, JSON] = {
    "type": "object",
    "properties": {"text": {"type": "string", "description": "What to ask or to have done, in plain words."}},
    "required": ["text"],
    "additionalProperties": False,
}
ID: dict[str, JSON] = {
    "type": "object",
    "properties": {"id": {"type": "string", "description": "As the agent's tool gave it."}},
    "required": ["id"],
    "additionalProperties": False,
}
ANSWERED: dict[str, JSON] = {
    "type": "object",
    "properties": {
        "answer": {"type": "string", "description": "Empty while there is none yet."},
        "id": {"type": "string", "description": f"For {ANSWER}."},
        "state": {"type": "string", "description": "done, or how far it is: queued, running, waiting_link, failed."},
    },
    "required": ["answer", "id", "state"],
}
INSTRUCTIONS = (
    f"Tools of a board at the edge. Those that begin with {ASK} ask an agent there in plain words; one that needs"
    f" longer gives an id, with which {ANSWER} gives the answer."
)


class Kind(StrEnum):
    """What a tool stands for."""

    TOOL = "tool"
    AGENT = "agent"
    ANSWER = "answer"


class Offer(Struct, frozen=True):
    """A tool as clients see it. name: of the tool or the agent that it stands for. document: as `tools/list` has it."""

    kind: Kind
    name: str
    document: dict[str, JSON]


def offers(tools: Iterable[Mapping[str, Any]], agents: Mapping[str, Collection[str]]) -> dict[str, Offer]:
    """All that a caller may use, by the names that clients use; in a stable order, the agents first.

    Args:
        tools: as `tools.list` shows them.
        agents: names of their tools, by their names.
    """
    tools = list(tools)
    reads = {tool["name"] for tool in tools if tool["effect"] == "read"}
    found: dict[str, Offer] = {}
    for name, theirs in agents.items():
        shown = _unique(f"{ASK}{name}", found)
        found[shown] = Offer(Kind.AGENT, name, _agent(shown, name, theirs, only_reads=reads.issuperset(theirs)))
    if agents:
        about = {"name": ANSWER, "title": "Answer of an agent", "inputSchema": ID, "outputSchema": ANSWERED}
        said = "The answer of an agent that needed longer. Wait a while between two calls."
        found[ANSWER] = Offer(
            Kind.ANSWER, ANSWER, {**about, "description": said, "annotations": {"readOnlyHint": True}}
        )
    for tool in tools:
        shown = _unique(tool["name"], found)
        found[shown] = Offer(Kind.TOOL, tool["name"], _tool(shown, tool))
    return found


def _agent(shown: str, name: str, tools: Collection[str], *, only_reads: bool) -> dict[str, JSON]:
    can = f" Its tools: {', '.join(tools)}." if tools else ""
    return {
        "name": shown,
        "title": f"Ask {name}",
        "description": f"Ask the agent {name!r} in plain words; it decides itself what to do.{can}",
        "inputSchema": TEXT,
        "outputSchema": ANSWERED,
        "annotations": {"readOnlyHint": only_reads},
    }


def _tool(shown: str, tool: Mapping[str, Any]) -> dict[str, JSON]:
    schema = {key: value for key, value in tool["parameters"].items() if value}  # no `required: []`
    return {
        "name": shown,
        "title": tool["name"],
        "description": tool["description"],
        "inputSchema": {**schema, "additionalProperties": False} if "properties" in schema else NOTHING,
        "annotations": {"readOnlyHint": tool["effect"] == "read"},
    }


def _unique(name: str, taken: Collection[str]) -> str:
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:NAME_CHARS]
    number, found = 1, plain
    while found in taken or found == ANSWER:
        number += 1
        found = f"{plain[: NAME_CHARS - 4]}_{number}"
    return found


def result(value: JSON) -> dict[str, JSON]:
    """The result of a tool's call."""
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    content = [{"type": "text", "text": text}]
    return {"content": content, "structuredContent": value} if isinstance(value, dict) else {"content": content}


def failed(why: str) -> dict[str, JSON]:
    """The result of a call that failed, for the client's model to read."""
    return {"content": [{"type": "text", "text": why}], "isError": True}


def answered(id: str, view: Mapping[str, Any]) -> dict[str, JSON]:
    """The result of a question to an agent.

    Args:
        id: of its request.
        view: its reply, or how far it is (`Requests.view`).
    """
    state, error, output = view["status"], view.get("error"), view.get("output")
    if error is not None:
        return {**failed(error["message"]), "structuredContent": _structured(error["message"], id, state)}
    if output is None:
        wait = f" about {view['eta_s']:.0f} s" if view.get("eta_s") else " a while"
        said = f"The agent was asked and needs longer ({state}). Wait{wait}, then call {ANSWER} with id {id!r}."
        return {"content": [{"type": "text", "text": said}], "structuredContent": _structured("", id, state)}
    text = output if isinstance(output, str) else msgspec.json.encode(output).decode()
    return {"content": [{"type": "text", "text": text}], "structuredContent": _structured(text, id, state)}


def _structured(answer: str, id: str, state: str) -> dict[str, JSON]:
    return {"answer": answer, "id": id, "state": state}
