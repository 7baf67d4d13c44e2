"""The configuration: what is wrong is named with its file and key, what is right means what it says."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edged import config
from edged.config import Config, PublishTool, PythonTool, SqlTool, Tool
from edged.errors import ConfigError
from edged.types import KvType, Preference, Privacy

MIB = 2**20
BASE = """
[node]
id = "green"
state_dir = "/tmp/state"
runtime_dir = "/tmp/run"
[mqtt]
url = "mqtt://127.0.0.1:1883"
[databases.plant]
path = "/tmp/plant.db"
mode = "rw"
[databases.archive]
path = "/tmp/archive.db"
[models.small]
[agents.house]
model = "small"
tools = ["level", "lamp"]
[tools.level]
description = "A level."
database = "plant"
sql = "SELECT :tank"
parameters.tank = { enum = ["north"] }
[tools.lamp]
description = "A lamp."
publish = { topic = "z/{lamp}/set", payload = '{"state":"{state}"}' }
parameters.lamp = { enum = ["desk"] }
parameters.state = { enum = ["ON"] }
"""


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EDGED_CONFIG", "STATE_DIRECTORY", "RUNTIME_DIRECTORY", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def main(tmp_path: Path) -> Path:
    """The configuration file, with BASE in it."""
    path = tmp_path / "edged.toml"
    path.write_text(BASE)
    return path


def drop_in(main: Path, text: str, name: str = "50-test.toml") -> Path:
    """A drop-in beside the file."""
    path = main.parent / "conf.d" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def loaded(main: Path, text: str) -> Config:
    """The configuration with a drop-in."""
    drop_in(main, text)
    return config.load(str(main))


def refused(main: Path, text: str) -> ConfigError:
    """The error that a drop-in brings."""
    with pytest.raises(ConfigError) as caught:
        loaded(main, text)
    return caught.value


def test_load_of_a_whole_file_gives_checked_structures(main: Path) -> None:
    """Defaults are the contract's."""
    settings = config.load(str(main))
    house = settings.agents["house"]
    assert (house.route, house.privacy, house.max_steps, house.max_tokens) == (
        Preference.AUTO, Privacy.DEVICE, 6, 512,
    )  # fmt: skip
    assert (house.temperature, house.top_p, house.seed, house.conversation_expiry_s) == (0.0, 1.0, None, 86400.0)
    assert settings.models["small"].context == 4096
    assert settings.databases["archive"].mode == "ro"
    assert isinstance(settings.tools["level"], SqlTool)
    assert isinstance(settings.tools["lamp"], PublishTool)
    assert settings.tools["lamp"].on_uncertain == "retry"
    assert (settings.queue.max_waiting, settings.queue.max_attempts) == (256, 3)
    assert settings.store_bytes == 256 * MIB
    assert settings.snapshot_bytes == 256 * MIB
    assert settings.snapshots_dir == Path("/tmp/state/snapshots")
    assert not settings.models["small"].preload
    assert settings.reserve_bytes == 96 * MIB
    assert settings.models_dir == Path("/tmp/state/models")
    assert settings.socket_path == Path("/tmp/run/edged.sock")
    assert settings.threads() is None


def test_load_of_an_empty_file_has_no_agents_and_no_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything has a default; folders come from systemd where it gives them."""
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/one:/var/lib/two")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/one")
    path = tmp_path / "e.toml"
    path.write_text('[node]\nid = "x"')
    settings = config.load(str(path))
    assert settings.mqtt is None
    assert settings.agents == {}
    assert settings.state_dir == Path("/var/lib/one")
    assert settings.socket_path == Path("/run/one/edged.sock")


def test_node_id_without_a_value_is_the_host_name(tmp_path: Path) -> None:
    """One board, one name."""
    path = tmp_path / "e.toml"
    path.write_text("")
    assert config.load(str(path)).node.id == socket.gethostname()


def test_find_prefers_the_argument_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """--config, then $EDGED_CONFIG, then /etc."""
    assert config.find(None) == Path("/etc/edged/edged.toml")
    monkeypatch.setenv("EDGED_CONFIG", "/x.toml")
    assert config.find(None) == Path("/x.toml")
    assert config.find("y.toml") == Path.cwd() / "y.toml"


def test_drop_ins_merge_tables_replace_arrays_in_name_order(main: Path) -> None:
    """The last file that names a key wins; its neighbours stay."""
    drop_in(main, "[queue]\nmax_waiting = 1\nmax_attempts = 9\n", "10-a.toml")
    drop_in(main, '[queue]\nmax_waiting = 2\n[agents.house]\ntools = ["lamp"]\n', "20-b.toml")
    drop_in(main, "this is not read", "30-c.txt")
    settings = config.load(str(main))
    assert (settings.queue.max_waiting, settings.queue.max_attempts) == (2, 9)
    assert settings.agents["house"].tools == ("lamp",)
    assert settings.agents["house"].model == "small"
    assert [Path(f).name for f in settings.files] == ["edged.toml", "10-a.toml", "20-b.toml"]


@pytest.mark.parametrize(("text", "kept"), [("0", 0), ('"0"', 0), ("1000", 1000), ('"1MiB"', MIB)])
def test_snapshots_are_bounded_or_off(main: Path, text: str, kept: int) -> None:
    """A number is bytes."""
    assert loaded(main, f"[snapshots]\nmax_bytes = {text}").snapshot_bytes == kept


def test_error_in_a_drop_in_names_the_drop_in_and_one_in_the_file_names_the_file(main: Path) -> None:
    """A person edits the file that is named."""
    error = refused(main, "[queue]\nmax_attempts = 0")
    assert (error.source, error.key) == (str(main.parent / "conf.d" / "50-test.toml"), "queue.max_attempts")
    drop_in(main, "[queue]\nmax_waiting = 7")
    main.write_text(BASE.replace('model = "small"', 'model = "large"'), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        config.load(str(main))
    assert (caught.value.source, caught.value.key) == (str(main), "agents.house.model")


def test_toml_error_names_file_and_line(main: Path) -> None:
    """Where TOML tells the line, so do we."""
    error = refused(main, "[queue]\nmax_waiting = = 1")
    assert error.line == 2
    assert str(error).startswith(f"{main.parent / 'conf.d' / '50-test.toml'}:2: ")


@pytest.mark.parametrize("content", [None, b"\xff\xfe", "folder"], ids=["missing", "not-utf8", "folder"])
def test_load_of_a_file_that_cannot_be_read_says_so(tmp_path: Path, content: bytes | str | None) -> None:
    """Never another exception."""
    path = tmp_path / "edged.toml"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        path.mkdir()
    with pytest.raises(ConfigError, match=str(path)):
        config.load(str(path))


def test_key_of_a_part_that_does_not_exist_is_refused_as_not_available_yet(main: Path) -> None:
    """Nobody believes that a key works which nothing reads."""
    error = refused(main, '[mqtt]\nshared_group = "g"')
    assert error.key == "mqtt.shared_group"
    assert "not available yet" in error.problem


VARIANTS = '[models.v]\nvariants = ["file:/m/best.gguf", "file:/m/small.gguf"]\n'


def test_first_variant_is_the_source(main: Path) -> None:
    """Written out or not."""
    for more in ("", 'source = "file:/m/best.gguf"\n'):
        model = loaded(main, VARIANTS + more).models["v"]
        assert model.source == model.sources[0] == "file:/m/best.gguf"
        assert model.sources[1:] == ("file:/m/small.gguf",)


@pytest.mark.parametrize(
    ("key", "text", "problem"),
    [
        ("models.v.source", VARIANTS + 'source = "file:/m/small.gguf"', "is not the first of `variants`"),
        ("models.v.variants", "[models.v]\nvariants = []", "is empty"),
        ("models.v.variants", '[models.v]\nvariants = ["file:/m", "file:/m"]', "names a source twice"),
        ("models.v.variants", '[models.v]\nvariants = ["file:/m", "m"]', "write catalog:NAME"),
        ("models.v.min_context", "[models.v]\ncontext = 1024\nmin_context = 2048", "256 to 1024"),
    ],
    ids=["other-source", "none", "twice", "no-source", "min-context"],
)
def test_variants_that_make_no_sense_are_refused(main: Path, key: str, text: str, problem: str) -> None:
    """With what is allowed."""
    error = refused(main, text)
    assert error.key == key
    assert problem in error.problem


def test_default_of_a_key_that_is_not_available_yet_is_taken(main: Path) -> None:
    """It asks for nothing; the contract's example writes some of them out."""
    assert loaded(main, '[mqtt]\nshared_group = ""\n').agents["house"].model == "small"


IN_SERVER = '[models.npu]\nengine = "openai"\nbase_url = "http://127.0.0.1:8080/v1"\n'

CHECKS: list[tuple[str, str, str]] = [
    ("[nodes]\nx = 1", "nodes", "unknown table; allowed are .*agents.*tools"),
    ("queue = 3", "queue", r"write \[queue\]"),
    ("[queue]\nmax_wating = 1", "queue.max_wating", "unknown key; allowed are max_waiting, max_attempts"),
    ("[queue]\nmax_waiting = 0", "queue.max_waiting", "0 is outside 1 to"),
    ('[queue]\nmax_waiting = "many"', "queue.max_waiting", "expected `int`"),
    ("[queue]\nmax_attempts = 101", "queue.max_attempts", "outside 1 to 100"),
    ('[node]\nid = "a/b"', "node.id", "one MQTT topic level"),
    ('[node]\nid = "-a"', "node.id", "one MQTT topic level"),
    ('[node]\nstate_dir = "state"', "node.state_dir", "not an absolute path"),
    ('[node]\nruntime_dir = "run"', "node.runtime_dir", "not an absolute path"),
    (
        '[node]\ntimezone = "Europe/Nowhere"',
        "node.timezone",
        r'no time zone .*; write an IANA name, as "Europe/Berlin"',
    ),
    ('[node]\ntimezone = "Europe"', "node.timezone", "no time zone"),
    ('[node]\nmodels_dir = "models"', "node.models_dir", "not an absolute path"),
    ('[memory]\nbudget = "0%"', "memory.budget", "outside 1 to 100"),
    ('[memory]\nbudget = "101%"', "memory.budget", "outside 1 to 100"),
    ('[memory]\nbudget = "100.5%"', "memory.budget", "outside 1 to 100"),
    ('[memory]\nbudget = "lots"', "memory.budget", "is no size"),
    ('[memory]\nbudget = "-5MiB"', "memory.budget", "is no size"),
    ('[memory]\nreserve = "10 TB"', "memory.reserve", "is no size"),
    ("[memory]\nidle_unload_s = -1", "memory.idle_unload_s", "outside 0"),
    ("[memory]\nidle_unload_s = nan", "memory.idle_unload_s", "outside"),
    ("[compute]\nthreads = 0", "compute.threads", '"auto", or 1 to'),
    ("[compute]\nthreads = 100000", "compute.threads", '"auto", or 1 to'),
    ('[compute]\nthreads = "all"', "compute.threads", '"auto", or 1 to'),
    ("[compute]\nthreads = true", "compute.threads", "expected"),
    ('[store]\nmax_bytes = "big"', "store.max_bytes", "is no size"),
    ('[snapshots]\nmax_bytes = "many"', "snapshots.max_bytes", "is no size"),
    ("[snapshots]\nmax_bytes = -1", "snapshots.max_bytes", "is no size"),
    ("[snapshots]\nmax_bytes = true", "snapshots.max_bytes", "expected"),
    ("[snapshots]\nmax_files = 1", "snapshots.max_files", "unknown key; allowed are max_bytes"),
    ('[models.small]\npreload = "yes"', "models.small.preload", "expected `bool`"),
    ('[models.small]\nbase_url = "http://127.0.0.1:1/v1"', "models.small.base_url", 'write engine = "openai" too'),
    ("[models.small]\ntimeout_s = 3", "models.small.timeout_s", 'write engine = "openai" too'),
    ('[models.npu]\nengine = "openai"\nmodel = "m"', "models.npu.base_url", "is required"),
    (f"{IN_SERVER}", "models.npu.model", "is required"),
    (
        f'{IN_SERVER}model = "m"\nsource = "catalog:x"',
        "models.npu.source",
        "a server runs it; allowed are api_key_file",
    ),
    (f'{IN_SERVER}model = "m"\npin = true', "models.npu.pin", "a server runs it"),
    (f'{IN_SERVER}model = "m"\ntimeout_s = 0', "models.npu.timeout_s", "outside 0.1 to 3600"),
    (
        f'{IN_SERVER}model = "m"\n[agents.house]\nmodel = "npu"\nmin_confidence = 0.5',
        "agents.house.min_confidence",
        "does not tell how sure",
    ),
    (
        f'{IN_SERVER}model = "m"\n[agents.house]\nmodel = "npu"\nlearn = "local"',
        "agents.house.learn",
        "runs in a server, which is shown no examples",
    ),
    *(
        (f'[models.npu]\nengine = "openai"\nmodel = "m"\nbase_url = "{url}"', "models.npu.base_url", told)
        for url, told in (
            ("http://192.168.1.5:8080/v1", r"is not on this board.*an \[upstreams.NAME\] table"),
            ("http://api.example.com/v1", "is not on this board"),
            ("http://localhost.example.com/v1", "is not on this board"),
            ("http://127.1/v1", "is not on this board"),
            ("http://0.0.0.0:8080/v1", "is not on this board"),
            ("https://127.0.0.1/v1", "write http://127.0.0.1:PORT/v1"),
            ("http://me:secret@127.0.0.1/v1", "holds a secret"),
            ("http://127.0.0.1:99999/v1", "is no address"),
            ("http+unix://run/llama.sock/v1", "the socket is an absolute path"),
        )
    ),
    ("[store]\nretention_days = 0", "store.retention_days", "outside"),
    ('[ipc]\nmode = "9999"', "ipc.mode", "no file mode"),
    ('[ipc]\ngroup = "no_such_group_here"', "ipc.group", "no group"),
    ('[databases.plant]\nmode = "rwx"', "databases.plant.mode", "allowed are ro, rw"),
    ('[databases.plant]\npath = "plant.db"', "databases.plant.path", "not an absolute path"),
    ('[databases.other]\nmode = "ro"', "databases.other.path", "is required"),
    ('[databases]\nother = "x"', "databases.other", r"write \[databases.other\]"),
    ('[mqtt]\nurl = "http://x"', "mqtt.url", "write mqtt://"),
    ('[mqtt]\nurl = "mqtt://"', "mqtt.url", "write mqtt://"),
    ('[mqtt]\nurl = "mqtt://host:99999"', "mqtt.url", "write mqtt://"),
    ('[mqtt]\nurl = "mqtt://host:0"', "mqtt.url", "write mqtt://"),
    ('[mqtt]\nurl = "mqtt://host/path"', "mqtt.url", "write mqtt://"),
    ('[mqtt]\nurl = "mqtt://host?clean=1"', "mqtt.url", "write mqtt://"),
    ('[mqtt]\nurl = "mqtt://[::1"', "mqtt.url", "write mqtt://"),
    ('[mqtt]\nurl = "mqtt://me:secret@host"', "mqtt.url", "holds no user"),
    ("[mqtt]\nversion = 3", "mqtt.version", "allowed are 5 and 4"),
    ('[mqtt]\npassword_file = "/x"', "mqtt.password_file", "needs mqtt.username"),
    ('[mqtt]\npassword = "x"', "mqtt.password", "unknown key"),
    ('[mqtt]\nca_file = "/x"', "mqtt.ca_file", "is for TLS"),
    ('[mqtt]\nurl = "mqtts://h"\nca_file = "/no/such"', "mqtt.ca_file", "cannot be read"),
    ('[mqtt]\nurl = "mqtts://h"\ncert_file = "/x"', "mqtt.cert_file", "go together"),
    ("[mqtt]\ndefault_expiry_s = 0", "mqtt.default_expiry_s", "outside"),
    ("[models.small]\ncontext = 100", "models.small.context", "outside 256"),
    ('[models.small]\nsource = "ftp://x"', "models.small.source", "write catalog:NAME"),
    ('[models."a b"]', "models.a b", "a name has 1 to 64"),
    ('[agents.small]\nmodel = "small"', "agents.small", "share one namespace"),
    ("[agents.other]", "agents.other.model", "is required"),
    ('[agents.house]\nmodel = "large"', "agents.house.model", "no model 'large'; defined are small"),
    ('[agents.house]\ntools = ["rocket"]', "agents.house.tools", "no tool 'rocket'; defined are level, lamp"),
    ('[agents.house]\nroute = "mars"', "agents.house.route", "allowed are auto, local, cloud"),
    ('[agents.house]\nprivacy = "none"', "agents.house.privacy", "allowed are device, any"),
    ("[agents.house]\nmax_steps = 0", "agents.house.max_steps", "outside 1"),
    ("[agents.house]\nmax_tokens = 4096", "agents.house.max_tokens", "outside 1 to 4095"),
    ("[agents.house]\ntemperature = 3.0", "agents.house.temperature", "outside 0 to 2"),
    ("[agents.house]\ntop_p = 1.5", "agents.house.top_p", "outside 0 to 1"),
    ("[agents.house]\nseed = -1", "agents.house.seed", "outside 0"),
    ("[agents.house]\nconversation_expiry_s = 0", "agents.house.conversation_expiry_s", "outside 1"),
    ('[tools.x]\ndescription = "d"', "tools.x", "exactly one of `sql`, `publish`, `python` and `mcp`"),
    (
        '[tools.level]\npublish = { topic = "a", payload = "" }',
        "tools.level",
        "exactly one of `sql`, `publish`, `python` and `mcp`",
    ),
    ('[tools.reply]\ndescription = "d"\ndatabase = "plant"\nsql = "SELECT 1"', "tools.reply", "edged itself offers"),
    ('[tools.escalate]\ndescription = "d"\ndatabase = "plant"\nsql = "x"', "tools.escalate", "edged itself offers"),
    ('[tools.level]\ndescription = " "', "tools.level.description", "is empty"),
    ('[tools.level]\ndatabase = "sea"', "tools.level.database", "no database 'sea'; defined are plant, archive"),
    ('[tools.level]\neffect = "destroy"', "tools.level.effect", "allowed are read, write"),
    ('[tools.level]\neffect = "write"\ndatabase = "archive"', "tools.level.effect", "opened read-only"),
    ("[tools.level]\ntimeout_s = 0", "tools.level.timeout_s", "outside"),
    ('[tools.level]\non_uncertain = "retry"', "tools.level.on_uncertain", "unknown key"),
    ('[tools.level]\nsay = "It is {colour}."', "tools.level.say", "{colour} is no parameter; declared are tank"),
    ('[tools.level.parameters."a-b"]\ntype = "string"', "tools.level.parameters.a-b", "letters, digits and `_`"),
    (
        '[tools.level]\nexamples = [{ input = "x", arguments = { pool = "north" } }]',
        "tools.level.examples[0]",
        "'pool' is no parameter",
    ),
    ('[tools.lamp.publish]\ntopic = "z/{room}"', "tools.lamp.publish.topic", "{room} is no parameter"),
    ('[tools.level]\nprivate = ["a..b"]', "tools.level.private", "'a..b' is no name"),
    ('[tools.level]\nprivate = "tank"', "tools.level.private", "expected"),
    ('[tools.lamp]\nprivate = ["room"]', "tools.lamp.private", "'room' is no parameter"),
    (
        '[tools.lamp]\nparameters.lamp.optional = true\npublish.topic = "z/{lamp}"',
        "tools.lamp.publish.topic",
        "{lamp} may be left out",
    ),
    ("[tools.level.parameters.tank]\noptional = 1", "tools.level.parameters.tank.optional", "allowed are true, false"),
    (
        '[tools.level.parameters.tank]\noptional = true\ndefault = "north"',
        "tools.level.parameters.tank.optional",
        "has a default",
    ),
    ('[tools.lamp.publish]\ntopic = "z/+/set"', "tools.lamp.publish.topic", "no wildcards"),
    ('[tools.lamp.publish]\ntopic = ""', "tools.lamp.publish.topic", "not empty"),
    ("[tools.lamp.publish]\nqos = 3", "tools.lamp.publish.qos", "allowed are 0, 1, 2"),
    ('[tools.light.on]\ndescription = "x"', "tools.light.on", r'in quotes: \[tools\."light\.on"\]'),
    ("[models.qwen2.5]\ncontext = 4096", "models.qwen2.5", r'in quotes: \[models\."qwen2\.5"\]; else allowed are'),
    ("[models.llama3.1.8b]\ncontext = 4096", "models.llama3.1", r'in quotes: \[models\."llama3\.1\.8b"\]'),
    ('[databases.home.db]\npath = "/x"', "databases.home.db", r'\[databases\."home\.db"\]'),
    ('[agents.house.guest]\nmodel = "small"', "agents.house.guest", r'\[agents\."house\.guest"\]'),
    ('[tools.lamp]\non_uncertain = "maybe"', "tools.lamp.on_uncertain", "allowed are retry, report"),
]


@pytest.mark.parametrize(("text", "key", "problem"), CHECKS, ids=[f"{key}-{i}" for i, (_, key, _) in enumerate(CHECKS)])
def test_wrong_value_is_refused_with_its_key_and_what_is_allowed(main: Path, text: str, key: str, problem: str) -> None:
    """Every check names the drop-in, the key, and what would be right."""
    error = refused(main, text)
    assert error.key == key
    assert error.source == str(main.parent / "conf.d" / "50-test.toml")
    assert error.line is not None
    with pytest.raises(AssertionError, match=problem):
        raise AssertionError(error.problem)


LINES: list[tuple[str, int]] = [
    ("[queue]\nmax_attempts = 1\nmax_wating = 1", 3),
    ("[queue]\n\n# no\nmax_waiting = 0", 4),
    ('[agents.house]\nmax_steps = 1\ntools = [\n  "level",\n  "rocket",\n]', 5),
    ('[roles.r]\nagents = [\n  "*",\n  "nobody",\n]', 4),
    ('[http]\nlisten = [\n  "unix:a",\n  "8377",\n]', 4),
    ('[http]\norigins = [\n  "https://a.example",\n  "ftp://b",\n]', 4),
    ("[agents.other]\nmax_steps = 3", 1),
    ('[tools.level]\nsay = "x"\nparameters."a-b" = {}', 3),
    ('[tools.level]\nexamples = [\n  { input = "x" },\n  { input = "y", arguments = { pool = 1 } },\n]', 4),
    ('[queue]\nmax_waiting = 3\n[ipc]\ngroup = "a\\u0000b"', 4),
    ("mqtt.version = 3", 1),
    ('# a\n[tools.light]\n[tools.light.on]\nsql = "SELECT 1"', 3),
]


@pytest.mark.parametrize(("text", "line"), LINES)
def test_mistake_names_the_line_of_its_key(main: Path, text: str, line: int) -> None:
    """Of an array its element's, of what is missing the table's."""
    error = refused(main, text)
    assert (error.source, error.line) == (str(main.parent / "conf.d" / "50-test.toml"), line)
    assert str(error).startswith(f"{error.source}:{line}: {error.key}: ")


def test_mistake_of_two_files_names_the_line_in_the_later_one(main: Path) -> None:
    """In each file keys have lines of their own; a key that a drop-in leaves alone is where the file has it."""
    drop_in(main, "# first\n[queue]\nmax_waiting = 3\nmax_attempts = 0\n", "10-a.toml")
    error = refused(main, "[queue]\nmax_waiting = 2\n")
    assert (Path(error.source).name, error.line) == ("10-a.toml", 4)
    drop_in(main, "", "10-a.toml")
    main.write_text(BASE.replace('sql = "SELECT :tank"', 'sql = "SELECT :tank"\ntimeout_s = 0'), encoding="utf-8")
    error = refused(main, '[tools.level]\neffect = "read"\n')
    assert (error.source, error.line) == (str(main), BASE[: BASE.index("sql =")].count("\n") + 2)


def test_what_no_file_says_has_no_line(main: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the file is the first one."""
    main.write_text("[memory]\n", encoding="utf-8")
    monkeypatch.setenv("STATE_DIRECTORY", "relative")
    with pytest.raises(ConfigError) as caught:
        config.load(str(main))
    assert (caught.value.source, caught.value.key, caught.value.line) == (str(main), "node.state_dir", None)


def test_byte_order_mark_is_skipped(main: Path) -> None:
    """Some editors put one in front."""
    main.write_bytes(b"\xef\xbb\xbf" + BASE.encode())
    assert config.load(str(main)).node.id == "green"


def test_publish_tool_without_a_broker_is_refused(main: Path) -> None:
    """It could never work."""
    main.write_text(BASE.replace('[mqtt]\nurl = "mqtt://127.0.0.1:1883"\n', ""), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"tools\.lamp\.publish: needs a broker"):
        config.load(str(main))


def test_payload_may_hold_braces_that_are_no_parameter(main: Path) -> None:
    """Only declared parameters are replaced; other braces stay, so they are no mistake."""
    settings = loaded(main, """[tools.lamp.publish]\npayload = '{"a":{},"b":"{other}"}'""")
    assert isinstance(settings.tools["lamp"], PublishTool)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ('[memory]\nbudget = "50%"', lambda c: c.budget_bytes(1000)),
        ('[memory]\nbudget = "50 %"', lambda c: c.budget_bytes(1000)),
        ('[memory]\nbudget = "500"', lambda c: c.budget_bytes(1000)),
        ('[memory]\nreserve = "500B"', lambda c: c.reserve_bytes),
        ("[queue]\nmax_waiting = 500", lambda c: c.queue.max_waiting),
        ('[memory]\nbudget = "2GiB"', lambda c: c.budget_bytes(500)),
    ],
)
def test_budget_is_a_part_of_the_board_or_a_size_at_most_the_board(main: Path, text: str, read: Any) -> None:
    """A budget larger than the board is the board."""
    assert read(loaded(main, text)) == 500


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("96MiB", 96 * MIB), (" 1.5 KiB ", 1536), ("1GB", 10**9), ("1 MB", 10**6), ("3KB", 3000), ("7B", 7),
        ("2GiB", 2**31),
    ],
)  # fmt: skip
def test_parse_bytes_knows_the_units(text: str, size: int) -> None:
    """KiB are 1024, KB are 1000."""
    assert config.parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "1TiB", "1 mib", "-1", "1e3", "1,5MiB", "nan"])
def test_parse_bytes_refuses_what_is_no_size(text: str) -> None:
    """The message shows how to write one."""
    with pytest.raises(ValueError, match="96MiB"):
        config.parse_bytes(text)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a group that surely exists: root's")
def test_ipc_group_that_exists_is_taken(main: Path) -> None:
    """A group that was written down is used, one that was not is only a wish."""
    settings = loaded(main, '[ipc]\ngroup = "root"')
    assert settings.is_given("ipc", "group")
    assert settings.ipc.group == "root"


CLOUD = """
[upstreams.first]
base_url = "https://api.example.com/v1"
model = "large"
api_key_file = "credential:key"
daily_token_budget = 1000
[upstreams.second]
base_url = "http://127.0.0.1:8000/v1"
model = "m"
"""


def test_upstreams_answer_in_file_order_unless_the_agent_names_one(main: Path) -> None:
    """And only agents whose requests may leave can hand one over."""
    settings = loaded(main, CLOUD)
    assert settings.upstreams_of("house") == ("first", "second")
    assert not settings.may_escalate("house")
    assert settings.upstreams["first"].timeout_s == 60
    settings = loaded(main, f'{CLOUD}[agents.house]\nprivacy = "any"\nupstream = "second"')
    assert settings.upstreams_of("house") == ("second",)
    assert settings.may_escalate("house")
    assert not loaded(main, f'{CLOUD}[agents.house]\nprivacy = "any"\nroute = "local"').may_escalate("house")
    assert not loaded(main, '[agents.house]\nprivacy = "any"').may_escalate("house")


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ('[upstreams.a]\nmodel = "m"', "upstreams.a.base_url", "is required"),
        ('[upstreams.a]\nbase_url = "api.example.com"\nmodel = "m"', "upstreams.a.base_url", "write https://"),
        ('[upstreams.a]\nbase_url = "ftp://x/v1"\nmodel = "m"', "upstreams.a.base_url", "write https://"),
        ('[upstreams.a]\nbase_url = "https://me:pw@x/v1"\nmodel = "m"', "upstreams.a.base_url", "api_key_file"),
        ('[upstreams.a]\nbase_url = "https://x:99999/v1"\nmodel = "m"', "upstreams.a.base_url", "port"),
        ('[upstreams.a]\nbase_url = "https://x/v1"\nmodel = ""', "upstreams.a.model", "is empty"),
        (f"{CLOUD}[upstreams.third]\nkey = 1", "upstreams.third.key", "unknown key"),
        (
            "[upstreams.first]\ntimeout_s = 0\n" + CLOUD.replace("[upstreams.first]", ""),
            "upstreams.first.timeout_s",
            "0.1",
        ),
        (f"{CLOUD}daily_token_budget = 0", "upstreams.second.daily_token_budget", "1 to"),
        ('[agents.house]\nupstream = "x"', "agents.house.upstream", "no upstream 'x'"),
        ('[agents.house]\nroute = "cloud"', "agents.house.route", 'privacy = "any"'),
        ('[agents.house]\nroute = "cloud"\nprivacy = "any"', "agents.house.route", "no cloud"),
        ("[agents.house]\nmin_confidence = 1.5", "agents.house.min_confidence", "0 to 1"),
        ('[agents.house]\nwhen_offline = "hope"', "agents.house.when_offline", "wait, local, fail"),
        ("[agents.house]\nlearn = true", "agents.house.learn", 'write learn = "local", or privacy = "any"'),
        ('[agents.house]\nlearn = "all"', "agents.house.learn", 'allowed are false, true and "local"'),
        ('[agents.house]\nlearn = "local"\nmin_confidence = 0', "agents.house.learn", "no call is unsure"),
        ('[http]\nlisten = ["127.0.0.1:8377"]', "http.listen", "api_keys_file"),
        ('[http]\nlisten = ["8377"]', "http.listen", "write"),
        ('[http]\nlisten = ["localhost:0"]', "http.listen", "write"),
        ('[http]\nlisten = ["unix:"]', "http.listen", "write"),
        ('[http]\nlisten = ["unix:a", "unix:a"]', "http.listen", "twice"),
        ('[http]\nollama = "11434"', "http.ollama", "write"),
        ('[http]\nollama = "localhost:0"', "http.ollama", "write"),
        ('[http]\nollama = "unix:ollama.sock:1"', "http.ollama", "loopback only"),
        ('[http]\nollama = "0.0.0.0:11434"', "http.ollama", "loopback only"),
        ('[http]\nollama = "192.168.1.5:11434"', "http.ollama", "loopback only"),
        ('[http]\nollama = "board.local:11434"', "http.ollama", "loopback only"),
    ],
)
def test_wrong_cloud_or_listener_names_the_key_and_what_is_allowed(main: Path, text: str, key: str, said: str) -> None:
    """Before anything starts."""
    error = refused(main, text)
    assert error.key == key
    assert said in error.problem


@pytest.mark.parametrize(
    "url", ["SCHEME://me:pass@host/x", "SCHEMEs://me:pass@[h", "ftp://me:pass@h", "SCHEME://me:pass@"]
)
@pytest.mark.parametrize("text", ['[mqtt]\nurl = "URL"', '[upstreams.a]\nmodel = "m"\nbase_url = "URL"'])
def test_password_in_an_address_is_refused_and_not_shown(main: Path, url: str, text: str) -> None:
    """Whatever else is wrong with the address: messages go into logs."""
    scheme = "mqtt" if "mqtt" in text else "http"
    error = refused(main, text.replace("URL", url.replace("SCHEME", scheme)))
    assert "password_file" in error.problem or "api_key_file" in error.problem
    assert "pass@" not in str(error)


def test_http_listens_on_a_socket_of_its_own_unless_told_otherwise(main: Path) -> None:
    """In the runtime folder; an address takes brackets where it needs them."""
    assert config.load(str(main)).http_listeners == (Path("/tmp/run/http.sock"),)
    text = '[http]\nlisten = ["unix:/x/y.sock", "[::1]:8377", "0.0.0.0:80"]\napi_keys_file = "/k"'
    assert loaded(main, text).http_listeners == (Path("/x/y.sock"), ("::1", 8377), ("0.0.0.0", 80))


@pytest.mark.parametrize(
    ("text", "kept"), [("", KvType.F16), ('kv_type = "q8_0"', KvType.Q8_0)], ids=["default", "q8_0"]
)
def test_kv_type_of_a_model(main: Path, text: str, kept: KvType) -> None:
    """What its keys and values are kept as."""
    assert loaded(main, f"[models.m]\n{text}").models["m"].kv_type is kept


def test_unknown_kv_type_is_refused_with_those_there_are(main: Path) -> None:
    """At its key."""
    error = refused(main, '[models.m]\nkv_type = "q4_0"')
    assert error.key == "models.m.kv_type"
    assert "f16, q8_0" in error.problem


SQL = SqlTool(description="d", database="plant", sql="SELECT 1")
PYTHON = PythonTool(description="d", python="m:f", effect="read")


@pytest.mark.parametrize(
    ("tool", "result", "nothing"),
    [
        (SQL, {"rows": [], "truncated": False}, True),
        (SQL, {"rows": [{"a": None, "b": None}, {"a": None, "b": None}], "truncated": False}, True),
        (SQL, {"rows": [{"a": None, "b": 0}], "truncated": False}, False),
        (SQL, {"changes": 1, "rows": []}, False),
        (PYTHON, None, True),
        (PYTHON, [], True),
        (PYTHON, {}, True),
        (PYTHON, 0, False),
        (PYTHON, False, False),
        (PYTHON, "", False),
        (msgspec.structs.replace(PYTHON, effect="write"), None, False),
    ],
)
def test_a_result_that_holds_nothing(tool: Tool, result: Any, nothing: bool) -> None:
    """Of a tool that reads; a model is told "nothing found" where it has to word an answer beside other results."""
    assert tool.is_nothing(result) is nothing
    assert (tool.shown(result, str) == "nothing found") is nothing
