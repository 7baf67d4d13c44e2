"""Becomes the program of an MCP server, confined as a Python tool is: its limits, the daemon's life, edged's own files.

    python -P -m edged.tools.mcp.launch RULES PARENT MEMORY FILE_BYTES COMMAND ARGUMENT...

All of it outlasts exec: limits, niceness, the signal at the daemon's end, and Landlock's rules.
"""

from __future__ import annotations

import os
import sys

from edged.tools.python.child import confine, restrict

NO_PROGRAM = 127  # as a shell says it


def main(rules: str, parent: str, memory: str, file_bytes: str, *command: str) -> None:
    """Confine this process, then be the program."""
    confine(int(parent), int(memory), int(file_bytes))
    if rules:
        restrict(int(rules))
    try:
        os.execvp(command[0], command)  # noqa: S606  # the configuration's own command
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        sys.exit(NO_PROGRAM)


if __name__ == "__main__":
    main(*sys.argv[1:])
