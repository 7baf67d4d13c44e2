"""The configuration: TOML files into frozen structures, every value checked once and then trusted.

`load` reads the file and its drop-ins, merges them (tables merge, arrays replace), converts table by table so that an
error can name its key, and checks what spans tables. The only module that reads the environment.
"""

from __future__ import annotations

import grp
import math
import os
import re
import socket
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args
from urllib.parse import SplitResult, urlsplit

import msgspec
import psutil
from msgspec import Struct, field

from edged.config import roles
from edged.config.roles import Access, Role
from edged.errors import ConfigError
from edged.host import loopback
from edged.types import JSON, SERVER_ENGINE, KvType, Offline, Preference, Privacy

DEFAULT_FILE = Path("/etc/edged/edged.toml")
BUILT_IN = "the defaults"  # the source of a key no file names

# Keys of the contract whose part of edged does not exist yet: refused, so that nobody believes them to work.
NOT_YET: Mapping[tuple[str, ...], str] = {
    ("mqtt", "shared_group"): "fleets",
}

# Their defaults ask for nothing, so whoever writes them out is not refused.
ASKS_NOTHING: Mapping[tuple[str, ...], JSON] = {
    ("mqtt", "shared_group"): "",
}

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")  # one MQTT topic level, one SQL word, one grammar rule
BYTES = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(B|KiB|MiB|GiB|KB|MB|GB)?")
MOST_BYTES = 2**63 - 1  # of a size: what the kernel and SQLite count in
MAX_LEVELS = 32  # of tables in tables: more has no use here, and costs stack in whoever walks through them
BINARY = "payload"  # the one key whose text may hold NUL: a device may want it; names, paths and statements end there
UNITS = {None: 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
FUNCTION = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)  # a module and a function in it
HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")
ORIGIN = re.compile(r"https?://(?:[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::[1-9]\d{0,4})?")  # as browsers write it (RFC 6454)
PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
DEFAULT_MODEL = "catalog:qwen2.5-coder-0.5b-instruct-q4_k_m"
TOOL_MEMORY = (32 * 2**20, 2**40)  # bytes a Python tool may be given; the interpreter alone takes a third of the least
# Keys of a model behind a server on this board. Those that only such a one has, and those that it may have.
SERVER_KEYS = ("base_url", "model", "api_key_file", "timeout_s")
SERVED_MAY = {"engine", "context", "preload", *SERVER_KEYS}
RESERVED_TOOLS = {"reply", "escalate"}  # what the model may choose beside the tools; a tool of that name would hide it


class Strict(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all tables: an unknown key is an error."""


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
    engine: what runs it, a kind of engine or "openai"; None: what its file is for. `models.files` knows the kinds.
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
    engine: str | None = None
    base_url: str = ""
    model: str = ""
    api_key_file: str | None = None
    timeout_s: float = 300.0

    @property
    def is_served(self) -> bool:
        """Whether a server on this board runs it, and not edged."""
        return self.engine == SERVER_ENGINE

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


class Example(Strict, frozen=True):
    """A request and the arguments it means."""

    input: str
    arguments: dict[str, JSON] = field(default_factory=dict)


# Of a tool: names of result columns and of parameters whose values no upstream ever sees; true: none of it, and an
# upstream's model is not offered the tool.
Private = tuple[str, ...] | bool


class SqlTool(Strict, frozen=True):
    """A tool that is one SQL statement with bound parameters."""

    description: str
    database: str
    sql: str
    effect: str = "read"
    say: str | None = None
    parameters: dict[str, dict[str, JSON]] = field(default_factory=dict)
    examples: tuple[Example, ...] = ()
    timeout_s: float = 10.0
    private: Private = ()


class Publish(Strict, frozen=True):
    """What an MQTT tool publishes; {parameter} is replaced in topic and payload."""

    topic: str
    payload: str
    qos: int = 1
    retain: bool = False


class PublishTool(Strict, frozen=True):
    """A tool that publishes to another device."""

    description: str
    publish: Publish
    say: str | None = None
    parameters: dict[str, dict[str, JSON]] = field(default_factory=dict)
    examples: tuple[Example, ...] = ()
    timeout_s: float = 10.0
    on_uncertain: str = "retry"
    private: Private = ()


class PythonTool(Strict, frozen=True):
    """A tool that is a function, "module:function", of a module in the folder `tools/` beside the configuration.

    Only a child process may import it. So what is not written here is filled in at the start, from the function
    (tools/signatures): an empty description by its docstring, and below `parameters` what its signature says.
    memory bounds the private memory of the tool's process, file_size each file it writes.
    """

    python: str
    description: str = ""
    effect: str = "write"
    say: str | None = None
    parameters: dict[str, dict[str, JSON]] = field(default_factory=dict)
    examples: tuple[Example, ...] = ()
    timeout_s: float = 10.0
    memory: str = "128MiB"
    file_size: str = "256MiB"
    on_uncertain: str = "report"
    private: Private = ()


Tool = SqlTool | PublishTool | PythonTool
KINDS: Mapping[str, type[Tool]] = {"sql": SqlTool, "publish": PublishTool, "python": PythonTool}  # by their own key
Origin = dict[tuple[str, ...], str]  # the file that named a key last


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

    def error(self, key: tuple[str, ...], problem: str) -> ConfigError:
        """An error at a key that only shows when what the configuration names is looked at."""
        return _error(self.origin, self.files[0] if self.files else BUILT_IN, key, problem)

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
        return tuple(_listener(text, Path(self.node.runtime_dir)) for text in self.http.listen)

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


T = TypeVar("T", bound=Struct)


def find(path: str | None) -> Path:
    """The configuration file: as given, else $EDGED_CONFIG, else /etc/edged/edged.toml."""
    return Path(path or os.environ.get("EDGED_CONFIG") or DEFAULT_FILE).absolute()


def load(path: str | None = None) -> Config:
    """Read and check the configuration.

    Raises:
        ConfigError: the first thing that is wrong: file, key, what is allowed.
    """
    main = find(path)
    sources = [main, *sorted((main.parent / "conf.d").glob("*.toml"))]
    merged: dict[str, Any] = {}
    origin: Origin = {}
    for source in sources:
        _merge(merged, _read(source), origin, str(source), ())
    return _Build(merged, origin, str(main)).config(tuple(str(s) for s in sources))


def parse_bytes(text: str) -> int:
    """Bytes from "96MiB" and the like; ValueError names what is allowed."""
    match = BYTES.fullmatch(text.strip())
    size = float(match[1]) * UNITS[match[2]] if match else math.inf
    if size > MOST_BYTES:  # also what no float can hold
        raise ValueError(f'{text!r} is no size; write bytes as "96MiB", "1GiB" or a number')
    return int(size)


def secret(reference: str) -> str:
    """The text of a secret: a file's, or systemd's credential for `credential:NAME`, without the final newline.

    Raises:
        ConfigError: it cannot be read.
    """
    if reference.startswith("credential:"):
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if not folder:
            raise ConfigError(reference, "", "systemd passed no credentials; use LoadCredential= or name a file")
        path = Path(folder) / reference.removeprefix("credential:")
    else:
        path = Path(reference)
    try:
        return path.read_text().rstrip("\n")
    except OSError as error:
        raise ConfigError(str(path), "", f"the secret cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(str(path), "", "the secret is not UTF-8 text") from None
    except ValueError:  # a NUL
        raise ConfigError(repr(str(path)), "", "the secret cannot be read: that is no path") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(str(path), "", "no such file; name one with --config or $EDGED_CONFIG") from None
    except OSError as error:
        raise ConfigError(str(path), "", f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(str(path), "", "is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        raise ConfigError(str(path), "", f"not valid TOML: {error}", line=int(line[1]) if line else None) from None
    except ValueError:  # Python's own bound
        raise ConfigError(str(path), "", "not valid TOML: a number has too many digits") from None
    except RecursionError:
        raise ConfigError(str(path), "", f"is nested deeper than {MAX_LEVELS} levels") from None
    if found := _impossible(table):
        raise ConfigError(str(path), *found)
    return table


def _impossible(table: dict[str, Any]) -> tuple[str, str] | None:
    """(key, problem) of what no key can be: nested without end, or with a NUL in it. No recursion: see the former."""
    rest: list[tuple[tuple[str, ...], Any]] = [((), table)]
    while rest:
        at, value = rest.pop()
        if len(at) > MAX_LEVELS:
            return ".".join(at[:3]), f"is nested deeper than {MAX_LEVELS} levels"
        if isinstance(value, dict):
            rest += [((*at, key), below) for key, below in value.items()]
        elif isinstance(value, list):
            rest += [((*at, f"[{i}]"), below) for i, below in enumerate(value)]
        elif isinstance(value, str) and "\0" in value and BINARY not in at:
            return ".".join(at), "holds a NUL character"
        if at and "\0" in at[-1]:
            return ".".join(at).replace("\0", "\\u0000"), "holds a NUL character"
    return None


def _merge(
    into: dict[str, Any],
    new: dict[str, Any],
    origin: Origin,
    source: str,
    at: tuple[str, ...],
) -> None:
    for key, value in new.items():
        here = (*at, key)
        origin[here] = source
        if isinstance(value, dict):
            if not isinstance(into.get(key), dict):
                into[key] = {}
            _merge(into[key], value, origin, source, here)
        else:
            into[key] = value


class _Build:
    """One pass over the merged tables. Every method raises ConfigError at the key that is wrong."""

    def __init__(self, raw: dict[str, Any], origin: Origin, main: str) -> None:
        self.raw = raw
        self.origin = origin
        self.main = main

    def config(self, files: tuple[str, ...]) -> Config:
        self._refuse_not_yet(self.raw, ())
        self._known_tables()
        config = Config(
            node=self._node(),
            memory=self._one("memory", Memory),
            compute=self._one("compute", Compute),
            queue=self._one("queue", Queue),
            store=self._one("store", Store),
            snapshots=self._one("snapshots", Snapshots),
            audit=self._one("audit", AuditKept),
            ipc=self._one("ipc", Ipc),
            http=self._one("http", Http),
            mqtt=self._one("mqtt", Mqtt) if "mqtt" in self.raw else None,
            databases=self._many("databases", Database),
            models=self._models(),
            upstreams=self._many("upstreams", Upstream),
            agents=self._many("agents", Agent),
            tools=self._tools(),
            roles=self._many("roles", Role),
            access=self._one("access", Access) if {"roles", "access"} & set(self.raw) else None,
            files=files,
            origin=self.origin,
            group_given="group" in self.raw.get("ipc", {}),
        )
        self._check_scalars(config)
        self._check_http(config)
        self._check_mqtt(config)
        self._check_upstreams(config)
        self._check_models(config)
        self._check_agents(config)
        for name, tool in config.tools.items():
            self._check_tool(config, name, tool)
        self._check_access(config)
        return config

    def fail(self, key: tuple[str, ...], problem: str) -> ConfigError:
        """An error at a key."""
        return _error(self.origin, self.main, key, problem)

    def _refuse_not_yet(self, table: dict[str, Any], at: tuple[str, ...]) -> None:
        for key, value in list(table.items()):
            here = (*at, key)
            pattern = next((p for p in NOT_YET if _matches(p, here)), None)
            if pattern and pattern in ASKS_NOTHING and value == ASKS_NOTHING[pattern]:
                del table[key]
            elif pattern:
                raise self.fail(here, f"not available yet: {NOT_YET[pattern]} is not built; take the key out")
            elif isinstance(value, dict):
                self._refuse_not_yet(value, here)

    def _known_tables(self) -> None:
        known = {f.name for f in msgspec.structs.fields(Config)} - {"files", "origin", "group_given"}
        for key, value in self.raw.items():
            if key not in known:
                raise self.fail((key,), f"unknown table; allowed are {', '.join(sorted(known))}")
            if not isinstance(value, dict):
                raise self.fail((key,), f"is a table: write [{key}]")

    def _one(self, name: str, kind: type[T]) -> T:
        return self._convert(self.raw.get(name, {}), kind, (name,))

    def _many(self, name: str, kind: type[T]) -> dict[str, T]:
        return {key: self._convert(value, kind, (name, key)) for key, value in self._entries(name)}

    def _entries(self, name: str) -> list[tuple[str, Any]]:
        entries = list(self.raw.get(name, {}).items())
        for key, value in entries:
            if not NAME.fullmatch(key):
                raise self.fail((name, key), "a name has 1 to 64 letters, digits, `_`, `-` or `.`, no dash in front")
            if not isinstance(value, dict):
                raise self.fail((name, key), f"is a table: write [{name}.{key}]")
        return entries

    def _convert(self, value: Any, kind: type[T], at: tuple[str, ...]) -> T:
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            text, _, path = str(error).partition(" - at ")
            below = tuple(re.findall(r"\w+|\[\.\.\.\]|\[\d+\]", path.strip("`").removeprefix("$")))
            if unknown := re.search(r"unknown field `(\w+)`", text):
                below, text = (*below, unknown[1]), "unknown key"
                if len(below) == 1:
                    text += f"; allowed are {', '.join(f.name for f in msgspec.structs.fields(kind))}"
            elif missing := re.search(r"missing required field `(\w+)`", text):
                below, text = (*below, missing[1]), "is required"
            elif "enum value" in text and len(below) == 1:
                text += f"; allowed are {', '.join(_enum_values(kind, below[0]))}"
            raise self.fail((*at, *below), text[:1].lower() + text[1:]) from None

    def _node(self) -> Node:
        node = self._one("node", Node)
        ident = node.id or socket.gethostname()
        if not NAME.fullmatch(ident):
            raise self.fail(("node", "id"), f"{ident!r} is not one MQTT topic level of letters, digits, `_`, `-`, `.`")
        state = node.state_dir or os.environ.get("STATE_DIRECTORY", "").split(":")[0] or "/var/lib/edged"
        runtime = node.runtime_dir or os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0] or "/run/edged"
        models = node.models_dir or f"{state}/models"
        paths = {"state_dir": state, "runtime_dir": runtime, "models_dir": models}
        for key, path in paths.items():
            if not Path(path).is_absolute():
                raise self.fail(("node", key), f"{path!r} is not an absolute path")
        return Node(id=ident, **paths)

    def _models(self) -> dict[str, Model]:
        """Where variants are listed, the first of them is the source."""
        models = self._many("models", Model)
        for name, model in models.items():
            table = self.raw["models"][name]
            if "variants" not in table:
                continue
            at = ("models", name, "variants")
            if not model.variants:
                raise self.fail(at, "is empty: list the sources, best first, or write `source` instead")
            if len(set(model.variants)) != len(model.variants):
                raise self.fail(at, "names a source twice")
            if "source" in table and model.source != model.variants[0]:
                problem = f"is not the first of `variants`, {model.variants[0]!r}: leave it out, or write that"
                raise self.fail(("models", name, "source"), problem)
            models[name] = msgspec.structs.replace(model, source=model.variants[0])
        return models

    def _tools(self) -> dict[str, Tool]:
        tools: dict[str, Tool] = {}
        for name, value in self._entries("tools"):
            kinds = [kind for key, kind in KINDS.items() if key in value]
            if len(kinds) != 1:
                raise self.fail(("tools", name), "a tool has exactly one of `sql`, `publish` and `python`")
            tools[name] = self._convert(value, kinds[0], ("tools", name))
            for key in ("parameters", "examples"):
                if problem := no_json(value.get(key)):
                    raise self.fail(("tools", name, key), problem)
            for parameter, schema in tools[name].parameters.items():
                if not isinstance(schema.get("enum", [None]), list) or not schema.get("enum", [None]):
                    raise self.fail(("tools", name, "parameters", parameter, "enum"), "is a list of at least one value")
        return tools

    def _check_scalars(self, config: Config) -> None:
        self._bytes(("memory", "reserve"), config.memory.reserve)
        self._bytes(("store", "max_bytes"), config.store.max_bytes)
        self._bytes(("snapshots", "max_bytes"), str(config.snapshots.max_bytes))
        if percent := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", config.memory.budget.strip()):
            self._range(("memory", "budget"), float(percent[1]), 1, 100)
        else:
            self._bytes(("memory", "budget"), config.memory.budget)
        self._range(("memory", "idle_unload_s"), config.memory.idle_unload_s, 0, 30 * 86400)
        threads, usable = config.compute.threads, psutil.cpu_count() or 1
        if threads != "auto" and not (isinstance(threads, int) and 1 <= threads <= usable):
            raise self.fail(("compute", "threads"), f'{threads!r}: "auto", or 1 to {usable} on this board')
        self._range(("queue", "max_waiting"), config.queue.max_waiting, 1, 100_000)
        self._range(("queue", "max_attempts"), config.queue.max_attempts, 1, 100)
        self._range(("store", "retention_days"), config.store.retention_days, 0.01, 3650)
        self._range(("audit", "keep_days"), config.audit.keep_days, 1, 3650)
        if not re.fullmatch(r"0?[0-7]{3}", config.ipc.mode):
            raise self.fail(("ipc", "mode"), f'{config.ipc.mode!r} is no file mode; write one as "0660"')
        if config.group_given and config.ipc.group:
            try:
                grp.getgrnam(config.ipc.group)
            except KeyError:
                raise self.fail(("ipc", "group"), f"there is no group {config.ipc.group!r} on this board") from None
        for name, database in config.databases.items():
            if database.mode not in ("ro", "rw"):
                raise self.fail(("databases", name, "mode"), f"{database.mode!r}; allowed are ro, rw")
            if not Path(database.path).is_absolute():
                raise self.fail(("databases", name, "path"), f"{database.path!r} is not an absolute path")

    def _check_http(self, config: Config) -> None:
        for text in config.http.listen:
            try:
                listener = _listener(text, Path(config.node.runtime_dir))
            except ValueError:
                raise self.fail(("http", "listen"), f'{text!r}; write "unix:http.sock" or "127.0.0.1:8377"') from None
            if isinstance(listener, tuple) and not config.http.api_keys_file:
                raise self.fail(("http", "listen"), f"{text!r} is open to the network: name http.api_keys_file")
        if len(set(config.http.listen)) != len(config.http.listen):
            raise self.fail(("http", "listen"), "names a listener twice")

        for host in config.http.hosts:
            if not HOST.fullmatch(host):
                raise self.fail(("http", "hosts"), f'{host!r}; write a name as "board.example.org", without a port')
        for origin in config.http.origins:
            if not ORIGIN.fullmatch(origin):
                problem = (
                    f'{origin!r}; write "https://HOST" or "http://HOST:PORT", in lower case and with nothing behind'
                )
                raise self.fail(("http", "origins"), problem)

    def _check_access(self, config: Config) -> None:
        if config.access is None:
            return
        for key, problem in roles.mistakes(
            config.roles,
            config.access,
            agents=config.agents,
            tools=config.tools,
            models=config.models,
            has_keys=config.http.api_keys_file is not None,
        ):
            raise self.fail(key, problem)

    def _check_upstreams(self, config: Config) -> None:
        for name, upstream in config.upstreams.items():
            at = ("upstreams", name)
            try:
                url = urlsplit(upstream.base_url)
            except ValueError:
                url = urlsplit("")
            if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment:
                raise self.fail((*at, "base_url"), f"{upstream.base_url!r}; write https://HOST[:PORT]/v1")
            if url.username or url.password:
                raise self.fail((*at, "base_url"), f"holds a secret; use upstreams.{name}.api_key_file")
            if not _has_port(url):
                raise self.fail((*at, "base_url"), f"{upstream.base_url!r} has no valid port")
            if not upstream.model:
                raise self.fail((*at, "model"), "is empty; write the name the server knows the model by")
            if upstream.daily_token_budget is not None:
                self._range((*at, "daily_token_budget"), upstream.daily_token_budget, 1, 10**12)
            self._range((*at, "timeout_s"), upstream.timeout_s, 0.1, 3600)
            self._range((*at, "connect_timeout_s"), upstream.connect_timeout_s, 0.1, 3600)
            self._range((*at, "first_byte_timeout_s"), upstream.first_byte_timeout_s, 0.1, 3600)
            self._range((*at, "audit_bytes"), upstream.audit_bytes, 0, 2**20)

    def _check_mqtt(self, config: Config) -> None:
        mqtt = config.mqtt
        if mqtt is None:
            return
        try:
            url = urlsplit(mqtt.url)
        except ValueError:  # an IPv6 address without its closing bracket
            url = urlsplit("")
        beyond = url.path not in ("", "/") or url.query or url.fragment
        if url.scheme not in ("mqtt", "mqtts") or not url.hostname or beyond or not _has_port(url):
            raise self.fail(("mqtt", "url"), f"{mqtt.url!r}; write mqtt://HOST[:PORT], or mqtts:// for TLS")
        if url.username or url.password:
            raise self.fail(("mqtt", "url"), "holds no user; use mqtt.username and mqtt.password_file")
        if mqtt.version not in (4, 5):
            raise self.fail(("mqtt", "version"), f"{mqtt.version}; allowed are 5 and 4 (which is MQTT 3.1.1)")
        if mqtt.password_file and not mqtt.username:
            raise self.fail(("mqtt", "password_file"), "needs mqtt.username")
        if bool(mqtt.cert_file) != bool(mqtt.key_file):
            raise self.fail(("mqtt", "cert_file"), "cert_file and key_file go together")
        for key in ("ca_file", "cert_file", "key_file"):
            if getattr(mqtt, key) and url.scheme != "mqtts":
                raise self.fail(("mqtt", key), "is for TLS: write mqtts:// in mqtt.url")
            if getattr(mqtt, key) and not os.access(getattr(mqtt, key), os.R_OK):
                raise self.fail(("mqtt", key), f"{getattr(mqtt, key)!r} cannot be read")
        self._range(("mqtt", "default_expiry_s"), mqtt.default_expiry_s, 1, 7 * 86400)

    def _check_models(self, config: Config) -> None:
        for name, model in config.models.items():
            self._range(("models", name, "context"), model.context, 256, 2**20)
            if model.is_served:
                self._check_served(("models", name), model, set(self.raw["models"][name]))
                continue
            for key in SERVER_KEYS:
                if key in self.raw["models"][name]:
                    raise self.fail(("models", name, key), 'is for a model in a server: write engine = "openai" too')
            if model.min_context is not None:
                self._range(("models", name, "min_context"), model.min_context, 256, model.context)
            key = "variants" if model.variants else "source"
            for source in model.sources:
                if not re.match(r"(catalog|file|https|hf|scripted):", source):
                    raise self.fail(
                        ("models", name, key), f"{source!r}; write catalog:NAME, file:PATH, https:URL or hf:..."
                    )

    def _check_served(self, at: tuple[str, ...], model: Model, given: set[str]) -> None:
        for key in sorted(given - SERVED_MAY):
            allowed = ", ".join(sorted(SERVED_MAY))
            raise self.fail(
                (*at, key), f'means nothing with engine = "openai": a server runs it; allowed are {allowed}'
            )
        for key, what in (("base_url", "http://127.0.0.1:PORT/v1"), ("model", "the name the server knows it by")):
            if not getattr(model, key):
                raise self.fail((*at, key), f'is required with engine = "openai": write {what}')
        try:
            loopback.parse(model.base_url)
        except ValueError as error:
            raise self.fail((*at, "base_url"), str(error)) from None
        self._range((*at, "timeout_s"), model.timeout_s, 0.1, 3600)

    def _check_agents(self, config: Config) -> None:
        for name, agent in config.agents.items():
            at = ("agents", name)
            if name in config.models:
                raise self.fail(at, "a model has this name too; agents and models share one namespace")
            if agent.model not in config.models:
                known = ", ".join(config.models) or "none: write a [models.NAME] table"
                raise self.fail((*at, "model"), f"no model {agent.model!r}; defined are {known}")
            for tool in agent.tools:
                if tool not in config.tools:
                    known = ", ".join(config.tools) or "none"
                    raise self.fail((*at, "tools"), f"no tool {tool!r}; defined are {known}")
            if agent.upstream and agent.upstream not in config.upstreams:
                known = ", ".join(config.upstreams) or "none: write an [upstreams.NAME] table"
                raise self.fail((*at, "upstream"), f"no upstream {agent.upstream!r}; defined are {known}")
            if agent.route is Preference.CLOUD and agent.privacy is Privacy.DEVICE:
                raise self.fail((*at, "route"), 'nothing of this agent may leave the board: write privacy = "any" too')
            if agent.route is Preference.CLOUD and not config.upstreams:
                raise self.fail((*at, "route"), "there is no cloud: write an [upstreams.NAME] table")
            self._range((*at, "min_confidence"), agent.min_confidence, 0, 1)
            if agent.min_confidence > 0 and config.models[agent.model].is_served:
                problem = f"model {agent.model!r} runs in a server, which does not tell how sure of a call it is"
                raise self.fail((*at, "min_confidence"), f"{problem}; leave it out, or name another model")
            self._range((*at, "max_steps"), agent.max_steps, 1, 100)
            self._range((*at, "max_tokens"), agent.max_tokens, 1, config.models[agent.model].context - 1)
            self._range((*at, "temperature"), agent.temperature, 0, 2)
            self._range((*at, "top_p"), agent.top_p, 0, 1)
            self._range((*at, "conversation_expiry_s"), agent.conversation_expiry_s, 1, 3650 * 86400)
            if agent.seed is not None:
                self._range((*at, "seed"), agent.seed, 0, 2**32 - 1)

    def _check_tool(self, config: Config, name: str, tool: Tool) -> None:
        at = ("tools", name)
        if name in RESERVED_TOOLS:
            raise self.fail(at, f"{name!r} is a choice edged itself offers the model; choose another name")
        self._range((*at, "timeout_s"), tool.timeout_s, 0.01, 3600)
        self._check_private(at, tool)
        if isinstance(tool, PythonTool):  # its description and parameters are known, and checked, when it was read
            self._check_python_tool(at, tool)
            return
        for key, problem in words_that_fail(tool):
            raise self.fail((*at, *key), problem)
        if isinstance(tool, SqlTool):
            self._check_sql_tool(config, at, tool)
        else:
            self._check_publish_tool(at, tool)

    def _check_private(self, at: tuple[str, ...], tool: Tool) -> None:
        """What can be known without a look at the database or the function."""
        if isinstance(tool.private, bool):
            return
        for name in tool.private:
            if not name.strip() or "" in name.split("."):
                raise self.fail((*at, "private"), f"{name!r} is no name; write a column's, or a parameter's")
            if isinstance(tool, PublishTool) and name not in tool.parameters:
                declared = ", ".join(tool.parameters) or "none"
                raise self.fail((*at, "private"), f"{name!r} is no parameter; declared are {declared}")

    def _check_sql_tool(self, config: Config, at: tuple[str, ...], tool: SqlTool) -> None:
        if tool.database not in config.databases:
            known = ", ".join(config.databases) or "none: write a [databases.NAME] table"
            raise self.fail((*at, "database"), f"no database {tool.database!r}; defined are {known}")
        self._one_of((*at, "effect"), tool.effect, "read", "write")
        if tool.effect == "write" and config.databases[tool.database].mode == "ro":
            raise self.fail((*at, "effect"), f'database {tool.database!r} is opened read-only; set its mode to "rw"')

    def _check_publish_tool(self, at: tuple[str, ...], tool: PublishTool) -> None:
        self._placeholders((*at, "publish", "topic"), tool.publish.topic, tool)
        self._placeholders((*at, "publish", "payload"), tool.publish.payload, tool, only_declared=True)
        if not tool.publish.topic or "+" in tool.publish.topic or "#" in tool.publish.topic:
            raise self.fail((*at, "publish", "topic"), "a topic to publish to has no wildcards and is not empty")
        if tool.publish.qos not in (0, 1, 2):
            raise self.fail((*at, "publish", "qos"), f"{tool.publish.qos}; allowed are 0, 1, 2")
        self._one_of((*at, "on_uncertain"), tool.on_uncertain, "retry", "report")
        if "mqtt" not in self.raw:
            raise self.fail((*at, "publish"), "needs a broker: write an [mqtt] table")

    def _check_python_tool(self, at: tuple[str, ...], tool: PythonTool) -> None:
        if not FUNCTION.fullmatch(tool.python):
            raise self.fail((*at, "python"), f'{tool.python!r}; write "module:function", a module of the folder tools/')
        self._one_of((*at, "effect"), tool.effect, "read", "write")
        self._one_of((*at, "on_uncertain"), tool.on_uncertain, "retry", "report")
        self._bytes((*at, "memory"), tool.memory)
        least, most = TOOL_MEMORY
        if not least <= parse_bytes(tool.memory) <= most:
            raise self.fail((*at, "memory"), f"{tool.memory!r} is outside 32MiB to 1024GiB")
        self._bytes((*at, "file_size"), tool.file_size)

    def _one_of(self, at: tuple[str, ...], value: str, *allowed: str) -> None:
        if value not in allowed:
            raise self.fail(at, f"{value!r}; allowed are {', '.join(allowed)}")

    def _placeholders(self, at: tuple[str, ...], text: str, tool: Tool, *, only_declared: bool = False) -> None:
        """In a topic an unknown {name} is a mistake; in a payload other braces stay as they are."""
        for found in PLACEHOLDER.findall(text):
            if found not in tool.parameters and not only_declared:
                raise self.fail(at, f"{{{found}}} is no parameter; declared are {', '.join(tool.parameters) or 'none'}")

    def _bytes(self, at: tuple[str, ...], text: str) -> None:
        try:
            parse_bytes(text)
        except ValueError as error:
            raise self.fail(at, str(error)) from None

    def _range(self, at: tuple[str, ...], value: float, low: float, high: float) -> None:
        if not low <= value <= high:
            raise self.fail(at, f"{value} is outside {low} to {high}")


def _listener(text: str, runtime_dir: Path) -> Path | tuple[str, int]:
    """A socket's path, or (host, port); ValueError."""
    if text.startswith("unix:"):
        if not text.removeprefix("unix:").strip("/"):
            raise ValueError(text)
        return runtime_dir / text.removeprefix("unix:")
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ValueError(text)
    return host.removeprefix("[").removesuffix("]"), int(port)


def words_that_fail(tool: Tool) -> Iterator[tuple[tuple[str, ...], str]]:
    """(key below the tool, what is wrong) of what a tool says about itself: description, names of its parameters, and
    what refers to them."""
    if not tool.description.strip():
        yield ("description",), "is empty; the model chooses by it"
    for parameter in tool.parameters:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", parameter):
            yield ("parameters", parameter), "a parameter's name has letters, digits and `_` only"
    declared = ", ".join(tool.parameters) or "none"
    for found in PLACEHOLDER.findall(tool.say or ""):
        if found not in tool.parameters:
            yield ("say",), f"{{{found}}} is no parameter; declared are {declared}"
    for i, example in enumerate(tool.examples):
        for argument in example.arguments:
            if argument not in tool.parameters:
                yield (f"examples[{i}]",), f"{argument!r} is no parameter of the tool"


def no_json(value: Any) -> str | None:
    """Why a value of TOML is none of JSON's, which models and tools are given; None where it is one."""
    rest = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, dict | list):
            rest += item.values() if isinstance(item, dict) else item
        elif isinstance(item, float) and not math.isfinite(item):
            return f"{item} is no number of JSON"
        elif isinstance(item, int) and not -(2**63) <= item < 2**64:
            return "a number has more than 64 bits"
        elif not isinstance(item, str | int | float | None):
            return f"{item} is no value of JSON: write dates and times as text"
    return None


def _error(origin: Origin, main: str, key: tuple[str, ...], problem: str) -> ConfigError:
    """An error at a key; the source is the last file that named it or a table around it."""
    source = next((origin[key[:n]] for n in range(len(key), 0, -1) if key[:n] in origin), main)
    return ConfigError(source, ".".join(key), problem)


def _matches(pattern: tuple[str, ...], key: tuple[str, ...]) -> bool:
    return len(pattern) == len(key) and all(p in ("*", k) for p, k in zip(pattern, key, strict=True))


def _has_port(url: SplitResult) -> bool:
    """Whether the port is a number a port may be, or not given."""
    try:
        return url.port is None or url.port > 0
    except ValueError:
        return False


def _enum_values(kind: type[Struct], name: str) -> list[str]:
    annotation = {f.name: f.type for f in msgspec.structs.fields(kind)}[name]
    [enum] = [one for one in get_args(annotation) or (annotation,) if one is not NoneType]
    return [str(member.value) for member in enum]
