"""The HTTP surfaces of a daemon: THE lists. A new one is a folder beside these, and a line here."""

from __future__ import annotations

import functools
from collections.abc import Callable

from edged.transport.http.core.surface import Board, Surface
from edged.transport.http.mcp.surface import Mcp
from edged.transport.http.native.surface import Native
from edged.transport.http.ollama.surface import Ollama
from edged.transport.http.openai.surface import OpenAI
from edged.transport.http.openapi.surface import OpenAPI
from edged.transport.http.responses.surface import Responses

SURFACES: list[Callable[[Board], Surface]] = [Native, OpenAI, Responses, Ollama, Mcp, OpenAPI]


def _foundry(board: Board) -> Surface:
    from edged.transport.http.foundry.surface import Foundry  # only where it is configured

    return Foundry(board)


# What is spoken on the listeners that want no key, by their names in [access]. Ollama itself has OpenAI's API, too.
OF_OPEN_WAYS: dict[str, list[Callable[[Board], Surface]]] = {
    "ollama": [functools.partial(Ollama, alone=True), OpenAI, Responses],
    "foundry": [_foundry, OpenAI, Responses],
}
