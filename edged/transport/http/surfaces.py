"""The HTTP surfaces of a daemon: THE list. A new one is a folder beside these, and a line here."""

from __future__ import annotations

from collections.abc import Callable

from edged.transport.http.core.surface import Board, Surface
from edged.transport.http.mcp.surface import Mcp
from edged.transport.http.native.surface import Native
from edged.transport.http.openai.surface import OpenAI
from edged.transport.http.responses.surface import Responses

SURFACES: list[Callable[[Board], Surface]] = [Native, OpenAI, Responses, Mcp]
