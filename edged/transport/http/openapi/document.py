"""The document: OpenAPI 3.1, an operation for each agent and each tool that its reader may use. Pure.

It is for programs that make tools of operations (Open WebUI does), so an operation is called what the agent or tool is,
and an agent's takes only what a model can know. What else a request may hold is in the contract, section 3.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any
from urllib.parse import quote

import msgspec

from edged import __version__, wire
from edged.types import JSON, Reply

OPENAPI = "3.1.0"
JSON_TYPE = "application/json"
REFERENCE = "#/components/schemas/{name}"
BEARER = "bearer"
# What of a request a model that calls the agent as a tool can know, and what it is to it.
OF_A_REQUEST = {
    "input": "What the agent is asked or told, as a person would say it.",
    "conversation": "A name of your own: what is said under it is remembered for the next request.",
    "language": 'Language of what edged says itself, as "de".',
}


def document(agents: Collection[str], tools: Iterable[dict[str, JSON]]) -> dict[str, JSON]:
    """The document.

    Args:
        agents: names.
        tools: {name, description, parameters, effect} of each.
    """
    told = list(tools)
    names = {tool["name"] for tool in told}
    replies, schemas = msgspec.json.schema_components([Reply], ref_template=REFERENCE)
    paths = {f"/v1/agents/{_segment(name)}/requests": {"post": _agent(name, names, replies[0])} for name in agents}
    paths |= {f"/v1/tools/{_segment(tool['name'])}": {"post": _tool(tool, replies[0])} for tool in told}
    return {
        "openapi": OPENAPI,
        "info": {"title": "edged", "version": __version__, "description": "Agents and tools of this board."},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {BEARER: {"type": "http", "scheme": "bearer"}},
        },
        "security": [{BEARER: []}, {}],  # over a Unix socket the kernel says who asks
    }


def _agent(name: str, tools: Collection[str], reply: JSON) -> dict[str, JSON]:
    """An agent may be called as a tool is."""
    return {
        "operationId": f"ask_{name}" if name in tools else name,
        "summary": f"Ask the agent {name}",
        "description": f"The agent {name} of this board answers, and does what it can with tools of its own.",
        "requestBody": _body(_request()),
        "responses": {"200": _json("Its reply.", reply), "default": _json("It failed: see error.", reply)},
    }


def _tool(tool: dict[str, JSON], reply: JSON) -> dict[str, JSON]:
    """Its result is what it is: rows of a statement, or whatever a function returns."""
    description: Any = tool["description"]
    effect = "It changes something." if tool["effect"] == "write" else "It changes nothing."
    return {
        "operationId": tool["name"],
        "summary": description.partition("\n")[0] or tool["name"],
        "description": f"{description} {effect}".lstrip(),
        "requestBody": _body(tool["parameters"]),
        "responses": {"200": _json("Its result.", {}), "default": _json("It failed: see error.", reply)},
    }


def _request() -> JSON:
    """The schema of what an agent is asked, as `wire` reads it."""
    known = wire.request_schema()
    fields = {name: {**_given(known[name]), "description": text} for name, text in OF_A_REQUEST.items()}
    return {"type": "object", "properties": fields, "required": ["input"]}


def _given(schema: dict[str, JSON]) -> dict[str, JSON]:
    """Of a value that is there: null stands for one that is not."""
    kinds: list[dict[str, JSON]] = [kind for kind in schema.get("anyOf", []) if kind.get("type") != "null"]
    return kinds[0] if len(kinds) == 1 else schema


def _body(schema: JSON) -> dict[str, JSON]:
    return {"required": True, "content": {JSON_TYPE: {"schema": schema}}}


def _json(description: str, schema: JSON) -> dict[str, JSON]:
    return {"description": description, "content": {JSON_TYPE: {"schema": schema}}}


def _segment(name: str) -> str:
    return quote(name, safe="")
