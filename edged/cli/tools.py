"""`edged tools`: what the agents can do, and doing it by hand."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from edged.cli import arguments as command_line
from edged.cli import complete
from edged.cli.common import AsJson, ConfigFile, Socket, line, print_table, row, shown, table
from edged.cli.connection import daemon
from edged.cli.outcome import Stop, print_json

app = typer.Typer(name="tools", help="Tools of the running daemon.", no_args_is_help=True)


@app.command("ls")
def list_tools(as_json: AsJson = False, socket: Socket = None, config_file: ConfigFile = None) -> None:
    """The tools, their parameters and what they are for."""
    with daemon(socket, config_file, as_json) as client:
        tools = client.call("tools.list")
    if as_json:
        print_json(tools)
        return
    listing = table("name", "effect", "parameters", "for")
    for tool in tools:
        row(listing, tool["name"], tool["effect"], _signature(tool["parameters"]), tool["description"])
    print_table(listing)


@app.command("call")
def call_tool(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The tool.", autocompletion=complete.tools)],
    pairs: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Its arguments.")] = None,
    arguments: Annotated[
        str | None, typer.Option("--arguments", metavar="JSON", help="Arguments as one JSON object.")
    ] = None,
    id: Annotated[
        str | None, typer.Option(help="Your name for the call: an SQL tool's effect happens once under it.")
    ] = None,
    as_json: AsJson = False,
    socket: Socket = None,
    config_file: ConfigFile = None,
) -> None:
    """Call a tool yourself. Values are read by the parameter's type: 3, true, '["a"]'."""
    with daemon(socket, config_file, as_json) as client:
        tool = _find(client.call("tools.list"), name)
        params = {"name": name, "arguments": command_line.parse(pairs or (), arguments, tool)}
        outcome = client.call("tools.call", {**params, **({"id": id} if id is not None else {})})
    if as_json:
        print_json(outcome)
    else:
        _print_result(outcome["result"])


def _find(tools: list[dict[str, Any]], name: str) -> dict[str, Any]:
    known = {tool["name"]: tool for tool in tools}
    if name not in known:
        raise Stop("bad_request", f"no tool {name!r}; there are {', '.join(known) or 'none'}")
    return known[name]


def _signature(schema: dict[str, Any]) -> str:
    """Parameters with what they may be, those that may be left out in brackets."""
    required = schema.get("required", ())
    parts = (f"{name}={_allowed(parameter)}" for name, parameter in schema.get("properties", {}).items())
    return " ".join(part if part.partition("=")[0] in required else f"[{part}]" for part in parts)


def _allowed(parameter: dict[str, Any]) -> str:
    if "enum" in parameter:
        return "|".join(value if isinstance(value, str) else _json(value) for value in parameter["enum"])
    kinds = parameter.get("type", "any")
    return kinds.upper() if isinstance(kinds, str) else "|".join(kinds).upper()


def _print_result(result: Any) -> None:
    """Rows as a table, a change as a sentence, everything else as it is."""
    match result:
        case {"rows": [{**first}, *_] as rows, **rest}:
            listing = table(*(line(str(heading)) for heading in first))
            for found in rows:
                row(listing, *(value if isinstance(value, str) else _json(value) for value in found.values()))
            print_table(listing)
            if rest.get("truncated"):
                print("there are more rows")
        case {"rows": [], "changes": int(changes)}:
            print(f"{changes} {'row' if changes == 1 else 'rows'} changed")
        case {"rows": [], "truncated": False}:
            print("no rows")
        case {"topic": str(topic), "published": True}:
            print(f"published to {topic}")
        case str(text):
            print(shown(text))
        case other:
            print(shown(_json(other)))


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
