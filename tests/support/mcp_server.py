"""An MCP server that does wrong in every way, as a program of its own: only the standard library.

    mcp_server.py FOLDER [modern | legacy | dies | slow]

The tools are those of FOLDER/tools.json, read anew at each list; FOLDER has the files `calls` (a line for each call),
`cancelled`, `starts` (a line with the number of each process) and `answers` (what it was answered when it asked).
`dies`: as a legacy server that ends when it is asked anything before `initialize`. `slow`: a modern one that needs a
second for its first answer.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

FOLDER, ERA = Path(sys.argv[1]), [*sys.argv[2:], "legacy"][0]
MODERN = "2026-07-28"
PAGE = 4  # tools in one page
KINDS = {"text": {"type": "string"}}


def send(message: dict[str, Any]) -> None:
    """One line."""
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def note(file: str, text: object) -> None:
    """A line in a file of the folder."""
    with (FOLDER / file).open("a") as out:
        out.write(f"{text}\n")


def text(said: str, **more: Any) -> dict[str, Any]:
    """A result."""
    return {"content": [{"type": "text", "text": said}], **more}


def call(number: Any, name: str, arguments: dict[str, Any]) -> dict[str, Any] | None:
    """The result of a call; None: there is none."""
    note("calls", json.dumps([name, arguments]))
    match name:
        case "sum":
            total = arguments["a"] + arguments["b"]
            return text(str(total), structuredContent={"sum": total})
        case "wrong":
            return text("x", structuredContent={"sum": "many"})
        case "fail":
            return text("no such room", isError=True)
        case "image":
            return {"content": [{"type": "image", "data": "QUJD", "mimeType": "image/png"}, *text("a cat")["content"]]}
        case "rpc":
            send({"id": number, "error": {"code": -32602, "message": "unknown tool"}})
            return None
        case "hang":
            return None
        case "die":
            sys.stderr.write("it hurts\n")
            sys.stderr.flush()
            os._exit(3)
        case "freeze":
            time.sleep(1000)
        case "flood":
            while True:
                send({"method": "notifications/message", "params": {"level": "info", "data": "x"}})
        case "long":
            sys.stdout.write("x" * 10_000_000)
            sys.stdout.flush()
            return None
        case "garbage":
            sys.stdout.write("Starting up...\n\n[1, 2]\n")
            return text("fine")
        case "asks":
            for at, method in enumerate(("sampling/createMessage", "roots/list", "elicitation/create", "ping")):
                send({"id": f"s{at}", "method": method, "params": {}})
            send({"method": "notifications/whatever"})
            return text("asked")
        case "environment":
            return text(json.dumps(sorted(os.environ)))
        case "open":
            try:
                return text(Path(arguments["path"]).read_text(encoding="utf-8")[:20])
            except OSError as error:
                return text(type(error).__name__)
        case "connect":
            try:
                socket.create_connection(("127.0.0.1", arguments["port"]), 5).close()
                return text("connected")
            except OSError as error:
                return text(type(error).__name__)
    return text(json.dumps(arguments))


def tools(cursor: str | None) -> dict[str, Any]:
    """A page of the list."""
    every = json.loads((FOLDER / "tools.json").read_text())
    start = int(cursor or 0)
    more = {"nextCursor": str(start + PAGE)} if start + PAGE < len(every) else {}
    return {"tools": every[start : start + PAGE], **more}


def answer(message: dict[str, Any]) -> None:
    """Handle one message."""
    number, method, params = message.get("id"), message.get("method"), message.get("params") or {}
    if method is None:
        note("answers", json.dumps([number, message.get("error", {}).get("code"), message.get("result")]))
        return
    if method == "notifications/cancelled":
        note("cancelled", params["requestId"])
    if number is None:
        return
    is_modern = params.get("_meta", {}).get("io.modelcontextprotocol/protocolVersion") == MODERN
    if ERA in ("modern", "slow") and not is_modern:
        send({"id": number, "error": {"code": -32022, "message": "no", "data": {"supported": [MODERN]}}})
    elif ERA == "dies" and method == "server/discover":
        os._exit(1)
    elif ERA in ("modern", "slow") and method == "server/discover":
        about = {"io.modelcontextprotocol/serverInfo": {"name": "wrongs", "version": "2"}}
        result: dict[str, Any] = {"supportedVersions": [MODERN], "capabilities": {"tools": {}}, "_meta": about}
        send({"id": number, "result": {"resultType": "complete", **result}})
    elif method == "initialize":
        mine = {"name": "wrongs", "version": "1"}
        result = {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": mine}
        send({"id": number, "result": result})
    elif method == "ping":
        send({"id": number, "result": {}})
    elif method == "tools/list":
        send({"id": number, "result": {"resultType": "complete", **tools(params.get("cursor"))}})
    elif method == "tools/call":
        if (called := call(number, params["name"], params["arguments"])) is not None:
            send({"id": number, "result": {"resultType": "complete", **called}})
    else:
        send({"id": number, "error": {"code": -32601, "message": "what?"}})


def main() -> None:
    """Serve until the input ends."""
    note("starts", os.getpid())
    if ERA == "slow":
        time.sleep(1)
    for line in sys.stdin:
        message = json.loads(line)
        if (message.get("params") or {}).get("name") == "freeze":
            answer(message)  # the whole server hangs
        else:
            threading.Thread(target=answer, args=(message,), daemon=True).start() if message.get(
                "method"
            ) == "tools/call" else answer(message)


if __name__ == "__main__":
    main()
