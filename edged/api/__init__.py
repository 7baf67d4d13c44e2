"""What a caller may do, by subject, whatever transport brought the call. Transports translate to this and back; nothing
here knows how bytes travel, and nothing here calls the composition root."""

from __future__ import annotations

from msgspec import Struct

from edged.api.calibrate import Calibrate
from edged.api.events import Events
from edged.api.learnt import Learnt
from edged.api.library import Library
from edged.api.mcp import McpServers
from edged.api.models import Models
from edged.api.requests import Requests
from edged.api.responses import Responses
from edged.api.tools import Tools


class Api(Struct, frozen=True, kw_only=True):
    """The subjects, as transports are given them."""

    requests: Requests
    responses: Responses
    models: Models
    library: Library
    tools: Tools
    calibrate: Calibrate
    learnt: Learnt
    events: Events
    mcp: McpServers
