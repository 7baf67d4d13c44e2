"""The tables of the configuration, and all of them together."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct, field

from edged.config.origins import BUILT_IN, Origin, error_at
from edged.config.roles import Access, Role
from edged.config.tools import Tool
from edged.config.values import Key, Strict, parse_bytes
from edged.errors import ConfigError
from edged.types import EngineKind, KvType, Offline, Preference, Privacy

DEFAULT_MODEL = "catalog:qwen2.5-coder-0.5b-instruct-q4_k_m"


class Node(Strict, frozen=True):
    """[node]: who this daemon is and where its files live."""

    id: str = ""
    state_dir: str = ""
    runtime_dir: str = ""
    models_dir: str = ""


class Memory(Strict, frozen=True):
    """[memory]: budget is "60%" of the smaller of RAM and cgroup limit, or a size; reserve is a size."""

    budget: str = "60%"
    reserve: str = "96MiB"
    idle_unload_s: float = 300.0


class Compute(Strict, frozen=True):
    """[compute]: threads for the models; "auto" is as many as the process may use."""

    threads: int | str = "auto"


class Queue(Strict, frozen=True):
    """[queue]: requests that wait, and how often one may kill the daemon before it is quarantined."""

    max_waiting: int = 256
    max_attempts: int = 3


class Store(Strict, frozen=True):
    """[store]: bounds of edged's own database."""

    max_bytes: str = "256MiB"
    retention_days: float = 7.0


class AuditKept(Strict, frozen=True):
    """[audit]: how long the audit log keeps its entries."""

    keep_days: float = 30.0


class Snapshots(Strict, frozen=True):
    """[snapshots]: bound of the states of prefixes on the disk; 0 keeps none.

    256 MiB: a prefix of 1,000 tokens takes 12 MB with a 0.5B model and 28 MB with a 1.5B one, and an agent has two or
    three. So it is enough for a handful of agents, and as much of an 8 GB card as the store may take.
    """

    max_bytes: str | int = "256MiB"


class Ipc(Strict, frozen=True):
    """[ipc]: mode and group of the Unix socket."""

    mode: str = "0660"
    group: str = "edged"


class Http(Strict, frozen=True):
    """[http]: listeners, "unix:NAME" (in the runtime folder, or an absolute path) or "HOST:PORT". One on TCP needs
    api_keys_file: lines "NAME:KEY", of which NAME is who the client is.

    hosts: names by which clients reach a TCP listener, beside addresses, localhost and the board's own name.
    origins: of the web pages that may ask, "https://HOST[:PORT]"; without one no page of a browser may.
    """

    listen: tuple[str, ...] = ("unix:http.sock",)
    api_keys_file: str | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()


class Mqtt(Strict, frozen=True):
    """[mqtt]: the broker. Without the table edged speaks no MQTT."""

    url: str = "mqtt://127.0.0.1:1883"
    version: int = 5
    username: str | None = None
    password_file: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    default_expiry_s: float = 120.0


class Database(Strict, frozen=True):
    """[databases.NAME]: an SQLite file of the user's."""

    path: str
    mode: str = "ro"


class Model(Strict, frozen=True):
    """[models.NAME]: context in tokens that one request may use.

    kv_type: what keys and values are kept as. q8_0 takes little more than half of f16's memory, for a little of the
        quality and of the speed.
    variants: sources of the same model in other sizes or quantizations, best first: the best that memory has room for
        is loaded. `source` is then left out, or is the first of them.
    min_context: tokens that are enough where memory has no room for `context`; default: it is not shortened.
    pin: it is never unloaded.
    preload: load it at the start and bring its agents' prefixes in, so that the first request is as quick as the
        second. Afterwards it goes when it is idle, like any other. In a server: one token is asked of it.
    engine: what runs it; None: what its file is for.
    base_url, model, api_key_file, timeout_s: of a model that a server on this board runs (engine "openai"). base_url
        ends before `/chat/completions`; model is the server's name of it; timeout_s bounds a whole answer, the
        server's own load of the model included.
    """

    source: str = DEFAULT_MODEL
    context: int = 4096
    min_context: int | None = None
    variants: tuple[str, ...] = ()
    kv_type: KvType = KvType.F16
    pin: bool = False
    preload: bool = False
    engine: EngineKind | None = None
    base_url: str = ""
    model: str = ""
    api_key_file: str | None = None
    timeout_s: float = 300.0

    @property
    def is_served(self) -> bool:
        """Whether a server on this board runs it, and not edged."""
        return self.engine is EngineKind.SERVER

    @property
    def sources(self) -> tuple[str, ...]:
        """All variants, best first."""
        return self.variants or (self.source,)


class Upstream(Strict, frozen=True):
    """[upstreams.NAME]: a server of the OpenAI API that answers what the board cannot. base_url ends before
    `/chat/completions`.

    daily_token_budget: prompt and answer tokens of one UTC day; None: no bound.
    timeout_s: for a whole answer. connect_timeout_s and first_byte_timeout_s end one earlier that does not begin, or
        stops in the middle; an answer that is not streamed begins when it is whole: a slow server needs its time here.
    audit_bytes: so much of each question that leaves is in the audit log, as it left; of all of it the log has size and
        digest. 4 KiB hold a question and a few results, and are a quarter of what a request may write.
    """

    base_url: str
    model: str
    api_key_file: str | None = None
    daily_token_budget: int | None = None
    timeout_s: float = 60.0
    connect_timeout_s: float = 5.0
    first_byte_timeout_s: float = 60.0
    audit_bytes: int = 4096


class Agent(Strict, frozen=True):
    """[agents.NAME]: a model with a system text and tools. upstream: the one to use; default: all, in file order.
    mask: e-mail addresses and the like are placeholders in what goes to an upstream."""

    model: str
    system: str = ""
    tools: tuple[str, ...] = ()
    route: Preference = Preference.AUTO
    privacy: Privacy = Privacy.DEVICE
    min_confidence: float = 0.0
    when_offline: Offline = Offline.WAIT
    upstream: str = ""
    mask: bool = True
    max_steps: int = 6
    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    conversation_expiry_s: float = 86400.0


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
    databases: dict[str, Database] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    upstreams: dict[str, Upstream] = field(default_factory=dict)
    agents: dict[str, Agent] = field(default_factory=dict)
    tools: dict[str, Tool] = field(default_factory=dict)
    roles: dict[str, Role] = field(default_factory=dict)
    access: Access | None = None  # None: neither table is there, so everybody who gets in may do everything
    files: tuple[str, ...] = ()
    origin: Origin = field(default_factory=dict)
    group_given: bool = False

    def error(self, key: Key, problem: str) -> ConfigError:
        """An error at a key that only shows when what the configuration names is looked at."""
        return error_at(self.origin, self.files[0] if self.files else BUILT_IN, key, problem)

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
        return tuple(path for path in mine if path and not path.startswith("credential:"))

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
