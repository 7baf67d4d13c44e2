"""What the machine and its owner say: configuration, keys, the service manager's variables, files of the kernel."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator
from datetime import date, datetime, time
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edged import config
from edged.access import policy
from edged.config import BUILT_IN, Config, roles
from edged.engines import scripted
from edged.errors import ConfigError, ToolFailed
from edged.host import cgroups, cpus, kernel_files, loopback, memory, mounts, psi, systemd
from edged.residency.pressure import low_memory
from edged.tools import values as tool_values
from edged.transport.http.core import keys
from edged.transport.mqtt import settings as mqtt
from tests.support import schema as settings_schema
from tests.support.fuzz import anything, cpu_s, damaged, is_finite, json_values, maps, texts, toml

# Values of TOML: beside those of JSON dates, and numbers that are none. None is not there.
leaves = st.one_of(
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from([2**63, -(2**63), 10**400, 10**4000]),
    st.floats(),
    texts,
    st.sampled_from(["9" * 400 + "GiB", "\u0665\u0665%", "1" * 5000 + "%", "\0", "a\0b", "/\0"]),
    st.sampled_from(["auto", "60%", "unix:\0"]),
    st.sampled_from([date(2024, 1, 1), datetime(2024, 1, 1), time(1, 2)]),  # noqa: DTZ001
)
anything_toml = st.recursive(
    leaves, lambda below: st.lists(below, max_size=3) | st.dictionaries(texts, below, max_size=3), max_leaves=6
)


def filled(*known: str, **likely: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={name: likely.get(name, st.nothing()) | anything_toml for name in known})


def table(kind: type[msgspec.Struct], **likely: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return filled(*(field.name for field in msgspec.structs.fields(kind)), **likely)


def many(value: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(["small", "house", "x-y", "a b", "\0"]), value, max_size=2)


urls = st.sampled_from(
    [
        *("mqtt://[", "mqtts://h:99999", "mqtt://a:b@h", "https://[x]/v1", "http://h:\u0662/v1", "http://h:-1", "//"),
        *("https://h/v1", "mqtt://h", "http://127.0.0.1:1/v1", "http+unix://%2Frun%2Fx/v1"),
    ]
)
named = st.sampled_from(["/dev/null", "/\0", "", "x" * 5000])
schema = st.dictionaries(
    st.sampled_from(["valve", "n", "a b"]), filled("type", "enum", "default", "minimum"), max_size=2
)
tool = st.one_of(
    table(
        config.SqlTool,
        description=st.just("d"),
        database=st.just("small"),
        sql=st.just("SELECT 1"),
        parameters=schema,
    ),
    table(config.PublishTool, description=st.just("d"), publish=table(config.Publish), parameters=schema),
    table(config.PythonTool, python=st.sampled_from(["m:f", ":", "m:f\n"]), parameters=schema),
)
configurations = st.fixed_dictionaries(
    {},
    optional={
        "node": table(config.Node, state_dir=st.just("/tmp/x")),
        "memory": table(config.Memory, budget=texts),
        "compute": table(config.Compute),
        "queue": table(config.Queue),
        "store": table(config.Store, max_bytes=texts),
        "snapshots": table(config.Snapshots),
        "audit": table(config.AuditKept),
        "ipc": table(config.Ipc, mode=st.just("0660"), group=texts),
        "http": table(
            config.Http,
            listen=st.lists(texts | st.sampled_from(["unix:a", "[::1]:80", "h:\u00b2"]), max_size=2),
            hosts=st.lists(texts, max_size=2),
            origins=st.lists(texts, max_size=2),
            api_keys_file=named,
        ),
        "mqtt": table(config.Mqtt, url=urls, ca_file=named),
        "databases": many(table(config.Database, path=named, mode=st.sampled_from(["ro", "rw"]))),
        "models": many(
            table(
                config.Model,
                engine=st.sampled_from(["openai", "onnx"]),
                base_url=urls,
                source=st.just("catalog:x"),
                variants=st.lists(texts, max_size=2),
            )
        ),
        "upstreams": many(table(config.Upstream, base_url=urls, model=st.just("m"))),
        "agents": many(table(config.Agent, model=st.just("small"), upstream=st.just("small"))),
        "tools": many(tool),
        "roles": many(table(roles.Role, priority=st.sampled_from(["batch", "interactive"]))),
        "access": table(
            roles.Access,
            unix_uid=st.dictionaries(texts | st.just("\0"), texts, max_size=2),
            unix_group=st.dictionaries(texts | st.just("9" * 5000), texts, max_size=2),
            mqtt=st.dictionaries(texts, texts, max_size=2),
        ),
        "x": anything_toml,
    },
)

RIGHT = (
    '[models.small]\n[databases.plant]\npath = "/tmp/p.db"\n[agents.house]\nmodel = "small"\ntools = ["t"]\n[tools.t]\n'
    'description = "d"\ndatabase = "plant"\nsql = "SELECT :a"\nparameters.a = { enum = ["x"] }\n[mqtt]\n[http]\n'
)


@pytest.fixture(scope="module", autouse=True)
def _compared_with_the_schema() -> Iterator[None]:
    with settings_schema.compared():
        yield


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """For one file after the other."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as made:
        yield Path(made)


def loaded(folder: Path, text: str | bytes) -> Config | None:
    """The configuration, with all that is computed of it later; None where it is refused with its file and key."""
    path = folder / "edged.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    try:
        made = config.load(str(path))
    except ConfigError as error:
        assert error.source in (str(path), BUILT_IN)
        assert error.problem.strip()
        assert str(path) in str(error) or error.key
        return None
    for computed in ("http_listeners", "store_bytes", "snapshot_bytes", "reserve_bytes", "served", "state_dir"):
        getattr(made, computed)
    assert made.budget_bytes(2**33) >= 0
    assert made.threads() is None or (made.threads() or 0) >= 1
    int(made.ipc.mode, 8)
    policy.Policy(made.agents, made.roles, made.access)
    for name, tool in made.tools.items():
        assert is_finite(tool.parameters), name
        msgspec.json.encode(tool_values.schema(tool.parameters))
        assert msgspec.json.decode(msgspec.json.encode(tool.parameters)) == tool.parameters
    return made


TOOL = '[databases.d]\npath = "/d"\n[tools.t]\ndescription = "d"\ndatabase = "d"\nsql = "SELECT :a"\n'


@given(configurations.map(toml) | anything(RIGHT.encode()) | damaged(configurations.map(lambda t: toml(t).encode())))
@example('[store]\nmax_bytes = "' + "9" * 400 + 'GiB"')
@example("a = " + "[" * 5000)
@example("[a" + ".a" * 3000 + "]")
@example("x" + ".x" * 3000 + " = 1")
@example("a = " + "9" * 5000)
@example("[queue]\nmax_waiting = 0x" + "f" * 5000)
@example("\ufeff[queue]\nmax_waiting = 0")
@example("a = " + "{a=" * 3000)
@example("[queue]\nmax_waiting = nan")
@example("[store]\nretention_days = 1" + "0" * 4000)
@example('[ipc]\ngroup = "\\u0000"')
@example('[mqtt]\nurl = "mqtts://h"\nca_file = "\\u0000"')
@example('[http]\nlisten = ["h:\u00b2"]')
@example('[http]\nlisten = ["h:' + "9" * 5000 + '"]')
@example('[http]\nlisten = ["unix:\\u0000"]')
@example('[node]\nstate_dir = "/\\u0000"')
@example('[memory]\nbudget = "' + "1" * 5000 + '%"')
@example('[access]\nunix_uid = { "\\u0000" = "x" }\n[roles.x]')
@example('[access]\nunix_uid = { "\u0661" = "x" }\n[roles.x]')
@example(TOOL + "parameters.a = { default = 2024-01-01 }")
@example(TOOL + "parameters.a = { minimum = nan }")
@example(TOOL + "parameters.a = { enum = [inf] }")
@example(TOOL + "parameters.a = { enum = 5 }")
@example(TOOL + "parameters.a = { maximum = " + "9" * 4000 + " }")
@example(TOOL + "parameters.a = { type = { a = 2024-01-01 } }")
@example(TOOL + 'parameters.a = {}\nexamples = [{ input = "x", arguments = { a = 01:02:03 } }]')
@example(b"\xff")
@example(b'"\\ud800" = 1')
def test_configuration_is_right_or_wrong_with_file_and_key(folder: Path, text: str | bytes) -> None:
    """Any TOML of any types."""
    loaded(folder, text)


def test_right_configuration_is_right(folder: Path) -> None:
    """The one that others are damaged from."""
    assert loaded(folder, RIGHT) is not None


LONG = {
    "dotted": "a" + ".a" * 5_000 + " = 1",
    "list": "x = [" + "1," * 100_000 + "]",
    "tables": "".join(f"[a{n}]\n" for n in range(20_000)),
    "escapes": 'x = "' + "\\n" * 100_000 + '"',
    "quotes": "x = '''" + "'" * 100_000,
}


@pytest.mark.parametrize("name", LONG)
def test_long_configuration_takes_little_time(folder: Path, name: str) -> None:
    """A file of a hundred kilobytes, which nobody writes."""
    assert cpu_s(lambda: loaded(folder, LONG[name])) < 10


@given(texts | st.from_regex(r"[0-9.]{1,6} ?(B|KiB|MiB|GiB|KB|MB|GB)?", fullmatch=True) | st.just("9" * 400))
@example("9" * 400 + "GiB")
@example("\u0661MiB")
@example("1" + "0" * 308 + "GiB")
def test_size_is_a_number_of_bytes_or_a_value_error(text: str) -> None:
    """And says what is allowed."""
    try:
        size = config.parse_bytes(text)
    except ValueError as error:
        assert "write bytes as" in str(error)
    else:
        assert 0 <= size < 2**63


@given(urls | texts | st.builds("{}://{}:{}{}".format, texts, texts, texts, texts))
@example("http+unix://%00/v1")
@example("http://127.0.0.1:\u0661/v1")
@example("http://[::1%25x]/v1")
@example("mqtt://h:" + "9" * 5000)
def test_address_is_one_or_a_value_error(url: str) -> None:
    """Of a server on this board, and of a broker."""
    for parse in (loopback.parse, mqtt.endpoint):
        with contextlib.suppress(ValueError):
            parse(url)
    assert loopback.is_here(url) in (True, False)


@given(texts | st.sampled_from(["a/+/#", "#", "+", "$SYS/#", "a//b"]), texts)
def test_topic_filter_is_one_or_says_why_not(pattern: str, topic: str) -> None:
    """One that is matches, or does not."""
    problem = roles.filter_problem(pattern)
    assert problem is None or problem
    assert roles.matches(pattern, topic) in (True, False)


KEYS_FILE = b"# keys\npanel:0123456789abcdef\n\nlamp : fedcba9876543210 \n"
shown = st.dictionaries(st.sampled_from(["Authorization", "X-Api-Key"]), texts | st.just("Bearer \udcff"))


@given(anything(KEYS_FILE), shown)
@example(KEYS_FILE, {"Authorization": "Bearer 0123456789abcdef"})
@example(b"panel:\xe2\x80\xa8", {})
def test_keys_are_read_or_the_line_is_named(folder: Path, data: bytes, headers: dict[str, str]) -> None:
    """Never what is in it."""
    path = folder / "keys"
    path.write_bytes(data)
    try:
        name = keys.load(str(path)).name_of(headers)
    except ConfigError as error:
        assert error.source == str(path)
        assert "0123456789abcdef" not in str(error)
    else:
        assert name is None or config.NAME.fullmatch(name)


@given(texts | st.sampled_from(["x\ny", "../../etc/passwd", "\0", "x" * 10_000]))
def test_secret_is_read_or_refused(folder: Path, name: str) -> None:
    """A file, or a credential by its name in systemd's folder."""
    (folder / "credential").write_text("secret\n")
    with mock.patch.dict(os.environ, {"CREDENTIALS_DIRECTORY": str(folder)}):
        assert config.secret("credential:credential") == "secret"
        for reference in (f"credential:{name}", f"{folder}/x{name}"):
            with contextlib.suppress(ConfigError):
                config.secret(reference)


# -- the service manager -----------------------------------------------------------------------------------------------

plain = texts.filter(lambda text: "\0" not in text)
VARIABLES = ("WATCHDOG_USEC", "WATCHDOG_PID", "MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE")
HOSTILE = ("\u00b2", "\u0661", "9" * 5000, "-1", "0x10", " 3 ", "1e3", "+3", "3_0")


@given(st.dictionaries(st.sampled_from(VARIABLES), plain | st.sampled_from(HOSTILE)))
@example({"WATCHDOG_USEC": "\u00b2"})
@example({"WATCHDOG_USEC": "9" * 5000})
@example({"WATCHDOG_USEC": "0"})
@example({"MEMORY_PRESSURE_WATCH": "/x", "MEMORY_PRESSURE_WRITE": "\u00fc"})
def test_variables_of_the_service_manager_mean_something_or_nothing(variables: dict[str, str]) -> None:
    """A daemon starts whatever is in them."""
    with mock.patch.dict(os.environ, variables, clear=True):
        seconds = systemd.watchdog_s()
        assert seconds is None or 0 < seconds < 1e13
        found = systemd.memory_pressure()
        assert found is None or isinstance(found[1], bytes)


@given(plain | st.sampled_from([*HOSTILE, str(10**9), str(2**31)]))
@example(str(10**9))
@example("\u00b2")
@example("9" * 5000)
def test_passed_sockets_are_taken_or_left(count: str) -> None:
    """As many as there can be, whatever number is told; those that are none of ours stay open."""
    with socket.socket() as own, mock.patch.object(systemd, "LISTEN_FDS_START", 10**6):  # none of this process's own
        variables = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count, "LISTEN_FDNAMES": "x"}
        with mock.patch.dict(os.environ, variables):
            took: list[socket.socket] = []
            assert cpu_s(lambda: took.extend(systemd.listen_fds())) < 2
            assert took == []
            assert "LISTEN_FDS" not in os.environ
        own.getsockname()


# -- files of the kernel -----------------------------------------------------------------------------------------------

MEMINFO = b"MemTotal:        2048 kB\nMemAvailable:    1024 kB\nHugePages_Total: 7\n"
CGROUP = b"12:memory:/a\n0::/a/b\n"
STAT = b"cpu  1 2 3 4 5 6 7 8 9 0\ncpu0 1 2 3 4 5 6 7 8 9 0\nintr 1\n"
MOUNTS = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"
numbers = st.sampled_from(["max", "0", "300", str(2**63), "\u00b2", "9" * 5000, "-1", "", "1 2"])


@given(anything(MEMINFO), anything(CGROUP), anything(b"max\n"), anything(b"anon 5\ninactive_file 7\n"), numbers)
@example(MEMINFO, b"x\n", b"1", b"", "1")
@example(MEMINFO, b"0::/\xff\n", b"1", b"", "1")
@example(b"MemTotal: \xc2\xb2 kB\n", CGROUP, b"\xc2\xb2", b"anon \xc2\xb2\ninactive_file \xc2\xb2\n", "\u00b2")
@example(MEMINFO, b"0::/../../x\n", b"9" * 5000, b"inactive_file " + b"9" * 5000, "9" * 5000)
@example(MEMINFO, CGROUP, b"1", b"inactive_file x\n", "1")
@example(MEMINFO, b"0::/\x00\n", b"1", b"", "1")
def test_kernel_is_believed_or_not(
    folder: Path, meminfo: bytes, own: bytes, limit: bytes, stat: bytes, used: str
) -> None:
    """Names of groups may be any bytes; numbers are numbers, or nobody said anything."""
    root = folder / "sys"
    (root / "a" / "b").mkdir(parents=True, exist_ok=True)
    for name, content in (("memory.max", limit), ("memory.stat", stat), ("memory.current", used.encode())):
        (root / "a" / "b" / name).write_bytes(content)
    (folder / "meminfo").write_bytes(meminfo)
    (folder / "cgroup").write_bytes(own)
    with (
        mock.patch.object(memory, "MEMINFO", folder / "meminfo"),
        mock.patch.object(memory, "STATUS", folder / "meminfo"),
        mock.patch.object(cgroups, "OWN", folder / "cgroup"),
        mock.patch.object(cgroups, "ROOT", root),
    ):
        for number in (memory.available_bytes(), memory.cgroup_limit(), memory.private_bytes(), memory.file_bytes()):
            assert number is None or number >= 0
        assert all(group.limit >= 0 for group in memory.cgroups())
        assert cpus.most_threads(None) >= 1
        assert psi.own_group() is None
        state, _ = low_memory.LowMemory(2**20).look()
    assert state in low_memory.MemoryState


@given(anything(STAT).map(lambda data: data.decode(errors="replace")), st.sets(st.integers(0, 3), max_size=3))
@example("\n", {0})
@example("cpu0 " + "9" * 5000, {0})
@example("cpu0\n", {0})
@example("cpu0 " + "9" * 4000, {0})
def test_times_of_cpus_are_read_or_nothing(stat: str, wanted: set[int]) -> None:
    """Empty lines, numbers that are none."""
    times = cpus.cpu_times(stat, wanted, 100)
    assert times is None or len(times) == 2


quotas = texts | st.sampled_from(["max 100000", "50000 100000", "1 0", "\u0661 \u0662", "9" * 5000 + " 1"])


@given(st.lists(quotas, max_size=3))
@example(["1" + "0" * 400 + " 1"])
def test_quota_is_a_number_or_none(lines: list[str]) -> None:
    """Text that is none of it is no limit."""
    quota = cpus.quota_cpus(lines)
    assert quota is None or quota >= 0
    assert cpus.thread_limit(4, quota, None) >= 1


@given(anything(b"1234\n", b"0x50000\n"), st.sampled_from([10, 16]))
@example(b"9" * 5000, 10)
def test_number_of_a_small_file_is_one_or_none(folder: Path, data: bytes, base: int) -> None:
    """Sensors and firmware."""
    (folder / "number").write_bytes(data)
    number = kernel_files.number(folder / "number", base)
    assert number is None or isinstance(number, int)


@given(anything(MOUNTS.encode()).map(lambda data: data.decode(errors="replace")), texts)
@example("36 35 98:0 / /\\777 rw - ext3 x rw\n", "x")
def test_mounts_are_read_or_skipped(listing: str, below: str) -> None:
    """Whatever a mount point is called."""
    found = mounts.mount_of(Path("/") / below.replace("\0", ""), listing)
    if found is not None:
        danger = mounts.danger(found)
        assert danger is None or danger.what


SCRIPT = b'[[replies]]\nmatch = "x"\ntext = "y"\ncalls = [{ name = "n", arguments = { a = 1 } }]\n'


@given(anything(SCRIPT) | maps(("replies",)).map(lambda table: repr(table).encode()))
@example(b"a = " + b"[" * 5000)
@example(b"\xff")
@example(b'[[replies]]\nmatch = "("\n')
@example(b"a = " + b"9" * 5000)
def test_script_of_a_stand_in_is_read_or_refused(folder: Path, data: bytes) -> None:
    """With its file."""
    path = folder / "script.toml"
    path.write_bytes(data)
    try:
        scripted.read_script(path)
    except ConfigError as error:
        assert str(path) in str(error)


# -- values into statements, topics and payloads -----------------------------------------------------------------------

scraps = st.sampled_from(["{a}", "{b}", "{c}", "[", "]", ",", '"', "{", "}", "\\", ":", '{"x": ', "[{a}]"])
templates = st.lists(scraps | texts, max_size=6).map("".join)


@given(templates, st.dictionaries(st.sampled_from(["a", "b"]), json_values, max_size=2))
@example('{"x": "{a}"}', {"a": '"\\', "b": 1})
@example("[" * 5000, {})
@example('{"x": "{a}", "{b}": [1, {b}]}', {})
def test_templates_take_any_values(template: str, arguments: dict[str, Any]) -> None:
    """A payload that is JSON stays JSON, a topic keeps its levels; also where arguments were left out."""
    parameters = {"a": {"optional": True}, "b": {"optional": True}}
    tool_values.sentence(template, parameters, arguments)
    payload = tool_values.payload(template, parameters, arguments)
    if tool_values._is_json(template) and "{c}" not in template:
        msgspec.json.decode(payload)
    for value in arguments.values():
        assert isinstance(tool_values.sql_value(value), str | int | float | None)
    with contextlib.suppress(ToolFailed):
        assert tool_values.topic(template, parameters, arguments).count("/") == template.count("/")
