"""The program `foundry` by which Foundry Local's SDK finds its service: a shell script that points at edged."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from edged.cli.common import AsJson, ConfigFile
from edged.cli.connection import load_config
from edged.cli.outcome import Stop, print_json, reporting_errors
from edged.host import tcp_peers

NAME = "foundry"
MARK = "# Made by `edged foundry`"  # a file without it is somebody else's program
# The SDK asks for the status at each start, up to ten times: a shell and one `grep` take 3 ms, a Python 40. Whether
# edged listens stands in the kernel's table of sockets (0A is LISTEN), so nothing has to be connected.
SCRIPT = """\
#!/bin/sh
{mark}: Foundry Local's SDK finds edged by it. Without it nothing changes but that.
url={url}
listens() {{ grep -qi ' {socket} 0*:0* 0A ' {table} 2>/dev/null; }}
running() {{ echo "Model management service is running on $url/openai/status"; }}
case "$1 $2" in
"service status")
    if listens; then running; else echo "Model management service is not running."; fi ;;
"service start")
    listens || systemctl --no-ask-password start edged.service 2>/dev/null
    tries=0
    until listens; do
        tries=$((tries + 1))
        if [ $tries -gt 50 ]; then
            echo "edged does not listen on $url: start it (systemctl start edged), with [http] foundry set" >&2
            exit 1
        fi
        sleep 0.1
    done
    running ;;
"service stop")
    echo "edged serves others, too: it is stopped by systemctl stop edged" >&2
    exit 1 ;;
"model list")
    exec {edged} models ls ;;
*)
    echo "usage: foundry service status|start|stop, foundry model list (edged stands for Foundry Local)" >&2
    exit 64 ;;
esac
"""


def foundry(
    folder: Annotated[Path, typer.Argument(help="Where it goes: a folder on the PATH of those who use the SDK.")],
    config_file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Write the program by which Foundry Local's SDK finds edged: FOLDER/foundry."""
    with reporting_errors(as_json):
        settings = load_config(config_file)
        if not settings.http.foundry:
            raise Stop("config", 'set [http] foundry = "127.0.0.1:5273" first: it is what the program points at')
        made = folder / NAME
        try:
            if made.exists() and MARK not in made.read_text(encoding="utf-8", errors="replace"):
                raise Stop("bad_request", f"{made} is another program, and stays as it is")
            made.write_text(script(settings.http.foundry), encoding="utf-8")
            made.chmod(0o755)
        except OSError as error:
            raise Stop("internal", f"{made} cannot be written: {error.strerror}") from None
        if as_json:
            print_json({"program": str(made), "listener": settings.http.foundry})
            return
        print(f"{made}: Foundry Local's SDK finds edged at http://{settings.http.foundry} where this is on the PATH")


def script(listener: str) -> str:
    """The program, for a listener "HOST:PORT"."""
    host, _, port = listener.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host.strip("[]")
    table, socket = tcp_peers.row_of(host, int(port))
    # the SDK's pattern of an address has no brackets, but takes names
    url = f"http://{'localhost' if ':' in host else host}:{port}"
    command = shlex.join([sys.executable, "-m", "edged"])
    return SCRIPT.format(mark=MARK, url=url, socket=socket, table=table, edged=command)
