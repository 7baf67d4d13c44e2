"""[mcp.NAME]: a server of tools that speaks the Model Context Protocol, and what can be wrong in its table."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Literal
from urllib.parse import urlsplit

from msgspec import Meta, field

from edged.config.values import NAME, AbsolutePath, Mistakes, SecretFile, Size, Strict, Url, size_mistakes

EVERY = "*"  # in a list of tools: all that the server has
MEMORY = ("32MiB", "1024GiB")  # that a server's process may be given, as a Python tool's
# The default of `memory` is for Node, which reserves 512 MiB for code that it never writes.
SOURCES = ("command", "url", "file")
OF_COMMAND = ("args", "env", "secret_env", "cwd", "network", "memory", "file_size")
NOT_OF_FILE = ("args", "env", "cwd")  # the file has them


class McpServer(Strict, frozen=True):
    """A server of the Model Context Protocol. Its tools are the tools `NAME.TOOL`, for agents and by hand.

    Its tools are used as they were when edged first saw them: what the server changes afterwards is reported, and
    counts from `edged mcp accept NAME` on.

    command: program that is started when a tool is called; it speaks MCP on its standard input and output.
    args: its arguments.
    env: environment variables of the program, beside HOME, LANG, LOGNAME, PATH, SHELL, TERM and USER.
    secret_env: environment variables whose values are secrets: files, or `credential:NAME`.
    cwd: folder that the program is started in. Default: the folder `tools` beside the configuration, or else `/`.
    network: whether the program may open TCP connections.
    memory: largest private memory of each of its processes, 32MiB to 1024GiB.
    file_size: largest size of a file that it writes.
    url: address of a server that speaks MCP over HTTP, instead of a program.
    key_file: file or `credential:NAME` with the key that is sent as `Authorization: Bearer KEY`; with `url`.
    file: JSON file of another program that has a server of this name in its `mcpServers` or `servers`.
    tools: names of the server's tools that are used; "*" is all.
    read: names of the server's tools that change nothing; "*" is all. The others are writes, and so is one of which the
        server itself says that it changes something.
    timeout_s: seconds a call may take.
    on_uncertain: what follows if the daemon died during a call that writes: "report" says so, "retry" calls again.
    private: whether upstreams see nothing of the tools and are not offered them.
    """

    command: str = ""
    args: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    secret_env: dict[str, SecretFile] = field(default_factory=dict)
    cwd: AbsolutePath = ""
    network: bool = False
    memory: Size = "1GiB"
    file_size: Size = "256MiB"
    url: Url = ""
    key_file: SecretFile | None = None
    file: AbsolutePath = ""
    tools: tuple[str, ...] = (EVERY,)
    read: tuple[str, ...] = ()
    timeout_s: Annotated[float, Meta(ge=0.01, le=3600)] = 30.0
    on_uncertain: Annotated[Literal["retry", "report"], Meta(extra={"problem": "{}; allowed are retry, report"})] = (
        "report"
    )
    private: bool = False

    def has(self, tool: str) -> bool:
        """Whether a tool of the server is used."""
        return EVERY in self.tools or tool in self.tools

    def only_reads(self, tool: str) -> bool:
        """Whether the configuration says that a tool changes nothing."""
        return EVERY in self.read or tool in self.read

    @property
    def secret_files(self) -> tuple[str, ...]:
        """What its table names as secrets."""
        return (*self.secret_env.values(), *([self.key_file] if self.key_file else ()))


def mistakes(servers: Mapping[str, McpServer], given: Mapping[str, set[str]]) -> Mistakes:
    """(key, what is wrong and what is allowed) of all tables. given: the keys that each has."""
    for name, server in servers.items():
        at, keys = ("mcp", name), given[name]
        if "." in name:
            yield at, "has a dot in its name, which stands between a server and its tools: NAME.TOOL"
        if len([key for key in SOURCES if key in keys]) != 1:
            yield at, "has exactly one of `command`, `url` and `file`"
            continue
        source = next(key for key in SOURCES if key in keys)
        if not getattr(server, source):
            yield (*at, source), "is empty"
        unused = {"command": ("key_file",), "url": OF_COMMAND, "file": (*NOT_OF_FILE, "key_file")}[source]
        for key in unused:
            if key in keys:
                yield (*at, key), f"means nothing beside `{source}`"
        if source == "url":
            yield from ((("mcp", name, "url"), problem) for problem in _url(server.url))
        if server.file and not os.access(server.file, os.R_OK):
            yield (*at, "file"), f"{server.file!r} cannot be read"
        yield from size_mistakes((*at, "memory"), server.memory, *MEMORY)
        yield from size_mistakes((*at, "file_size"), server.file_size)
        for key in ("env", "secret_env"):
            for variable in getattr(server, key):
                if "=" in variable or not variable:
                    yield (*at, key, variable), "is no name of a variable"
        for key in ("tools", "read"):
            for i, tool in enumerate(getattr(server, key)):
                if tool != EVERY and not NAME.fullmatch(tool):
                    yield (*at, key, f"[{i}]"), f'{tool!r} is no name of a tool; write names, or "*" for all'


def _url(text: str) -> list[str]:
    try:
        url = urlsplit(text)
        port_ok = url.port is None or url.port > 0
    except ValueError:
        return [f"{text!r}; write https://HOST[:PORT]/mcp"]
    if url.username or url.password:
        return ["holds a secret; use key_file"]
    if url.scheme not in ("http", "https") or not url.hostname or url.fragment or not port_ok:
        return [f"{text!r}; write https://HOST[:PORT]/mcp"]
    return []
