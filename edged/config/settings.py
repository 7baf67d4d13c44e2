"""The whole configuration: all tables, checked, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct, field

from edged.config.mcp import McpServer
from edged.config.origins import Origins
from edged.config.roles import Access, Role
from edged.config.secrets import CREDENTIAL
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
from edged.config.tools import Tool
from edged.config.values import Key, parse_bytes
from edged.errors import ConfigError
from edged.types import Preference, Privacy

# The tables by their names, in the order of the documentation. [tools.NAME] is not here: see tools.KINDS.
SINGLE: Mapping[str, type[Struct]] = {
    "node": Node,
    "memory": Memory,
    "compute": Compute,
    "queue": Queue,
    "store": Store,
    "snapshots": Snapshots,
    "audit": AuditKept,
    "ipc": Ipc,
    "http": Http,
    "mqtt": Mqtt,
    "homeassistant": HomeAssistant,
    "wyoming": Wyoming,
    "access": Access,
}
NAMED: Mapping[str, type[Struct]] = {  # [databases.NAME] and so on
    "databases": Database,
    "models": Model,
    "upstreams": Upstream,
    "mcp": McpServer,
    "agents": Agent,
    "roles": Role,
}


class Config(Struct, frozen=True, kw_only=True):
    """Everything, checked. Paths are absolute, names refer to what exists, secrets are read when they are needed."""

    node: Node
    memory: Memory = Memory()
    compute: Compute = Compute()
    queue: Queue = Queue()
    store: Store = Store()
    snapshots: Snapshots = Snapshots()
    audit: AuditKept = AuditKept()
    ipc: Ipc = Ipc()
    http: Http = Http()
    mqtt: Mqtt | None = None
    homeassistant: HomeAssistant | None = None
    wyoming: Wyoming | None = None
    databases: dict[str, Database] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    upstreams: dict[str, Upstream] = field(default_factory=dict)
    mcp: dict[str, McpServer] = field(default_factory=dict)
    agents: dict[str, Agent] = field(default_factory=dict)
    tools: dict[str, Tool] = field(default_factory=dict)
    roles: dict[str, Role] = field(default_factory=dict)
    access: Access | None = None  # None: neither table is there, so everybody who gets in may do everything
    files: tuple[str, ...] = ()
    origins: Origins = field(default_factory=Origins)

    def error(self, key: Key, problem: str) -> ConfigError:
        """An error at a key that only shows when what the configuration names is looked at."""
        return self.origins.error(key, problem)

    def is_given(self, *key: str) -> bool:
        """Whether a file names a key, or its value is the default."""
        return key in self.origins

    @property
    def tools_dir(self) -> Path:
        """Folder of the Python tools' modules: beside the configuration."""
        return Path(self.files[0]).parent / "tools"

    @property
    def state_dir(self) -> Path:
        """Folder of the store."""
        return Path(self.node.state_dir)

    @property
    def socket_path(self) -> Path:
        """The Unix socket."""
        return Path(self.node.runtime_dir) / "edged.sock"

    @property
    def http_listeners(self) -> tuple[Path | tuple[str, int], ...]:
        """Sockets and (host, port) pairs that HTTP is served on."""
        return tuple(parse_listener(text, Path(self.node.runtime_dir)) for text in self.http.listen)

    def is_tool(self, name: str) -> bool:
        """Whether there is a tool of that name. Those of MCP servers are known only when these have been asked."""
        return name in self.tools or name.partition(".")[0] in self.mcp

    @property
    def open_ways(self) -> dict[str, tuple[Key, str]]:
        """The ways in without authentication that are configured, by their names in [access]: the key of each, and
        what it listens on."""
        ways: dict[str, tuple[Key, str]] = {
            "ollama": (("http", "ollama"), self.http.ollama),
            "wyoming": (("wyoming", "listen"), self.wyoming.listen if self.wyoming else ""),
            "foundry": (("http", "foundry"), self.http.foundry),
        }
        return {name: way for name, way in ways.items() if way[1]}

    @property
    def wyoming_listener(self) -> tuple[str, int]:
        """(host, port) of a [wyoming] that is there."""
        assert self.wyoming is not None
        listener = parse_listener(self.wyoming.listen, Path(self.node.runtime_dir))
        assert isinstance(listener, tuple)
        return listener

    @property
    def wyoming_agent(self) -> str:
        """Who answers by [wyoming]: the agent that it names, else the only one."""
        named = self.wyoming.agent if self.wyoming else ""
        return named or next(iter(self.agents))

    def upstreams_of(self, agent: str) -> tuple[str, ...]:
        """Names of the upstreams that may answer for an agent, in the order to try them."""
        named = self.agents[agent].upstream
        return (named,) if named else tuple(self.upstreams)

    def may_escalate(self, agent: str) -> bool:
        """Whether the board's model may hand requests of an agent to an upstream."""
        settings = self.agents[agent]
        return (
            settings.privacy is Privacy.ANY
            and settings.route is not Preference.LOCAL
            and bool(self.upstreams_of(agent))
        )

    @property
    def served(self) -> dict[str, Model]:
        """The models that servers on this board run."""
        return {name: model for name, model in self.models.items() if model.is_served}

    @property
    def models_dir(self) -> Path:
        """Folder of the weights."""
        return Path(self.node.models_dir)

    @property
    def store_bytes(self) -> int:
        """Bound of edged's own database."""
        return parse_bytes(self.store.max_bytes)

    @property
    def snapshot_bytes(self) -> int:
        """Bound of the states of prefixes on the disk; 0: none are kept."""
        return parse_bytes(str(self.snapshots.max_bytes))

    @property
    def store_path(self) -> Path:
        """edged's own database."""
        return self.state_dir / "edged.db"

    @property
    def snapshots_dir(self) -> Path:
        """Folder of those states."""
        return self.state_dir / "snapshots"

    @property
    def secret_files(self) -> tuple[str, ...]:
        """Paths of the files that hold secrets. (systemd's credentials are not files of the configuration's.)"""
        mine = [self.http.api_keys_file]
        mine += [self.mqtt.password_file, self.mqtt.key_file] if self.mqtt else []
        mine += [upstream.api_key_file for upstream in self.upstreams.values()]
        mine += [model.api_key_file for model in self.served.values()]
        mine += [path for server in self.mcp.values() for path in server.secret_files]
        return tuple(path for path in mine if path and not path.startswith(CREDENTIAL))

    @property
    def reserve_bytes(self) -> int:
        """MemAvailable that is left to the rest of the board."""
        return parse_bytes(self.memory.reserve)

    def budget_bytes(self, board_bytes: int) -> int:
        """The memory budget on a board (or in a cgroup) of that many bytes."""
        text = self.memory.budget.strip()
        if text.endswith("%"):
            return int(board_bytes * float(text[:-1]) / 100)
        return min(parse_bytes(text), board_bytes)

    def threads(self) -> int | None:
        """Threads as configured; None leaves it to edged."""
        return None if self.compute.threads == "auto" else int(self.compute.threads)


def parse_listener(text: str, runtime_dir: Path) -> Path | tuple[str, int]:
    """A socket's path, or (host, port); ValueError."""
    if text.startswith("unix:"):
        if not text.removeprefix("unix:").strip("/"):
            raise ValueError(text)
        return runtime_dir / text.removeprefix("unix:")
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ValueError(text)
    return host.removeprefix("[").removesuffix("]"), int(port)
