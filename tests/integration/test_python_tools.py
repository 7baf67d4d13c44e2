"""Python tools with real child processes: whatever a function does, it hurts no other and the next call works."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from edged import config
from edged.config import PythonTool
from edged.errors import ToolFailed
from edged.tools import child
from edged.tools.python import process
from edged.tools.python.worker import ToolWorker
from edged.tools.toolbox import Toolbox, resolve
from edged.types import ToolCall
from tests.support.broker import until
from tests.support.daemon import Daemon, Wired, entry

MODULE = '''
import asyncio, ctypes, enum, os, signal, subprocess, sys, threading, time
from pathlib import Path

print("imported")
calls = 0
held = []


class Bed(enum.Enum):
    NORTH = "north"
    SOUTH = "south"


def minutes(bed: Bed, dryness: int = 30) -> dict:
    """Minutes of water for one bed."""
    return {"bed": bed, "minutes": dryness // 2}


def count() -> list:
    """Calls of this process."""
    global calls
    calls += 1
    return [os.getpid(), calls]


async def count_async() -> int:
    """."""
    await asyncio.sleep(0)
    return os.getpid()


def about() -> dict:
    """."""
    limits = Path("/proc/self/limits").read_text()
    links = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")]
    files = [os.readlink(link) for link in links if os.path.islink(link)]
    return {
        "environment": dict(os.environ),
        "group": os.getpgid(0) == os.getpid() == os.getsid(0),
        "nice": os.nice(0),
        "folder": os.getcwd(),
        "path": sys.path[0],
        "edged": [name for name in sys.modules if name.startswith("edged")],
        "core": [line.split()[4] for line in limits.splitlines() if line.startswith("Max core")],
        "files": sorted(name.rpartition("/")[2].partition(":")[0] for name in files),
        "inherited": os.get_inheritable(int(sys.argv[1])),
        "stdin": sys.stdin.read(),
    }


def crash(how: str) -> None:
    """."""
    print("about to", how)
    if how == "segfault":
        ctypes.string_at(0)
    elif how == "exit":
        os._exit(3)
    elif how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "close":
        os.closerange(3, 100)
        time.sleep(60)
    elif how == "scribble":
        os.write(int(sys.argv[1]), bytes([0, 0, 0, 1, 255]))
        time.sleep(60)
    elif how == "flood":
        os.write(int(sys.argv[1]), bytes([255] * 100))
        time.sleep(60)
    elif how == "sys.exit":
        sys.exit("no")
    elif how == "large":
        return "x" * 100_000
    elif how == "object":
        return object()
    elif how == "raise":
        raise ValueError("no such bed")
    elif how == "memory":
        held.append(bytearray(400 * 2**20))
    elif how == "leak":
        held.append(bytearray(60 * 2**20))


def fork() -> int:
    """Comes back twice."""
    return os.fork()


def hang(path: str) -> None:
    """Does not end, and neither does what it started."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    started = subprocess.Popen(["sleep", "1000"])
    Path(path).write_text(f"{os.getpid()} {started.pid}")
    time.sleep(1000)


def wait(path: str, idempotency_key: str) -> str:
    """Until the file exists."""
    with Path(path + ".log").open("a") as log:
        log.write(idempotency_key + "\\n")
    while not Path(path).exists():
        time.sleep(0.005)
    return idempotency_key


def noisy(lines: int) -> int:
    """."""
    for n in range(lines):
        print("line", n)
    os.write(2, b"\\x1b[31mred\\xff without an end")
    return lines


def args(*x: int) -> None:
    """."""


def bare(x) -> None:
    """."""


def silent() -> None:
    pass
'''

Make = Callable[..., ToolWorker]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the modules."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "garden.py").write_text(MODULE)
    return tools


@pytest.fixture
async def make(folder: Path) -> AsyncIterator[Make]:
    """Makes workers for functions of the module; they are stopped, and then nothing of them is left."""
    workers: list[ToolWorker] = []

    def worker(function: str, *, idle_s: float = 60.0, **more: Any) -> ToolWorker:
        workers.append(ToolWorker(function, PythonTool(python=f"garden:{function}", **more), folder, idle_s=idle_s))
        return workers[-1]

    yield worker
    await asyncio.gather(*(worker.stop() for worker in workers))
    assert children() == set()


def children() -> set[int]:
    """Processes of this test."""
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="utf-8").split()}


def alive(pid: int) -> bool:
    """Whether a process runs (a dead one that nobody reaped does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_call_gives_what_the_function_returns_and_reuses_the_process(make: Make) -> None:
    """State of the module stays; an async function works too."""
    counting = make("count")
    assert children() == set()  # nothing runs before it is needed
    (pid, first), (same, second) = [await counting.call({}, "r", n) for n in range(2)]
    assert (first, second) == (1, 2)
    assert pid == same
    assert children() == {pid}
    assert await make("minutes").call({"bed": "north", "dryness": 9}, "r", 0) == {"bed": "north", "minutes": 4}
    assert await make("count_async").call({}, "r", 0) != pid


async def test_process_is_confined(make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group of its own, no files of the daemon, no words of the service manager, nothing of edged."""
    private = {
        "NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "MEMORY_PRESSURE_WATCH": "/x",
        "MEMORY_PRESSURE_WRITE": "x", "CREDENTIALS_DIRECTORY": "/x", "LISTEN_FDS": "1", "LISTEN_PID": "1",
        "LISTEN_FDNAMES": "x", "JOURNAL_STREAM": "1:2", "FDSTORE": "1",
    }  # fmt: skip
    for name, value in private.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GARDEN", "green")
    about = await make("about").call({}, "r", 0)
    assert not set(about["environment"]) & set(private)
    assert about["environment"]["GARDEN"] == "green"
    assert about["group"] is True
    assert about["nice"] == os.nice(0) + 5
    assert about["folder"] == about["path"] == str(folder)
    assert about["edged"] == []
    assert about["core"] == ["0"]
    assert about["files"] == ["null", "pipe", "pipe", "socket"]
    assert about["inherited"] is False
    assert about["stdin"] == ""


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("segfault", "its process ended (killed by SIGSEGV): a part of it may have happened"),
        ("exit", "its process ended (exit status 3): a part"),
        ("kill", "its process ended (killed by SIGKILL): a part"),
        ("close", "its process ended (killed by SIGKILL): a part"),
        ("scribble", "its process ended (killed, because it wrote into edged's own channel)"),
        ("flood", "its process ended (killed, because it wrote into edged's own channel)"),
        ("memory", "it needed more than 128MiB (memory): a part"),
        ("sys.exit", "SystemExit: no"),
        ("large", "its result has 100002 bytes"),
        ("object", "its result, an object, is no JSON"),
        ("raise", "ValueError: no such bed"),
    ],
)
async def test_function_that_goes_wrong_fails_with_its_reason_and_the_next_call_works(
    make: Make, how: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a new process where the old one is not to be trusted."""
    monkeypatch.setattr(process, "DYING_S", 0.1)
    tool, other = make("crash"), make("count")
    before = await other.call({}, "r", 0)
    with pytest.raises(ToolFailed) as caught:
        await tool.call({"how": how}, "r", 0)
    assert caught.value.message.startswith(says)
    assert await tool.call({"how": "nothing"}, "r", 1) is None
    assert (await other.call({}, "r", 2))[0] == before[0]


async def test_process_that_leaks_is_replaced_when_it_reaches_its_limit(make: Make) -> None:
    """60 MiB a call, 128 MiB in all."""
    tool = make("crash", effect="read")
    assert await tool.call({"how": "leak"}, "r", 0) is None
    with pytest.raises(ToolFailed, match=r"needed more than 128MiB \(memory\)$"):
        await tool.call({"how": "leak"}, "r", 1)
    assert await tool.call({"how": "leak"}, "r", 2) is None


async def test_function_that_forks_answers_once(make: Make) -> None:
    """The copy goes, and the channel stays in order."""
    tool = make("fork")
    copies = [await tool.call({}, "r", n) for n in range(3)]
    assert all(copies)
    assert len(set(copies)) == 3


async def test_time_limit_kills_the_function_and_what_it_started(make: Make, tmp_path: Path) -> None:
    """Whatever signals they ignore."""
    pids = tmp_path / "pids"
    tool = make("hang", timeout_s=1)  # enough for a busy machine to begin
    with pytest.raises(ToolFailed, match=r"longer than 1 s \(timeout_s\) and was killed: a part of it"):
        await tool.call({"path": str(pids)}, "r", 0)
    own, started = map(int, pids.read_text().split())
    assert not alive(own)
    await until(lambda: not alive(started))


async def test_time_limit_does_not_count_the_import(make: Make, folder: Path) -> None:
    """A large module would otherwise never be ready on a slow board."""
    (folder / "slow.py").write_text("import time\ntime.sleep(0.6)\ndef f() -> int:\n    return 1\n")
    slow = ToolWorker("slow", PythonTool(python="slow:f", timeout_s=0.5), folder)
    assert await slow.call({}, "r", 0) == 1
    await slow.stop()


async def test_calls_of_one_tool_wait_for_each_other_and_those_of_two_do_not(make: Make, tmp_path: Path) -> None:
    """One process serves one call at a time."""
    path, log = tmp_path / "go", tmp_path / "go.log"
    tool, other = make("wait"), make("count")
    first, second = [asyncio.create_task(tool.call({"path": str(path)}, "r", n)) for n in range(2)]
    await until(log.exists)
    assert (await other.call({}, "r", 0))[1] == 1
    assert log.read_text() == "r:0\n"
    path.touch()
    assert [await first, await second] == ["r:0", "r:1"]


async def test_cancelled_request_does_not_tear_a_call_in_two(make: Make, tmp_path: Path) -> None:
    """What was begun is finished; what waited for it is not begun."""
    path, log = tmp_path / "go", tmp_path / "go.log"
    tool = make("wait")
    first, second, third = [asyncio.create_task(tool.call({"path": str(path)}, "r", n)) for n in range(3)]
    await until(log.exists)
    first.cancel()
    second.cancel()
    ends = await asyncio.gather(first, second, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends)
    path.touch()
    assert await third == "r:2"
    assert log.read_text() == "r:0\nr:2\n"


async def test_call_of_a_cancelled_request_may_fail_without_a_word(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody waits for it any more."""
    tool = make("hang", timeout_s=1)
    call = asyncio.create_task(tool.call({"path": str(tmp_path / "pids")}, "r", 0))
    await until((tmp_path / "pids").exists)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: not children())
    await tool.stop()
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_process_ends_when_it_was_not_needed_for_a_while(make: Make) -> None:
    """And the next call starts another."""
    tool = make("count", idle_s=0.05)
    pid, _ = await tool.call({}, "r", 0)
    await until(lambda: not children())
    again, calls = await tool.call({}, "r", 1)
    assert (again == pid, calls) == (False, 1)


async def test_stop_kills_what_still_runs(make: Make, tmp_path: Path) -> None:
    """The call fails; its step is one of unknown outcome. Nothing is started afterwards."""
    tool = make("hang")
    call = asyncio.create_task(tool.call({"path": str(tmp_path / "pids")}, "r", 0))
    await until((tmp_path / "pids").exists)
    await tool.stop()
    with pytest.raises(ToolFailed, match="killed by SIGKILL"):
        await call
    with pytest.raises(ToolFailed, match="the daemon stops"):
        await tool.call({"path": "x"}, "r", 1)


async def test_prints_go_to_the_log_so_many_in_so_much_time(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """The protocol is not disturbed, and nothing of them steers a terminal."""
    caplog.set_level(logging.INFO, "edged.tools")
    tool = make("noisy")
    assert await tool.call({"lines": 3}, "r7", 0) == 3
    assert await tool.call({"lines": 20_000}, "r8", 0) == 20_000
    await tool.stop()
    lines = [record.getMessage() for record in caplog.records]
    assert lines[:4] == ["noisy: imported", "noisy: line 0", "noisy: line 1", "noisy: line 2"]
    assert lines[4].startswith("noisy: ?[31mred\ufffd without an endline 0")
    assert len(lines) == child.LINES + 1
    assert lines[-1].endswith("more lines were printed)")
    assert vars(caplog.records[1])["rid"] == "r7"


async def test_traceback_is_in_the_log_and_not_in_the_answer(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """A person needs the line, a model does not."""
    with pytest.raises(ToolFailed) as caught:
        await make("crash").call({"how": "raise"}, "r", 0)
    assert caught.value.message == "ValueError: no such bed"
    assert "garden.py" in caplog.text
    assert 'raise ValueError("no such bed")' in caplog.text


@pytest.mark.parametrize("bed", ["\ud800", 10**30])
async def test_argument_that_cannot_be_passed_on_fails_before_the_process_has_it(make: Make, bed: Any) -> None:
    """A model may write half a surrogate pair, or a number without end."""
    tool = make("minutes")
    with pytest.raises(ToolFailed, match="its arguments cannot be passed on: 'bed' holds "):
        await tool.call({"bed": bed}, "r", 0)
    assert await tool.call({"bed": "north"}, "r", 0) == {"bed": "north", "minutes": 15}


async def test_error_whose_text_is_no_text_is_told_and_ends_nothing(make: Make, folder: Path) -> None:
    """The name of a file may be any bytes, and an error quotes it; a docstring may hold half a surrogate pair."""
    (folder / "garden.py").write_text(CAM, encoding="utf-8")
    newest = make("newest")
    with pytest.raises(ToolFailed) as caught:
        await newest.call({}, "r", 0)
    assert caught.value.message == r"ValueError: T\udcfcr_2026.jpg is no picture"
    pid = await make("number").call({}, "r", 1)
    assert pid > 0


CAM = r'''
import os
from pathlib import Path


def newest() -> dict:
    """Size of the newest picture."""
    folder = Path("pictures")
    folder.mkdir(exist_ok=True)
    open(os.path.join(b"pictures", b"T\xfcr_2026.jpg"), "w").close()
    print("looking", os.listdir("pictures"), "\ud800", os.listdir("pictures")[-1])
    raise ValueError(f"{sorted(os.listdir('pictures'))[-1]} is no picture")


def number() -> int:
    """\ud83d"""
    return os.getpid()
'''


async def test_module_that_cannot_be_imported_any_more_fails_the_call(make: Make, folder: Path) -> None:
    """It was changed since the start; repaired, it works again."""
    tool = make("count")
    (folder / "garden.py").write_text("1 / 0")
    with pytest.raises(ToolFailed, match="garden:count: cannot be imported: ZeroDivisionError"):
        await tool.call({}, "r", 0)
    (folder / "garden.py").write_text("def other() -> int: ...")
    with pytest.raises(ToolFailed, match="garden:count: the module has no function 'count'"):
        await tool.call({}, "r", 0)
    (folder / "garden.py").write_text(MODULE)
    assert (await tool.call({}, "r", 0))[1] == 1


# -- signatures ----------------------------------------------------------------------------------------------------


def settings(folder: Path, text: str) -> config.Config:
    """A configuration beside the folder."""
    path = folder.parent / "edged.toml"
    path.write_text(text)
    return config.load(str(path))


def table(function: str, more: str = "", *, name: str = "t", module: str = "garden") -> str:
    """A tool's table."""
    return f'[tools.{name}]\npython = "{module}:{function}"\n{more}\n'


async def test_resolve_fills_in_what_the_function_says_and_the_configuration_goes_before(folder: Path) -> None:
    """Afterwards it is a tool like any other."""
    text = table("minutes", "parameters.dryness = { minimum = 0, default = 50 }", name="a")
    text += table("minutes", 'description = "Water."\nsay = "{bed}!"\nexamples = [{ input = "x" }]', name="b")
    filled, problems = await resolve(settings(folder, text))
    assert problems == []
    first, second = filled.tools["a"], filled.tools["b"]
    assert (first.description, second.description) == ("Minutes of water for one bed.", "Water.")
    assert first.parameters["bed"]["enum"] == ["north", "south"]
    assert first.parameters["dryness"] == {"type": "integer", "default": 50, "minimum": 0}
    assert second.parameters["dryness"] == {"type": "integer", "default": 30}
    toolbox = Toolbox(filled)
    assert await toolbox.call(ToolCall("a", {"bed": "south"}), "r", 0) == {"bed": "south", "minutes": 25}
    with pytest.raises(ToolFailed, match="missing bed"):
        await toolbox.call(ToolCall("a", {}), "r", 0)
    await toolbox.stop()
    assert children() == set()


PROBLEMS = [
    (table("nothing"), "python: the module has no function 'nothing'"),
    (table("Bed"), "python: 'Bed' is no function"),
    (table("args"), "python: *x: a model needs parameters with names"),
    (table("bare"), "python: parameter 'x' has no type hint"),
    (table("silent"), "description: is missing: the function has no docstring"),
    (table("f", module="missing"), "python: module 'missing' cannot be imported: ModuleNotFoundError: No module"),
    (table("f", module="broken"), "python: module 'broken' cannot be imported: SyntaxError"),
    (table("f", module="leaving"), "python: module 'leaving' cannot be imported: its process ended meanwhile (exit st"),
    (table("minutes", "parameters.colour = {}"), "parameters.colour: the function has no such parameter; it has bed"),
    (table("minutes", "parameters.bed.optional = true"), "parameters.bed.optional: the function needs a value: give"),
    (table("minutes", "parameters.dryness.optional = true"), "parameters.dryness.optional: what has a default may be"),
    (table("minutes", 'say = "{colour}"'), "say: {colour} is no parameter; declared are bed, dryness"),
    (table("minutes", 'examples = [{ input = "", arguments = { a = 1 } }]'), "examples[0]: 'a' is no parameter"),
]


@pytest.mark.parametrize(("text", "says"), PROBLEMS, ids=[says[:50] for _, says in PROBLEMS])
async def test_resolve_names_file_and_key_of_what_is_wrong(folder: Path, text: str, says: str) -> None:
    """The file is the one that has the tool; a tool beside it is read all the same."""
    (folder / "broken.py").write_text("def f(:")
    (folder / "leaving.py").write_text("import os\nprint('good bye', flush=True)\nos._exit(5)")
    drop_in = folder.parent / "conf.d" / "10.toml"
    drop_in.parent.mkdir()
    drop_in.write_text(text)
    filled, problems = await resolve(settings(folder, table("count", name="good")))
    (problem,) = problems
    assert str(problem).startswith(f"{drop_in}:{problem.line}: tools.t.{says}")
    assert "leaving" not in text or str(problem).endswith("(exit status 5); it printed last: good bye")
    assert filled.tools["good"].description == "Calls of this process."


async def test_resolve_gives_a_module_up_that_does_not_end_its_import(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start is not held up for ever."""
    monkeypatch.setattr(process, "START_S", 0.2)
    (folder / "stuck.py").write_text("import time\ntime.sleep(1000)")
    _, problems = await resolve(settings(folder, table("f", module="stuck")))
    assert "cannot be imported: that took longer than 0 s" in str(problems[0])
    assert children() == set()


async def test_resolve_without_the_folder_says_where_it_should_be(tmp_path: Path) -> None:
    """Beside the configuration."""
    _, problems = await resolve(settings(tmp_path / "tools", table("f")))
    assert f"there is no folder {tmp_path / 'tools'}" in str(problems[0])


def test_command_line_refuses_a_tool_that_cannot_be_read(folder: Path) -> None:
    """EX_CONFIG, with file and key. (A daemon leaves it out.)"""
    settings(folder, f'[node]\nstate_dir = "{folder}/state"\nruntime_dir = "{folder}/run"\n' + table("nothing"))
    file = str(folder.parent / "edged.toml")
    done = subprocess.run(
        [sys.executable, "-m", "edged", "check", "--config", file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 78
    assert f"{file}:5: tools.t.python: the module has no function 'nothing'" in done.stderr


# -- with the daemon -----------------------------------------------------------------------------------------------

GARDENER = """
[agents.gardener]
model = "small"
tools = ["minutes", "wait"]
[tools.minutes]
python = "garden:minutes"
effect = "read"
[tools.wait]
python = "garden:wait"
on_uncertain = "ON_UNCERTAIN"
timeout_s = 30
"""


class Garden(Daemon):
    """A daemon with an agent that has Python tools."""

    def __init__(self, folder: Path, on_uncertain: str = "report") -> None:
        (folder.parent / "garden").mkdir(exist_ok=True)  # a folder that holds nothing of edged's
        self.go, self.keys = folder.parent / "garden" / "go", folder.parent / "garden" / "go.log"
        script = entry("water", {"name": "minutes", "arguments": {"bed": "north", "dryness": 8}}, text="Four.")
        script += entry("wait", {"name": "wait", "arguments": {"path": str(self.go)}}, text="It came.")
        super().__init__(folder.parent, config=GARDENER.replace("ON_UNCERTAIN", on_uncertain), script=script)

    async def ask(self, text: str) -> Any:
        """The reply."""
        async with Wired(self.socket) as client:
            error, reply = await client.call(1, "agent.ask", {"agent": "gardener", "input": text, "id": text})
        assert error is None
        return reply

    def begun(self) -> list[str]:
        """The keys with which the waiting tool was called."""
        return self.keys.read_text().split() if self.keys.exists() else []


async def test_agent_uses_a_python_tool_and_tools_list_shows_it_like_any_other(folder: Path) -> None:
    """Call, result and answer are in the reply."""
    async with Garden(folder) as daemon:
        reply = await daemon.ask("water")
        assert (reply["status"], reply["output"]) == ("done", "Four.")
        arguments = {"bed": "north", "dryness": 8}
        assert reply["tool_calls"] == [
            {"name": "minutes", "arguments": arguments, "result": {"bed": "north", "minutes": 4}, "ok": True}
        ]
        async with Wired(daemon.socket) as client:
            _, tools = await client.call(1, "tools.list")
        shown = {tool["name"]: tool for tool in tools}
        assert shown["minutes"]["description"] == "Minutes of water for one bed."
        assert shown["minutes"]["effect"] == "read"
        assert shown["minutes"]["parameters"]["required"] == ["bed"]
        assert (shown["wait"]["effect"], list(shown["wait"]["parameters"]["properties"])) == ("write", ["path"])
        assert await daemon.stop() == 0


@pytest.mark.parametrize(("on_uncertain", "status", "calls"), [("report", "failed", 1), ("retry", "done", 2)])
async def test_daemon_killed_while_a_tool_runs_takes_it_along_and_follows_on_uncertain(
    folder: Path, on_uncertain: str, status: str, calls: int
) -> None:
    """`report` does nothing more and says so; `retry` calls again, with the same key."""
    async with Garden(folder, on_uncertain) as daemon:
        async with Wired(daemon.socket) as client:
            client.send([0, 1, "agent.ask", [{"agent": "gardener", "input": "wait", "id": "wait"}]])
            await until(daemon.begun)
            (child,) = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text(encoding="utf-8").split()
            await daemon.kill()
        await until(lambda: not alive(int(child)))
        daemon.go.touch()
        await daemon.start()
        reply = await daemon.ask("wait")
        assert reply["status"] == status, reply["error"]
        assert daemon.begun() == [f"{reply['rid']}:0"] * calls
        if on_uncertain == "report":
            assert reply["error"]["code"] == "tool_failed"
            assert "may have happened" in reply["error"]["message"]
        await daemon.stop()


@pytest.mark.parametrize(("on_uncertain", "status", "calls"), [("report", "failed", 0), ("retry", "done", 1)])
async def test_daemon_killed_between_intent_and_call_follows_on_uncertain(
    folder: Path, on_uncertain: str, status: str, calls: int
) -> None:
    """It cannot know that nothing was done."""
    daemon = Garden(folder, on_uncertain)
    daemon.go.touch()
    try:
        await daemon.start("journal.intent")
        async with Wired(daemon.socket) as client:
            client.send([0, 1, "agent.ask", [{"agent": "gardener", "input": "wait", "id": "wait"}]])
            await client.end()
        assert await daemon.ended() == -signal.SIGKILL
        await daemon.start()
        reply = await daemon.ask("wait")
        assert reply["status"] == status, reply["error"]
        assert len(daemon.begun()) == calls
        await daemon.stop()
    finally:
        await daemon.__aexit__()


async def test_read_is_done_again_after_a_kill_whatever_on_uncertain_says(folder: Path) -> None:
    """`report` is for what changes something."""
    daemon = Garden(folder)
    try:
        await daemon.start("journal.intent")
        async with Wired(daemon.socket) as client:
            client.send([0, 1, "agent.ask", [{"agent": "gardener", "input": "water", "id": "water"}]])
            await client.end()
        assert await daemon.ended() == -signal.SIGKILL
        await daemon.start()
        assert (await daemon.ask("water"))["output"] == "Four."
        await daemon.stop()
    finally:
        await daemon.__aexit__()


@pytest.mark.slow  # the daemon gives running requests some seconds
async def test_stop_of_the_daemon_ends_a_tool_that_hangs(folder: Path) -> None:
    """It does not wait for it longer than for any request; the step is one of unknown outcome."""
    async with Garden(folder) as daemon:
        async with Wired(daemon.socket) as client:
            client.send([0, 1, "agent.ask", [{"agent": "gardener", "input": "wait", "id": "wait"}]])
            await until(daemon.begun)
            (child,) = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text(encoding="utf-8").split()
            assert await daemon.stop() == 0
        assert not alive(int(child))
        daemon.go.touch()
        await daemon.start()
        assert "may have happened" in (await daemon.ask("wait"))["error"]["message"]
        await daemon.stop()
