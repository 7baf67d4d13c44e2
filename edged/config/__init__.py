"""The configuration: TOML files into frozen structures, every value checked once and then trusted.

The only room that reads the environment.
"""

from __future__ import annotations

from edged.config.loader import DEFAULT_FILE, NOT_YET, find, load
from edged.config.origins import BUILT_IN
from edged.config.secrets import secret
from edged.config.settings import Config
from edged.config.tables import (
    Agent,
    AuditKept,
    Compute,
    Database,
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
)
from edged.config.tools import (
    PLACEHOLDER,
    Example,
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
    "DEFAULT_FILE",
    "NAME",
    "NOT_YET",
    "PLACEHOLDER",
    "Agent",
    "AuditKept",
    "Compute",
    "Config",
    "Database",
    "Example",
    "Http",
    "Ipc",
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
    "find",
    "load",
    "parse_bytes",
    "secret",
    "words_that_fail",
]
