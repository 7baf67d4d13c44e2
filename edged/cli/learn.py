"""`edged learn`: the examples that agents have learnt."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from edged.cli import complete
from edged.cli.common import (
    AsJson,
    Calls,
    ConfigFile,
    Socket,
    call_text,
    calls_of,
    print_table,
    row,
    table,
    when,
)
from edged.cli.connection import daemon
from edged.cli.outcome import Stop, print_json

app = typer.Typer(name="learn", help="What agents have learnt.", no_args_is_help=True)

RoleName = Annotated[str | None, typer.Option("--role", help="Only requests of this role see it.")]
OfAgent = Annotated[str | None, typer.Option("--agent", help="Only of this agent.", autocompletion=complete.agents)]
OfRole = Annotated[str | None, typer.Option("--role", help="Only of this role.")]

BARE = re.compile("[A-Za-z0-9_-]+")  # a key of TOML without quotes
MOST_INTEGER = 2**63  # TOML's have 64 bits


@app.command("ls")
def list_examples(
    agent: OfAgent = None,
    role: OfRole = None,
    as_json: AsJson = False,
    socket: Socket = None,
    config_file: ConfigFile = None,
) -> None:
    """The examples, oldest first."""
    found = _known(agent, role, as_json, socket, config_file)
    if as_json:
        print_json(found)
        return
    listing = table("id", "when", "agent", "role", "from", "input", "calls", right=("id",))
    for each in found:
        calls = " ".join(call_text(call["name"], call["arguments"]) for call in each["calls"])
        cells = (each["id"], when(each["at"]), each["agent"], each["role"], each["source"])
        row(listing, *cells, each["text"], calls)
    print_table(listing)


@app.command("add")
def add_example(
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="Which agent.", autocompletion=complete.agents)],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What somebody asks.")],
    calls: Calls,
    role: RoleName = None,
    as_json: AsJson = False,
    socket: Socket = None,
    config_file: ConfigFile = None,
) -> None:
    """Teach an agent which calls a request means."""
    params = {"agent": agent, "text": text, **({"role": role} if role is not None else {})}
    with daemon(socket, config_file, as_json) as client:
        made = client.call("learn.add", {**params, "calls": calls_of(calls)})
    if as_json:
        print_json(made)
    else:
        print(f"example {made['id']}")


@app.command("forget")
def forget_examples(
    ids: Annotated[list[int] | None, typer.Argument(metavar="[ID]...", help="Numbers of examples.")] = None,
    agent: OfAgent = None,
    role: OfRole = None,
    every: Annotated[bool, typer.Option("--all", help="All there are.")] = False,
    as_json: AsJson = False,
    socket: Socket = None,
    config_file: ConfigFile = None,
) -> None:
    """Forget examples: by number, those of an agent or a role, or all."""
    named = {name: value for name, value in (("agent", agent), ("role", role)) if value is not None}
    if bool(ids) + bool(named) + every != 1:
        raise Stop("usage", "what is to be forgotten: numbers, or --agent and --role, or --all")
    with daemon(socket, config_file, as_json) as client:
        wanted: list[dict[str, Any]] = [{"id": id} for id in ids] if ids else [named or {"all": True}]
        count = sum(client.call("learn.forget", each)["forgotten"] for each in wanted)
    if as_json:
        print_json({"forgotten": count})
    else:
        print(f"{count} forgotten")


@app.command("export")
def export_examples(
    agent: OfAgent = None,
    role: OfRole = None,
    as_json: AsJson = False,
    socket: Socket = None,
    config_file: ConfigFile = None,
) -> None:
    """The examples as TOML, for `examples` of [tools.NAME]: there they count for every agent and role, for good."""
    tools, left_out = _by_tool(_known(agent, role, as_json, socket, config_file))
    if as_json:
        print_json({"tools": {name: {"examples": examples} for name, examples in tools.items()}, "left_out": left_out})
        return
    print("# A tool's `examples` are one list: put these beside those that it has.")
    if left_out:
        print(f"# Left out: {left_out} that are several calls, or that TOML has no word for.")
    for name, examples in tools.items():
        lines = "".join(f"    {_toml(example)},\n" for example in examples)
        print(f"\n[tools.{_key(name)}]\nexamples = [\n{lines}]")


def _known(agent: str | None, role: str | None, as_json: bool, socket: Socket, config_file: ConfigFile) -> Any:
    named = {name: value for name, value in (("agent", agent), ("role", role)) if value is not None}
    with daemon(socket, config_file, as_json) as client:
        return client.call("learn.list", named)


def _by_tool(found: Sequence[dict[str, Any]]) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """(examples by tool, how many are none of one tool's or cannot be written)."""
    tools: dict[str, list[dict[str, Any]]] = {}
    left_out = 0
    for each in found:
        first, *more = each["calls"]
        example = {"input": each["text"], "arguments": first["arguments"]}
        if more or not _can_be_written(example):
            left_out += 1
        elif example not in (examples := tools.setdefault(first["name"], [])):
            examples.append(example)
    return tools, left_out


def _can_be_written(value: Any) -> bool:
    match value:
        case dict():
            return all(map(_can_be_written, value.values()))
        case list():
            return all(map(_can_be_written, value))
        case int():
            return -MOST_INTEGER <= value < MOST_INTEGER
    return value is not None


def _toml(value: Any) -> str:
    match value:
        case dict():
            return f"{{ {', '.join(f'{_key(name)} = {_toml(each)}' for name, each in value.items())} }}"
        case list():
            return f"[{', '.join(map(_toml, value))}]"
    # JSON's texts, numbers and truth values are TOML's, but for one character
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return name if BARE.fullmatch(name) else _toml(name)
