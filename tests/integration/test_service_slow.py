"""edged as a service: installed without a network on a Debian with a real systemd, used, killed, hung, reloaded,
rebooted, upgraded and removed.

The tests are one story on one machine, in this order. What each took is printed at the end, and written as JSON to
$EDGED_TEST_SERVICE_JSON, else into the cache folder.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from edged.client import Client
from scripts.benchmarks import report
from tests.support import vm as machines
from tests.support.daemon import entry, note
from tests.support.vm import Machine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(machines.reason_to_skip()), reason=machines.reason_to_skip() or ""),
]

UP_S = 30.0  # from whatever happened to a service that answers; a second on an idle machine
WATCHDOG_S = 3  # instead of the unit's 30 s, so that a hang is noticed while somebody waits for the test
SOCKET, HTTP = "/run/edged/edged.sock", "/run/edged/http.sock"
PLANT, DIARY = "/var/lib/plant/plant.db", "/home/pi/diary/diary.db"
REQUEST_TOPIC = "edged/lab/agents/house/request"
LONG = 60  # words of an answer that takes LONG * WORD_S: time enough to do something to the daemon in its middle
WORD_S = 0.1

CONFIG = f"""
[node]
id = "lab"

[databases.plant]
path = "{PLANT}"
mode = "rw"

[databases.diary]
path = "{DIARY}"
mode = "rw"

[models.small]
source = "scripted:/etc/edged/script.toml"

[agents.house]
model = "small"
tools = ["set_valve", "note", "inside"]

[tools.set_valve]
description = "Open or close one valve."
database = "plant"
sql = "INSERT INTO valve_commands(valve) VALUES (:valve)"
effect = "write"
say = "Valve {{valve}} is open."
parameters.valve = {{ enum = ["north", "south"] }}

[tools.note]
description = "Write something into the diary."
database = "diary"
sql = "INSERT INTO diary(text) VALUES (:text)"
effect = "write"
parameters.text = {{ type = "string" }}

[tools.inside]
python = "inside:inside"
effect = "read"
"""

# A tool that says what the sandbox lets it do.
INSIDE = '''
import os, socket, ssl, tempfile
from pathlib import Path


def inside() -> dict:
    """What a tool finds in the service."""
    def writable(folder: str) -> bool:
        try:
            with tempfile.NamedTemporaryFile(dir=folder):
                return True
        except OSError:
            return False

    def readable(path: str) -> bool:
        try:
            with open(path, "rb"):
                return True
        except OSError:
            return False

    def ends() -> bool:
        try:
            os.kill(os.getppid(), 0)
            return True
        except OSError:
            return False

    return {
        "own": [f for f in ("/var/lib/edged/edged.db", "/var/lib/edged/edged.lock") if readable(f)],
        "configuration": readable("/etc/edged/edged.toml"),
        "ends the daemon": ends(),
        "writable": [f for f in ("/etc/edged", "/usr", "/home/pi", "/var/lib/plant", "/tmp") if writable(f)],
        "homes": sorted(os.listdir("/home")),
        "devices": os.path.exists("/dev/tty"),
        "passed": [name for name in os.environ if name.startswith("LISTEN_")],
        "resolves": bool(socket.getaddrinfo("localhost", 80)),
        "tls": bool(ssl.create_default_context()),
        "loads": len(Path("/proc/meminfo").read_text()) > 0,
    }
'''

SCRIPT = "".join(
    (
        entry("open the north valve", {"name": "set_valve", "arguments": {"valve": "north"}}),
        entry("write this and go on", note("once"), text="word " * LONG, token_s=WORD_S),
        entry("look inside", {"name": "inside", "arguments": {}}, text="seen"),
        entry("hello", text="hello"),
    )
)


class Service:
    """edged on the machine, as its users and its administrator see it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def ask(self, text: str, **fields: Any) -> dict[str, Any]:
        """Over the Unix socket, as root."""
        with Client(self.machine.path(SOCKET), timeout_s=UP_S) as client:
            return client.ask(text, **fields)

    def ask_until_answered(self, text: str, id: str) -> dict[str, Any]:
        """As a client whose request must not be lost: whenever its connection ends, it asks again under the id."""
        until = time.monotonic() + UP_S
        while True:
            try:
                return self.ask(text, id=id)
            except ConnectionError:
                if time.monotonic() > until:
                    raise

    def ask_mqtt(self, text: str) -> dict[str, Any]:
        """Over the broker of the machine."""
        command = ["mosquitto_rr", "-V", "5", "-q", "1", "-t", REQUEST_TOPIC, "-e", "lab/reply", "-W", "20", "-m", text]
        reply: dict[str, Any] = json.loads(self.machine.do(*command))
        return reply

    def show(self, name: str, unit: str = "edged.service") -> str:
        """What systemd says about the unit."""
        return self.machine.do("systemctl", "show", "--value", "-p", name, unit).strip()

    @property
    def active(self) -> bool:
        """Whether it is up and ready."""
        return self.show("ActiveState") == "active"

    @property
    def pid(self) -> int:
        """Of the daemon, inside."""
        return int(self.show("MainPID"))

    def kill(self, signal: str) -> None:
        """A signal to the daemon itself."""
        self.machine.do("systemctl", "kill", f"--signal={signal}", "--kill-who=main", "edged")

    def journal(self, since: float) -> str:
        """What it logged since then (seconds since the epoch)."""
        return self.machine.do("journalctl", "-u", "edged.service", "-o", "cat", f"--since=@{since:.3f}")

    def until_new(self, old_pid: int) -> float:
        """Wait until another process is up and ready; the seconds that took."""
        return self.machine.until(
            lambda: self.active and self.pid not in (0, old_pid), UP_S, f"no new daemon; {self.journal(0)[-3000:]}"
        )

    def rows(self, path: str, table: str) -> list[str]:
        """A column of one of its tools' databases."""
        code = f"import sqlite3; print(*(r[0] for r in sqlite3.connect('{path}').execute('SELECT * FROM {table}')))"
        return self.machine.do("python3", "-c", code).split()

    def running(self, id: str) -> None:
        """Wait until its answer is being made."""
        with Client(self.machine.path(SOCKET), timeout_s=UP_S) as client:

            def has_begun() -> bool:
                return id in [row["id"] for row in client.call("requests.list", {"state": "running"})]

            self.machine.until(has_begun, UP_S, f"{id} does not run")
        self.machine.until(lambda: self.rows(DIARY, "diary"), UP_S, "nothing written")


@contextlib.contextmanager
def configured(machine: Machine, text: str) -> Iterator[None]:
    """With more in the configuration; taken out again whatever happens, for the scenarios that follow."""
    machine.put("/etc/edged/conf.d/zz.toml", text)
    try:
        yield
    finally:
        machine.do("rm", "/etc/edged/conf.d/zz.toml")


class Record:
    """What each scenario took."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def __call__(self, scenario: str) -> Iterator[Callable[[str], None]]:
        """Around what is timed; the function it gives takes what came of it."""
        outcome = ""

        def tell(text: str) -> None:
            nonlocal outcome
            outcome = text

        began = time.monotonic()
        try:
            yield tell
        except BaseException:
            outcome = "failed"
            raise
        finally:
            self.rows.append({"scenario": scenario, "seconds": round(time.monotonic() - began, 2), "outcome": outcome})


@pytest.fixture(scope="module")
def record(request: pytest.FixtureRequest) -> Iterator[Record]:
    """Shown and written at the end."""
    record = Record()
    yield record
    document = {"bench": "service", "machine": report.machine(), "versions": report.versions(), "rows": record.rows}
    path = Path(os.environ.get("EDGED_TEST_SERVICE_JSON") or machines.LAB / "service.json")
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        print("\n")
        for row in record.rows:
            print(f"{row['seconds']:8.2f} s  {row['scenario']}: {row['outcome']}")
        print(f"written to {path}")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Booted, with what scripts/install needs in /srv, and without a network."""
    root, wheelhouse = machines.prepared()
    folder = tmp_path_factory.mktemp("machine")
    try:
        machine = Machine(folder, root)
        shutil.copytree(wheelhouse, machine.folder / "srv" / "wheelhouse")
        for name in ("scripts", "systemd"):
            shutil.copytree(machines.ROOT / name, machine.folder / "srv" / "edged" / name)
        with machine:
            yield machine
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def service(machine: Machine) -> Service:
    """Of the machine."""
    return Service(machine)


INSTALL = ("/srv/edged/scripts/install", "--wheelhouse", "/srv/wheelhouse")


def test_install_without_a_network_leaves_a_configuration_that_lacks_its_model_only(
    machine: Machine, record: Record
) -> None:
    """User, folders, link, units; nothing is started."""
    with record("scripts/install --wheelhouse, from nothing") as tell:
        machine.do(*INSTALL, within_s=300)
        tell("installed without a network")
    assert machine.status("edged", "check") == 78
    problems = machine.run("sh", "-c", "edged check 2>&1").splitlines()
    assert len(problems) == 1, problems
    assert "is not installed: edged models pull" in problems[0]
    assert machine.do("id", "-nG", "edged").split() == ["edged"]
    assert machine.do("stat", "-c", "%U %G %a", "/var/lib/edged", "/etc/edged/secrets").splitlines() == [
        "edged edged 750",
        "root root 700",
    ]
    assert machine.do("readlink", "-f", "/usr/local/bin/edged").startswith("/opt/edged.releases/")
    assert machine.run("systemctl", "is-active", "edged.service", "edged.socket").split() == ["inactive", "inactive"]


def test_configuration_opens_the_sandbox_for_its_databases(machine: Machine) -> None:
    """One below /var/lib, one in a home that others may not enter."""
    machine.do("useradd", "--create-home", "pi")
    machine.do("chmod", "700", "/home/pi")
    for path, table in ((PLANT, "valve_commands(valve TEXT)"), (DIARY, "diary(text TEXT)")):
        folder = str(Path(path).parent)
        machine.do("mkdir", folder)
        code = (
            f"import sqlite3; sqlite3.connect('{path}').executescript('PRAGMA journal_mode=WAL; CREATE TABLE {table}')"
        )
        machine.do("python3", "-c", code)
        machine.do("chown", "-R", "edged:edged", folder)
    machine.put("/etc/edged/conf.d/lab.toml", CONFIG)
    machine.put("/etc/edged/script.toml", SCRIPT)
    machine.put("/etc/edged/tools/inside.py", INSIDE)
    machine.put("/etc/systemd/system/edged.service.d/60-lab.conf", f"[Service]\nWatchdogSec={WATCHDOG_S}\n")
    machine.do("edged", "check")
    machine.do("/srv/edged/scripts/install", "--units-only")
    opened = machine.do("cat", "/etc/systemd/system/edged.service.d/50-configuration.conf").splitlines()
    assert "ReadWritePaths=-/var/lib/plant" in opened
    assert "BindPaths=-/home/pi/diary" in opened


def test_enable_now_starts_it_with_its_sockets(machine: Machine, service: Service, record: Record) -> None:
    """And both come with the next boot."""
    with record("systemctl enable --now edged") as tell:
        machine.do("systemctl", "enable", "--now", "edged")
        tell("active")
    assert service.active
    assert machine.do("systemctl", "is-enabled", "edged.service", "edged.socket").split() == ["enabled", "enabled"]
    assert machine.do("stat", "-c", "%U %G %a", SOCKET, HTTP).splitlines() == ["edged edged 660"] * 2
    assert "1 agents" in service.show("StatusText")


def test_ask_over_the_unix_socket_and_mqtt(machine: Machine, service: Service, record: Record) -> None:
    """The tools reach their databases, also the one in a home."""
    with record("a request over the Unix socket") as tell:
        assert service.ask("open the north valve")["output"] == "Valve north is open."
        tell("done")
    with record("a request over MQTT") as tell:
        assert service.ask_mqtt("open the north valve")["output"] == "Valve north is open."
        tell("done")
    assert service.rows(PLANT, "valve_commands") == ["north"] * 2
    assert machine.do("edged", "ask", "hello").strip() == "hello"


def test_ask_over_http(service: Service, record: Record) -> None:
    """On the second socket of the unit."""
    connection = http.client.HTTPConnection("localhost")
    with record("a request over HTTP") as tell, contextlib.closing(connection):
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(UP_S)
        connection.sock.connect(str(service.machine.path(HTTP)))
        body = json.dumps({"model": "house", "messages": [{"role": "user", "content": "hello"}]})
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200
        assert json.loads(answer.read())["choices"][0]["message"]["content"] == "hello"
        tell("done")


def test_strangers_do_not_get_in_and_members_of_the_group_do(machine: Machine) -> None:
    """By the socket's mode."""
    as_pi = ("runuser", "-u", "pi", "--", "edged", "ask", "hello")
    assert machine.status(*as_pi) == 77
    machine.do("usermod", "-aG", "edged", "pi")
    assert machine.do(*as_pi).strip() == "hello"


def test_sandbox_holds_and_lets_a_tool_work(service: Service) -> None:
    """Only the state and the configured folders can be written; no devices, no homes, no sockets of ours. edged's own
    files are closed to it, and it sends the daemon no signals."""
    reply = service.ask("look inside")
    assert reply["status"] == "done", reply
    [call] = reply["tool_calls"]
    assert call["result"] == {
        "own": [],
        "configuration": True,
        "ends the daemon": False,
        "writable": ["/var/lib/plant", "/tmp"],
        "homes": ["pi"],
        "devices": True,
        "passed": [],
        "resolves": True,
        "tls": True,
        "loads": True,
    }


def test_kill_amid_a_request_loses_nothing_and_does_nothing_twice(service: Service, record: Record) -> None:
    """The client asks again under the same id, and waits on the socket until somebody is there."""
    old = service.pid
    with ThreadPoolExecutor() as pool:
        first = pool.submit(service.ask, "write this and go on", id="killed")
        service.running("killed")
        with record("SIGKILL amid a request, until it is answered") as tell:
            service.kill("KILL")
            with pytest.raises(ConnectionError):
                first.result(UP_S)
            reply = service.ask_until_answered("write this and go on", "killed")
            tell(f"answered, its effect happened once; restart included, {LONG * WORD_S:.0f} s are the answer itself")
    assert reply["status"] == "done", reply
    assert service.rows(DIARY, "diary") == ["once"]
    assert service.pid not in (0, old)
    assert service.show("NRestarts") != "0" or service.show("ActiveState") == "active"


def test_clients_that_call_during_restarts_are_all_served(machine: Machine, service: Service, record: Record) -> None:
    """Nobody is refused: not by a restart that was asked for, nor by a kill."""
    answered, failed, done = 0, [], threading.Event()

    def keep_asking() -> None:
        nonlocal answered
        while not done.is_set():
            try:
                assert service.ask("hello")["output"] == "hello"
                answered += 1
            except ConnectionResetError:
                continue  # it was connected when the daemon was killed
            except Exception as error:
                if "before it answered" not in str(error) and "is stopping" not in str(error):
                    failed.append(repr(error))

    with record("systemctl restart and SIGKILL with a client that always asks") as tell, ThreadPoolExecutor() as pool:
        asking = pool.submit(keep_asking)
        try:
            for cause in (lambda: machine.do("systemctl", "restart", "edged"), lambda: service.kill("KILL")):
                old, before = service.pid, answered
                cause()
                service.until_new(old)
                machine.until(lambda before=before: answered > before, UP_S, "no answer")  # type: ignore[misc]
        finally:
            done.set()
            asking.result(UP_S)
        assert not failed
        tell("never refused")


def test_daemon_that_hangs_is_ended_with_its_stacks_in_the_journal(service: Service, record: Record) -> None:
    """The watchdog; it is the unit's own, with a shorter patience here."""
    since, old = time.time(), service.pid
    with record(f"a hang (SIGSTOP), with WatchdogSec={WATCHDOG_S}") as tell:
        service.kill("STOP")
        assert service.ask_until_answered("hello", "hung")["output"] == "hello"
        tell("noticed, restarted and answered")
    assert service.pid not in (0, old)
    told = service.journal(since)
    assert "Watchdog timeout" in told
    assert "Fatal Python error: Aborted" in told, told


def test_daemon_that_dies_again_and_again_is_started_again_and_again(service: Service, record: Record) -> None:
    """Also with somebody who waits on the socket all the time, which starts it at once."""
    times = 12  # more often than the socket unit lets itself be triggered
    took = []
    with record(f"SIGKILL {times} times in a row, a client always waiting") as tell:
        for _ in range(times):
            old, began = service.pid, time.monotonic()
            service.kill("KILL")
            with contextlib.suppress(OSError):
                service.ask("hello")
            service.until_new(old)
            took.append(time.monotonic() - began)
        assert service.ask("hello")["output"] == "hello"
        tell(f"up again every time, after {statistics.median(took):.1f} s (median), {max(took):.1f} s (longest)")


def test_reload_takes_a_right_configuration_and_refuses_a_wrong_one(
    machine: Machine, service: Service, record: Record
) -> None:
    """In the same process; the line of `systemctl status` says what was refused."""
    old = service.pid
    with (
        configured(machine, "[agents.house]\ncolour = 1\n"),
        record("systemctl reload with a wrong configuration") as tell,
    ):
        machine.do("systemctl", "reload", "edged")
        machine.until(lambda: "not reloaded" in service.show("StatusText"), UP_S, "no word about it")
        assert service.ask("hello")["output"] == "hello"
        tell("refused with its reason, the old one stays")
    assert "agents.house.colour" in service.show("StatusText")
    garden = '[agents.garden]\nmodel = "small"\n'
    with configured(machine, garden), record("systemctl reload with a right one") as tell:
        machine.do("systemctl", "reload", "edged")
        machine.until(lambda: "2 agents" in service.show("StatusText"), UP_S, "not in force")
        assert service.ask("hello", agent="garden")["output"] == "hello"
        tell("in force, in the same process")
    machine.do("systemctl", "reload", "edged")
    machine.until(lambda: "1 agents" in service.show("StatusText"), UP_S, "not in force")
    assert (service.pid, service.active) == (old, True)


def test_stop_amid_work_is_clean_and_the_work_is_done_after_the_next_start(
    machine: Machine, service: Service, record: Record
) -> None:
    """Within its time: the request goes back into the queue."""
    with ThreadPoolExecutor() as pool:
        first = pool.submit(service.ask, "write this and go on", id="stopped")
        service.running("stopped")
        with record("systemctl stop amid a request") as tell:
            machine.do("systemctl", "stop", "edged.socket", "edged.service")
            tell("clean")
        with pytest.raises((ConnectionError, OSError)):
            first.result(UP_S)
    assert (service.show("Result"), service.show("ExecMainStatus")) == ("success", "0")
    assert machine.status("test", "-e", SOCKET) == 1
    with record("systemctl start, until that request is answered") as tell:
        machine.do("systemctl", "start", "edged")
        reply = service.ask("write this and go on", id="stopped")
        tell("answered, its effect happened once")
    assert reply["status"] == "done"
    assert service.rows(DIARY, "diary") == ["once"] * 2


def test_reboot_brings_it_back_with_all_it_knows(machine: Machine, service: Service, record: Record) -> None:
    """Answers that were given before are there, and nothing is done again."""
    assert service.ask("open the north valve", id="before")["status"] == "done"
    written = service.rows(PLANT, "valve_commands")
    machine.shut_down()
    with record("from power on until it is active") as tell:
        machine.boot()
        machine.until(lambda: service.active, UP_S, "not active")
        tell("active")
    assert service.ask("open the north valve", id="before")["status"] == "done"
    assert service.rows(PLANT, "valve_commands") == written
    assert service.ask_mqtt("hello")["output"] == "hello"


def test_wrong_configuration_ends_it_with_78_and_no_loop(machine: Machine, service: Service, record: Record) -> None:
    """Not even with a client who waits on the socket; after a correction a start is enough."""
    since, restarts = time.time(), service.show("NRestarts")
    with (
        configured(machine, "[node]\ncolour = 1\n"),
        record("a wrong configuration, until systemd gives up") as tell,
    ):
        assert machine.status("systemctl", "restart", "edged") != 0
        assert (service.show("ExecMainStatus"), service.show("ActiveState")) == ("78", "failed")
        with pytest.raises(ConnectionError):  # who waits is told in the end
            service.ask("hello")
        machine.until(lambda: service.show("ActiveState", "edged.socket") == "failed", UP_S, "it goes on and on")
        tell("exit status 78, no restart loop, clients are told")
    starts = service.journal(since).count("node.colour")
    assert 1 < starts <= 12, "the socket unit's TriggerLimitBurst, and the first"
    assert service.show("NRestarts") == restarts
    with record("systemctl start after the correction") as tell:
        machine.do("systemctl", "start", "edged")
        assert service.ask("hello")["output"] == "hello"
        tell("active")
    assert service.show("ActiveState", "edged.socket") == "active"


def test_install_again_upgrades_the_running_service_and_keeps_the_configuration(
    machine: Machine, service: Service, record: Record
) -> None:
    """The old version goes when the new one runs."""
    old, release = service.pid, machine.do("readlink", "-f", "/opt/edged/bin")
    before = machine.do("sh", "-c", "cat /etc/edged/edged.toml /etc/edged/conf.d/*")
    machine.put("/etc/edged/edged.toml", machine.path("/etc/edged/edged.toml").read_text() + "# mine\n")
    with record("scripts/install again, over the running service") as tell:
        machine.do(*INSTALL, within_s=300)
        tell("upgraded and restarted")
    assert service.active
    assert service.pid not in (0, old)
    assert machine.do("sh", "-c", "cat /etc/edged/edged.toml /etc/edged/conf.d/*") != before
    assert machine.path("/etc/edged/edged.toml").read_text().endswith("# mine\n")
    assert machine.do("readlink", "-f", "/opt/edged/bin") != release
    assert len(machine.do("ls", "/opt/edged.releases").split()) == 1
    assert service.ask("hello")["output"] == "hello"


def test_uninstall_leaves_configuration_and_state_only(machine: Machine, record: Record) -> None:
    """Nothing of it runs or starts any more."""
    with record("scripts/install --uninstall") as tell:
        machine.do("/srv/edged/scripts/install", "--uninstall")
        tell("configuration and state are left")
    assert machine.run("pgrep", "-u", "edged").strip() == ""
    for gone in (
        "/opt/edged",
        "/opt/edged.releases",
        "/usr/local/bin/edged",
        "/etc/systemd/system/edged.service",
        "/run/edged/edged.sock",
    ):
        assert machine.status("test", "-e", gone) == 1, gone
    assert machine.run("systemctl", "is-enabled", "edged.service").strip() != "enabled"
    for kept in ("/etc/edged/edged.toml", "/var/lib/edged/edged.db"):
        assert machine.status("test", "-e", kept) == 0, kept
