"""`edged mcp`: edged as a server of the Model Context Protocol on standard input and output; and the servers whose
tools edged uses."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from edged.cli.common import AsJson, ConfigFile, Socket, line, print_table, row, table
from edged.cli.connection import daemon
from edged.cli.outcome import print_json, reporting_errors

app = typer.Typer(name="mcp", invoke_without_command=True)
Name = Annotated[str, typer.Argument(metavar="NAME", help="The server, as in [mcp.NAME].")]


@app.callback()
def serve(
    context: typer.Context,
    socket: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The daemon's HTTP socket. Default: by the configuration.")
    ] = None,
    url: Annotated[
        str, typer.Option(metavar="URL", help="A daemon elsewhere, as http://HOST:PORT; its key is in $EDGED_KEY.")
    ] = "",
    config_file: ConfigFile = None,
) -> None:
    """Serve the daemon's tools and agents by MCP on standard input and output. The words behind it look after the MCP
    servers whose tools the running daemon uses."""
    if context.invoked_subcommand is not None:
        return
    from edged.cli import mcp_bridge

    with reporting_errors(as_json=False):
        at = None if url else mcp_bridge.http_socket(socket, config_file)
        asyncio.run(mcp_bridge.serve(at, url or "http://localhost"))


@app.command("ls")
def list_servers(as_json: AsJson = False, socket: Socket = None, config_file: ConfigFile = None) -> None:
    """The servers, how they are, and whether they have changed their tools since these were accepted."""
    with daemon(socket, config_file, as_json) as client:
        servers = client.call("mcp.list")
    if as_json:
        print_json(servers)
        return
    listing = table("name", "state", "server", "tools", "not accepted")
    for server in servers:
        tools = ", ".join(server["tools"]) or "none"
        row(listing, server["name"], line(server["state"]), line(server["server"]), tools, _said(server["difference"]))
    print_table(listing)


@app.command("check")
def check_server(name: Name, as_json: AsJson = False, socket: Socket = None, config_file: ConfigFile = None) -> None:
    """Ask a server for its tools now, and say what is wrong with them and what it has changed."""
    with daemon(socket, config_file, as_json) as client:
        server = client.call("mcp.check", {"name": name})
    if as_json:
        print_json(server)
        return
    called, tools = line(server["server"]) or "no name", server["tools"]
    print(f"{name}: {called}, MCP {server['version']}; {len(tools)} tools in use")
    for tool, why in server["unusable"].items():
        print(f"{line(tool)} cannot be used: {line(why)}")
    if said := _said(server["difference"]):
        print(f"since they were accepted: {said}; to use them so: edged mcp accept {name}")


@app.command("accept")
def accept_tools(name: Name, as_json: AsJson = False, socket: Socket = None, config_file: ConfigFile = None) -> None:
    """Use a server's tools as it offers them now."""
    with daemon(socket, config_file, as_json) as client:
        server = client.call("mcp.accept", {"name": name})
    if as_json:
        print_json(server)
        return
    print(f"{name}: {_said(server['difference']) or 'nothing was different'}; {len(server['tools'])} tools in use")


def _said(difference: dict[str, Any]) -> str:
    """What is offered otherwise, in words."""
    return "; ".join(f"{what}: {line(', '.join(names))}" for what, names in difference.items() if names)
