"""The tables of the configuration, one structure each: keys, types, ranges, defaults.

A docstring says what the table is for, and then of each key, after its name, what it means. The JSON Schema and the
page of the documentation are made from all this (`schema`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from edged.config.values import (
    BUDGET,
    NAME,
    AbsolutePath,
    SecretFile,
    Size,
    Strict,
    Url,
    budget_problem,
    size_problem,
    whole,
)
from edged.types import SERVER_ENGINE, KvType, Offline, Preference, Privacy, Reuse

DAY = 86_400  # seconds
DEFAULT_MODEL = "catalog:qwen2.5-coder-0.5b-instruct-q4_k_m"
# A name in a URL's host, without a port.
HOST = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?"
ORIGIN = r"https?://(?:[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::[1-9][0-9]{0,4})?"  # as browsers write it (RFC 6454)

Host = Annotated[
    str,
    Meta(
        title="host name",
        pattern=whole(HOST),
        extra={"problem": '{}; write a name as "board.example.org", without a port'},
    ),
]
WebOrigin = Annotated[
    str,
    Meta(
        title="web origin",
        pattern=whole(ORIGIN),
        extra={"problem": '{}; write "https://HOST" or "http://HOST:PORT", in lower case and with nothing after it'},
    ),
]
Source = Annotated[
    str,
    Meta(
        title="source",
        # An engine may have sources of a scheme of its own; who reads the files knows them all (`models.catalog`).
        pattern="^(?:https:|file:|[a-z][a-z0-9_.+-]*:(?!//))",
        extra={"problem": "{}; write catalog:NAME, file:PATH, https:URL or hf:..."},
    ),
]
AnswerTime = Annotated[float, Meta(ge=0.1, le=3600)]  # seconds a server may take


class Node(Strict, frozen=True):
    """Who this daemon is, and where its files are.

    id: name of the node, one level of its MQTT topics. Default: the host's name.
    state_dir: folder of the store and of everything else that is kept. Default: systemd's `$STATE_DIRECTORY`, or else
        `/var/lib/edged`.
    runtime_dir: folder of the sockets. Default: systemd's `$RUNTIME_DIRECTORY`, or else `/run/edged`.
    models_dir: folder of the model files. Default: `models` in the state folder.
    timezone: IANA name of the zone that agents count times in, as "Europe/Berlin". Default: the board's own.
    """

    id: Annotated[
        str,
        Meta(
            pattern=whole(f"(?:{NAME.pattern})?"),
            extra={"problem": "{} is not one MQTT topic level of letters, digits, `_`, `-`, `.`"},
        ),
    ] = ""
    state_dir: AbsolutePath = ""
    runtime_dir: AbsolutePath = ""
    models_dir: AbsolutePath = ""
    timezone: str = ""


class Memory(Strict, frozen=True):
    """How much memory models may use.

    budget: memory of all models together: a percentage of the board's memory (or of the cgroup's limit, if that is
        less), or a size.
    reserve: memory that stays available to the rest of the board.
    idle_unload_s: a model that nobody has used for this many seconds is unloaded.
    """

    budget: Annotated[str, Meta(title="percentage or size", pattern=BUDGET, extra={"problem": budget_problem})] = "60%"
    reserve: Size = "96MiB"
    idle_unload_s: Annotated[float, Meta(ge=0, le=30 * DAY)] = 300.0


class Compute(Strict, frozen=True):
    """What models compute with.

    threads: number of threads, at most the CPUs of the board; "auto" finds what is fastest.
    """

    threads: Annotated[
        Annotated[int, Meta(ge=1)] | Literal["auto"],
        Meta(extra={"problem": '{}: "auto", or 1 to the number of CPUs, is allowed'}),
    ] = "auto"


class Queue(Strict, frozen=True):
    """Requests that wait.

    max_waiting: requests that may wait; one more is refused with the code `busy`.
    max_attempts: a request that was being worked on when the daemon died this many times is quarantined.
    """

    max_waiting: Annotated[int, Meta(ge=1, le=100_000)] = 256
    max_attempts: Annotated[int, Meta(ge=1, le=100)] = 3


class Store(Strict, frozen=True):
    """Bounds of edged's own database.

    max_bytes: largest size of the database. Before it is reached the oldest ended requests are forgotten; if that does
        not help, new ones are refused with the code `busy`.
    retention_days: how long ended requests and their replies are kept.
    """

    max_bytes: Size = "256MiB"
    retention_days: Annotated[float, Meta(ge=0.01, le=3650)] = 7.0


class AuditKept(Strict, frozen=True):
    """The audit log.

    keep_days: how long its entries are kept.
    """

    keep_days: Annotated[float, Meta(ge=1, le=3650)] = 30.0


class Snapshots(Strict, frozen=True):
    """Computed beginnings of prompts that are kept on the disk.

    max_bytes: largest size of all of them together; 0 keeps none.
    """

    # 256 MiB: a prefix of 1,000 tokens takes 12 MB with a 0.5B model and 28 MB with a 1.5B one, and an agent has two or
    # three. So it is enough for a handful of agents, and as much of an 8 GB card as the store may take.
    max_bytes: Annotated[Size | Annotated[int, Meta(ge=0)], Meta(extra={"problem": size_problem})] = "256MiB"


class Ipc(Strict, frozen=True):
    """The Unix sockets. With socket activation the unit's mode and group count, and a differing value is an error.

    mode: mode of the sockets, in octal.
    group: group of the sockets. A group that the file names must exist.
    """

    mode: Annotated[
        str, Meta(pattern=whole("0?[0-7]{3}"), extra={"problem": '{} is no file mode; write one as "0660"'})
    ] = "0660"
    group: str = "edged"


class Http(Strict, frozen=True):
    """The HTTP interface.

    listen: what it listens on: "unix:NAME" (a socket in the runtime folder, or an absolute path) or "HOST:PORT". A TCP
        listener needs `api_keys_file`.
    api_keys_file: file or `credential:NAME` with lines "NAME:KEY"; NAME is what the client is called.
    hosts: names by which clients reach a TCP listener, in addition to addresses, `localhost` and the board's own name.
    origins: web pages whose scripts may send requests, as "https://HOST[:PORT]". Without any, no web page may.
    strict: whether a chat completion with a parameter that OpenAI does not document, or that has no effect here, is
        refused. By default such a parameter is ignored, and the response names it in the header `Edged-Ignored`.
    ollama: "HOST:PORT" on loopback, for programs that expect Ollama, which listens on "127.0.0.1:11434". It wants no
        key: anyone on this board may use agents and models by it, with the role that `[access] ollama` names where
        there are roles. Without it the Ollama API is on the other listeners only.
    ollama_origins: whether the web pages and apps that Ollama serves without configuration may send requests, too:
        those of `localhost`, `127.0.0.1` and `0.0.0.0`, `app://`, `file://`, `tauri://`, `vscode-webview://`,
        `vscode-file://` and browser extensions. Names that end in `.local` or `.internal` are this board's then.
    foundry: "HOST:PORT" on loopback, for programs that use Foundry Local's SDK. It wants no key, as `ollama` does, with
        the role that `[access] foundry` names. `edged foundry` makes the program by which the SDK finds it.
    """

    listen: tuple[str, ...] = ("unix:http.sock",)
    api_keys_file: SecretFile | None = None
    hosts: tuple[Host, ...] = ()
    origins: tuple[WebOrigin, ...] = ()
    strict: bool = False
    ollama: Annotated[
        str, Meta(pattern=whole(r"(?:.+:[0-9]{1,5})?"), extra={"problem": '{}; write "127.0.0.1:11434"'})
    ] = ""
    ollama_origins: bool = False
    foundry: Annotated[
        str, Meta(pattern=whole(r"(?:.+:[0-9]{1,5})?"), extra={"problem": '{}; write "127.0.0.1:5273"'})
    ] = ""


class Mqtt(Strict, frozen=True):
    """The MQTT broker. Without this table edged does not use MQTT.

    url: `mqtt://HOST[:PORT]`, or `mqtts://` for TLS.
    version: 5, or 4 for MQTT 3.1.1. If the broker refuses 5, 3.1.1 is used.
    username: user at the broker.
    password_file: file or `credential:NAME` with the user's password.
    ca_file: certificates that the broker's certificate is checked against. Default: the system's.
    cert_file: this client's certificate; `key_file` goes with it.
    key_file: private key of `cert_file`.
    default_expiry_s: time a request may take if its message has no expiry, in seconds.
    shared_group: not available yet: fleets.
    """

    url: Url = "mqtt://127.0.0.1:1883"
    version: Annotated[Literal[5, 4], Meta(extra={"problem": "{}; allowed are 5 and 4 (which is MQTT 3.1.1)"})] = 5
    username: str | None = None
    password_file: SecretFile | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    default_expiry_s: Annotated[float, Meta(ge=1, le=7 * DAY)] = 120.0
    shared_group: Annotated[
        Literal[""], Meta(extra={"problem": "{} is not available yet: fleets are not built; take the key out"})
    ] = ""


class HomeAssistant(Strict, frozen=True):
    """Home Assistant, by MQTT discovery: the board is a device there, with its agents. Needs `[mqtt]`.

    discovery: whether the device is described at all.
    prefix: beginning of the topics that Home Assistant listens to.
    answers: agents whose answers are published, as a sensor and as events: those to requests that came over MQTT, and
        no others. They stay with the broker until the next one.
    control: whether there are buttons that reload the configuration and unload models. The topics below
        `edged/NODE/control` then need a role with `manage` in `[access] mqtt`.
    """

    discovery: bool = False
    prefix: Annotated[
        str,
        Meta(
            pattern=whole(r"[^#+/\s\0]+(?:/[^#+/\s\0]+)*"), extra={"problem": '{}; write a topic, as "homeassistant"'}
        ),
    ] = "homeassistant"
    answers: tuple[str, ...] = ()
    control: bool = False


class Wyoming(Strict, frozen=True):
    """Wyoming, by which Home Assistant's Assist and other voice assistants ask an agent. Without this table edged does
    not listen.

    listen: "HOST:PORT" on loopback. Wyoming knows no keys: anyone on this board may ask by it, with the role that
        `[access] wyoming` names where there are roles.
    agent: who answers. Needed where there are several.
    when_gone: what becomes of a sentence when its client leaves before the answer: "cancel" ends it, "finish" goes on.
    """

    listen: Annotated[str, Meta(pattern=whole(".+:[0-9]{1,5}"), extra={"problem": '{}; write "127.0.0.1:10600"'})] = (
        "127.0.0.1:10600"
    )
    agent: str = ""
    when_gone: Literal["cancel", "finish"] = "cancel"


class Database(Strict, frozen=True):
    """An SQLite database that tools use.

    path: absolute path of the file.
    mode: "ro" opens it read-only, whatever a tool's SQL says; "rw" lets tools write.
    """

    path: Annotated[str, Meta(title="path", pattern="^/", extra={"problem": "{} is not an absolute path"})]
    mode: Literal["ro", "rw"] = "ro"


class Model(Strict, frozen=True):
    """A model. edged runs it from a file, or a server on this board does (engine "openai").

    source: where the file comes from: `catalog:NAME`, `file:PATH`, `https:URL` or `hf:...`.
    context: tokens that one request may use, prompt and answer together.
    min_context: tokens that are enough if memory has no room for `context`. Default: it is never shortened.
    variants: sources of the same model in other sizes or quantizations, best first; the best one that memory has room
        for is loaded. `source` is then left out, or is the first of them.
    kv_type: type of the cached keys and values. q8_0 takes little more than half of f16's memory, for a little less
        quality and speed.
    adapter: what teaches the model edged's own way of calling tools: "auto" takes the one that belongs to the file, if
        there is one; "none" takes none; or `file:PATH`.
    reuse: "exact": of a client's long system text a line that changes from request to request is shown with the
        question instead, so that the rest need not be computed again; "none": every text is shown as it came.
    pin: whether the model is never unloaded.
    preload: whether it is loaded at the start, with the prefixes of its agents, so that the first request is as quick
        as the second. Afterwards it is unloaded when it is idle, like any other. A server is asked for one token.
    engine: what runs it: `llama.cpp`, `onnx`, or a server on this board (`openai`). Default: what the file is for.
    base_url: address of the server on this board, up to and without `/chat/completions`; only with engine "openai".
    model: the server's name of the model; only with engine "openai".
    api_key_file: file or `credential:NAME` with the server's key; only with engine "openai".
    timeout_s: seconds a whole answer of the server may take, including the time it needs to load the model; only with
        engine "openai".
    """

    source: Source = DEFAULT_MODEL
    context: Annotated[int, Meta(ge=256, le=2**20)] = 4096
    min_context: Annotated[int, Meta(ge=256, le=2**20)] | None = None
    variants: Annotated[
        tuple[Source, ...],
        Meta(
            min_length=1,
            extra={"problem": "is empty: list the sources, best first, or write `source` instead"},
        ),
    ] = ()
    kv_type: KvType = KvType.F16
    adapter: Annotated[
        str, Meta(pattern="^(auto|none|file:.+)$", extra={"problem": '{} is not "auto", "none" or "file:PATH"'})
    ] = "auto"
    reuse: Reuse = Reuse.EXACT
    pin: bool = False
    preload: bool = False
    engine: str | None = None
    base_url: Url = ""
    model: str = ""
    api_key_file: SecretFile | None = None
    timeout_s: AnswerTime = 300.0

    @property
    def is_served(self) -> bool:
        """Whether a server on this board runs it, and not edged."""
        return self.engine == SERVER_ENGINE

    @property
    def sources(self) -> tuple[str, ...]:
        """All variants, best first."""
        return self.variants or (self.source,)


class Upstream(Strict, frozen=True):
    """A server of the OpenAI API that answers what the board cannot.

    base_url: address of the API, up to and without `/chat/completions`.
    model: the server's name of the model.
    api_key_file: file or `credential:NAME` with the key.
    daily_token_budget: tokens of prompts and answers that may be used in a day (UTC). Default: no bound.
    timeout_s: seconds a whole answer may take.
    connect_timeout_s: seconds a connection may take, with the look-up of the name.
    first_byte_timeout_s: seconds until an answer begins, and between any two parts of it. An answer that is not
        streamed begins when it is complete.
    audit_bytes: how much of each question that leaves the board is in the audit log, as it left. Of the rest the log
        has size and digest.
    """

    base_url: Url
    model: Annotated[
        str, Meta(min_length=1, extra={"problem": "is empty; write the name the server knows the model by"})
    ]
    api_key_file: SecretFile | None = None
    daily_token_budget: Annotated[int, Meta(ge=1, le=10**12)] | None = None
    timeout_s: AnswerTime = 60.0
    connect_timeout_s: AnswerTime = 5.0
    first_byte_timeout_s: AnswerTime = 60.0
    audit_bytes: Annotated[int, Meta(ge=0, le=2**20)] = 4096  # a question and some results; a request may write 16 KiB


class Agent(Strict, frozen=True):
    """A model with a system text and tools.

    model: name of a [models.NAME] table.
    system: system text: what the agent is and how it behaves.
    tools: names of the tools that it may call.
    language: language of what edged says itself, for example that nothing was found. "auto" is the one that the request
        names, else that of its question, else that of the system text, else English.
    unable: the answer where no tool of the agent can tell or do what was asked. Default: a sentence in the agent's
        language that names it.
    clock: whether the model is told what time it is. Default: where a tool of the agent has a parameter that is a time,
        a date or a duration.
    route: where requests are answered: "local" on the board, "cloud" by an upstream, "auto" as it turns out.
    privacy: "device": nothing of this agent's requests ever leaves the board; "any": it may.
    min_confidence: a call that the model is less sure of is not made: it is handed to an upstream, or edged asks back.
        "auto" is the line that came with the model's adapter, and counts for tools that write; 0 holds no call back. A
        number counts for all tools: in probabilities, or in scores for a model that has no calibration.
    when_offline: what a request that needs an upstream does without a link: "wait" for it, answer "local", or "fail".
    upstream: name of the [upstreams.NAME] table to use. Default: all of them, in the order of the file.
    mask: whether e-mail addresses and the like are replaced by placeholders in what goes to an upstream.
    max_steps: calls of tools that a request may take.
    max_tokens: tokens of one generation; less than the model's `context`.
    temperature: temperature of sampling; 0 always takes the likeliest token.
    top_p: share of probability that tokens are sampled from.
    seed: seed of sampling, which makes it repeatable. Default: another one each time.
    conversation_expiry_s: seconds after its last request at which a conversation is forgotten.
    learn: whether calls of an upstream that worked, and what `edged learn add` and `edged requests correct` say, become
        examples that the model is shown where it is unsure; only of requests that may leave the board. "local": of all.
    """

    model: str
    system: str = ""
    tools: tuple[str, ...] = ()
    language: Literal["auto", "en", "de", "es", "fr", "it", "pt", "nl", "pl"] = "auto"
    unable: str = ""
    clock: bool | None = None
    route: Preference = Preference.AUTO
    privacy: Privacy = Privacy.DEVICE
    min_confidence: Annotated[float, Meta(ge=0, le=1)] | Literal["auto"] = "auto"
    when_offline: Offline = Offline.WAIT
    upstream: str = ""
    mask: bool = True
    max_steps: Annotated[int, Meta(ge=1, le=100)] = 6
    max_tokens: Annotated[int, Meta(ge=1, le=2**20 - 1)] = 512
    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Meta(ge=0, le=1)] = 1.0
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] | None = None
    conversation_expiry_s: Annotated[float, Meta(ge=1, le=3650 * DAY)] = 86400.0
    learn: Annotated[bool | Literal["local"], Meta(extra={"problem": '{}; allowed are false, true and "local"'})] = (
        False
    )
