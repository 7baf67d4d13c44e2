"""The configuration: TOML files into frozen structures, every value checked once and then trusted.

The only room that reads the environment.
"""

from __future__ import annotations

from edged.config.loader import DEFAULT_FILE, find, load
from edged.config.mcp import McpServer
from edged.config.origins import BUILT_IN
from edged.config.placeholders import PLACEHOLDER
from edged.config.secrets import CREDENTIAL, api_key, secret
from edged.config.settings import Config
from edged.config.tables import (
    Agent,
    AuditKept,
    Compute,
    Database,
    HomeAssistant,
    Http,
    Ipc,
    Memory,
    Model,
    Mqtt,
    Node,
    Queue,
    Snapshots,
    Store,
    Upstream,
    Wyoming,
)
from edged.config.tools import (
    Example,
    McpTool,
    Private,
    Publish,
    PublishTool,
    PythonTool,
    SqlTool,
    Tool,
    words_that_fail,
)
from edged.config.values import NAME, parse_bytes

__all__ = [
    "BUILT_IN",
    "CREDENTIAL",
    "DEFAULT_FILE",
    "NAME",
    "PLACEHOLDER",
    "Agent",
    "AuditKept",
    "Compute",
    "Config",
    "Database",
    "Example",
    "HomeAssistant",
    "Http",
    "Ipc",
    "McpServer",
    "McpTool",
    "Memory",
    "Model",
    "Mqtt",
    "Node",
    "Private",
    "Publish",
    "PublishTool",
    "PythonTool",
    "Queue",
    "Snapshots",
    "SqlTool",
    "Store",
    "Tool",
    "Upstream",
    "Wyoming",
    "api_key",
    "find",
    "load",
    "parse_bytes",
    "secret",
    "words_that_fail",
]
