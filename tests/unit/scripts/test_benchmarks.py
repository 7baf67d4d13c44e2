"""What the benchmarks conclude from what they measured: figures, and whether a call is the wanted one."""

from __future__ import annotations

import asyncio
import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edged.engines.llama import gguf
from tests.support.broker import Mosquitto

SCRIPTS = Path(__file__).parents[3] / "scripts"


@pytest.fixture(name="module")
def _module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports `benchmarks.NAME` the way scripts/bench finds it; afterwards nothing of it is left."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield lambda name: importlib.import_module(f"benchmarks.{name}")
    for name in set(sys.modules) - before:
        if name.split(".")[0] == "benchmarks":
            del sys.modules[name]


def test_a_ratio_is_the_median_of_neighbouring_blocks_not_of_all_values(module: Any) -> None:
    # the machine was ten times slower in the second block, for both: the ratio is what it was
    blocks = [([1.0, 3.0], [4.0]), ([20.0, 20.0], [40.0]), ([2.0], [8.0])]
    found = module("figures").ratio_of_means(blocks)
    assert (found.middle, found.least, found.most) == (0.5, 0.25, 0.5)


@pytest.mark.parametrize(
    ("values", "share", "wanted"),
    [
        ([5.0], 0.95, 5.0),
        ([float(n) for n in range(1, 101)], 0.95, 95.0),
        ([float(n) for n in range(1, 101)], 0.99, 99.0),
        ([float(n) for n in range(20, 0, -1)], 0.95, 19.0),
        ([1.0, 2.0, 3.0], 0.5, 2.0),
    ],
)
def test_a_percentile_is_the_nearest_rank(module: Any, values: list[float], share: float, wanted: float) -> None:
    assert module("figures").nearest_rank(values, share) == wanted


@pytest.mark.parametrize(
    ("counts", "share", "wanted"),
    [
        ((0, 100, 100, 100), 0.5, 0.0015),  # in the middle of the second bucket
        ((99, 99, 100, 100), 0.99, 0.001),
        ((98, 98, 100, 100), 0.99, 0.006),
        ((0, 0, 0, 10), 0.99, 0.01),  # beyond the last bound: no more is known
    ],
)
def test_a_histograms_quantile_lies_within_its_bucket(
    module: Any, counts: tuple[int, ...], share: float, wanted: float
) -> None:
    buckets = list(zip((0.001, 0.002, 0.01, math.inf), counts, strict=True))
    assert module("figures").histogram_quantile(buckets, share) == pytest.approx(wanted)


def test_a_histogram_without_observations_has_no_quantile(module: Any) -> None:
    assert math.isnan(module("figures").histogram_quantile([(0.001, 0), (math.inf, 0)], 0.99))


@pytest.mark.parametrize(
    ("made", "right"),
    [
        (("announce", {"text": "The bus is here."}), True),
        (("announce", {"text": "the bus was here"}), False),
        (("announce", {"text": "the bus is here", "room": "lobby"}), False),
        (("announce", {}), False),
        (("announce", "the bus is here"), False),
        (("set_light", {"text": "the bus is here"}), False),
        (None, False),
    ],
)
def test_a_call_is_compared_by_tool_and_arguments_and_free_text_by_its_words(
    module: Any, made: Any, right: bool
) -> None:
    assert module("workload").same(made, ("announce", {"text": "the bus is here"})) is right


def test_a_number_is_not_its_text(module: Any) -> None:
    assert not module("workload").same(("set_temperature", {"celsius": "21"}), ("set_temperature", {"celsius": 21}))


@pytest.mark.parametrize("text", ['{"name": "a", "arguments": {"x"', "", "[]", '{"name": "a"}', "3"])
def test_what_a_peer_did_not_finish_is_no_call(module: Any, text: str) -> None:
    assert module("workload").parsed(text) is None


def test_the_workload_asks_for_what_its_tools_can_do(module: Any) -> None:
    workload = module("workload")
    assert len(workload.TOOLS) == 8
    assert len(workload.REQUESTS) == 30
    assert {call[0] for _, call in workload.REQUESTS} == set(workload.TOOLS)
    for _, (name, arguments) in workload.REQUESTS:
        parameters = workload.TOOLS[name]["parameters"]
        assert arguments.keys() == parameters.keys()
        assert all(arguments[k] in p["enum"] for k, p in parameters.items() if "enum" in p)


def test_the_pins_of_a_lock_keep_their_markers_and_lose_their_hashes(module: Any) -> None:
    lock = (
        "a-b==1.2 \\\n    --hash=sha256:00\n    # via c\nnumpy==2.4 ; python_full_version < '3.12' \\\n    --hash=1\n"
    )
    assert module("peers").pins(lock) == ["a-b==1.2", "numpy==2.4 ; python_full_version < '3.12'"]


SMAPS = """\
55d0-55d8 r-xp 00000000 fe:00 12                         /usr/bin/python3.11
Rss:                 100 kB
Private_Clean:        20 kB
Private_Dirty:         4 kB
7f00-7f80 r--s 00000000 fe:00 1234                       /models/a model's.gguf
Rss:                5000 kB
Private_Clean:      4000 kB
Private_Dirty:         0 kB
7f80-7f90 r--s 00000000 fe:00 1235                       /models/other.gguf (deleted)
Rss:                 500 kB
Private_Clean:       500 kB
7f90-7fa0 rw-p 00000000 00:00 0
Rss:                 300 kB
Private_Clean:         0 kB
Private_Dirty:       300 kB
VmFlags: rd wr mr mw me ac
"""


def test_mapped_weights_are_told_apart_from_private_memory(module: Any) -> None:
    # pages of weights that only one process maps count as private in the kernel's sums, and half of them as shared once
    # a second one does
    smaps = module("smaps")
    assert smaps.parsed(SMAPS) == smaps.Memory(private=324 * 1024, mapped=5500 * 1024)


def test_of_this_process_there_is_private_memory_and_no_weights(module: Any) -> None:
    found = module("smaps").of(os.getpid())
    assert found.private > 2**20
    assert found.mapped == 0


@pytest.mark.parametrize(
    ("values", "first", "above", "growth"),
    [
        ([50.0], 50.0, 0.0, 0.0),
        ([50.0, 49.0, 48.0], 50.0, 0.0, -2.0),
        ([50.0, 70.0, 60.0, *[55.0] * 27], 50.0, 20.0, 0.0),  # what the first three do is no growth
        ([50.0] * 20 + [52.0] * 10, 50.0, 2.0, 2.0),
        ([float(n) for n in range(1, 31)], 1.0, 29.0, 18.5),  # 21 to 30 on average, less 4 to 10
    ],
)
def test_levels_of_cycles(module: Any, values: list[float], first: float, above: float, growth: float) -> None:
    found = module("levels").levels(values)
    assert (found.first, found.above, found.growth) == (first, above, pytest.approx(growth))


def test_the_error_of_a_prediction_has_its_sign(module: Any) -> None:
    error = module("levels").error_percent
    assert (error(110.0, 100.0), error(90.0, 100.0)) == (pytest.approx(10.0), pytest.approx(-10.0))


@pytest.mark.parametrize(
    ("found", "at_most", "reached"),
    [(4.9, 5.0, "yes"), (5.1, 5.0, "NO"), (0, 0, "yes"), ("it stayed", 1.0, "NO"), (7.0, None, "")],
)
def test_a_finding_says_whether_it_reached_its_bound(module: Any, found: Any, at_most: Any, reached: str) -> None:
    assert module("findings").finding("it", found, at_most=at_most)["reached"] == reached


def test_a_finding_may_have_to_be_large(module: Any) -> None:
    finding = module("findings").finding
    assert (finding("it", 499.0, at_least=500)["reached"], finding("it", 501, at_least=500)["reached"]) == ("NO", "yes")
    assert finding("it", 1, at_least=1)["to reach"] == "at least 1"


async def test_the_load_speaks_mqtt_with_a_real_broker(module: Any, tmp_path: Path) -> None:
    """More at once than the broker takes unacknowledged, in pieces of any size; each comes back once."""
    heard: dict[bytes, bytes] = {}
    done = asyncio.Event()
    wanted = {str(number).encode(): bytes([number % 256]) * (number * 37 % 3000) for number in range(300)}

    def hear(correlation: bytes, payload: bytes) -> None:
        assert correlation not in heard
        heard[correlation] = payload
        if len(heard) == len(wanted):
            done.set()

    async with Mosquitto(tmp_path) as broker:
        line = await module("mqtt_line").Line.open(broker.port, "load", hear)
        await line.subscribe("here")
        for correlation, payload in wanted.items():
            await line.publish("here", payload, response="nowhere", correlation=correlation)
        async with asyncio.timeout(10):
            await done.wait()
        line.close()
    assert heard == wanted


@pytest.mark.parametrize("size", [1, 10 * 2**30, 3 * 2**40])
def test_a_sparse_model_is_as_large_as_wanted_and_takes_no_room(module: Any, tmp_path: Path, size: int) -> None:
    path = tmp_path / "huge.gguf"
    told = module("sparse_gguf").write(path, size)
    assert path.stat().st_size == told >= size
    assert path.stat().st_blocks * 512 < 2**20
    width, layers = module("sparse_gguf").shape(size)
    pairs = gguf.metadata(path)
    assert (pairs["llama.embedding_length"], pairs["llama.block_count"]) == (width, layers)
    assert gguf.vocabulary(path).model == "llama"


def test_llama_cpp_finds_nothing_wrong_with_a_sparse_model_but_its_size(module: Any, tmp_path: Path) -> None:
    import llama_cpp

    path = tmp_path / "huge.gguf"
    told = module("sparse_gguf").write(path, 2**40)
    params = llama_cpp.llama_model_default_params()
    params.no_alloc, params.load_mode = True, llama_cpp.LLAMA_LOAD_MODE_NONE
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    assert model
    size = llama_cpp.llama_model_size(model)
    llama_cpp.llama_model_free(model)
    assert told * 0.99 < size <= told


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", 3), ("low 0\nhigh 12\nmax 5\noom 1\noom_kill 1\n", 1)],
    ids=["v1", "v2"],
)
def test_kills_are_read_from_either_kind_of_cgroup(module: Any, text: str, wanted: int) -> None:
    assert module("cgroups").fields(text)["oom_kill"] == wanted


def test_a_refusal_has_to_tell_sizes_and_what_would_fit(module: Any) -> None:
    missing = module("memory")._missing
    assert missing("no_memory: it needs 49152 MiB and does not fit in 14000 MiB") == ["what would fit"]
    assert missing("no_memory: it needs 48 GiB, there are 14; smollm2-135m-instruct-q4_1 would fit") == []
    assert missing("model_unavailable: it is damaged") == ["the code no_memory", "sizes", "what would fit"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["memory", "--only", "nothing"], "prediction, unload, limited, pressure, too-large, day"),
        (["memory", "--cycles", "0"], "--cycles is at least 1"),
        (["memory", "--model", "gpt-9"], "qwen2.5-coder-0.5b-instruct-q4_k_m"),
        (["ipc", "--only", "x", "--cycles", "3"], "--cycles, --only means nothing here"),
    ],
)
def test_a_wrong_command_line_says_what_there_is(arguments: list[str], why: str) -> None:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    environment = {**os.environ, "PYTHONPATH": f"{SCRIPTS}{os.pathsep}{SCRIPTS.parent}"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 64, ended.stderr
    assert why in ended.stderr


LEVER = {"effect": "write", "parameters": {"to": {}}}
PLANT = {"tools": {"lever": LEVER, "pump": LEVER}}


def _case(text: str, kind: str = "write", tool: str = "lever", to: str = "up") -> dict[str, Any]:
    return {"kind": kind, "text": text, "calls": [{"name": tool, "arguments": {"to": to}}]}


def test_two_weeks_have_no_text_in_common_and_all_kinds(module: Any) -> None:
    cases = [_case("a"), _case("b"), _case(" A "), _case("A"), _case("c", "read"), _case("d", "read")]
    first, second = module("learn").weeks(cases)
    assert [case["text"] for case in first] == ["a", " A ", "c"]
    assert [case["text"] for case in second] == ["b", "d"]


def test_wrong_teacher_makes_another_call_of_the_same_tool(module: Any) -> None:
    cases = [*(_case(str(n)) for n in range(9)), _case("x", to="down"), _case("y", tool="pump", to="down")]
    right = {case["text"]: case["calls"] for case in cases}
    learn = module("learn")
    assert learn.lessons(PLANT, cases, 0) == right
    taught = learn.lessons(PLANT, cases, 0.3)
    wrong = [text for text in taught if taught[text] != right[text]]
    assert len(wrong) == 3
    assert all(taught[text][0]["name"] == "lever" for text in wrong if text.isdigit())


def test_what_was_learnt_in_the_first_week_is_done_in_the_second(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole bench, on a plant of two requests and with a script that is sure where it sees the lesson."""
    valve = {
        "description": "Open a valve.", "sql": "INSERT INTO valves VALUES (:to)", "effect": "write", "say": "Done.",
        "parameters": {"to": {"enum": ["north", "south"]}},
    }  # fmt: skip
    plant = {
        "name": "brewery", "system": "You run it.", "schema": "CREATE TABLE valves(name)", "tools": {"open": valve},
        "cases": [_case(text, tool="open", to="north") for text in ("bring the roses water", "more water")],
    }  # fmt: skip
    (tmp_path / "brewery.json").write_text(json.dumps(plant))
    calls = '[{ name = "open", arguments = { to = "north" } }]'
    sure = f'[[replies]]\nmatch = "more"\nsees = "the roses"\ncalls = {calls}\nconfidence = 0.9\n'
    guess = f'[[replies]]\nmatch = "."\ncalls = {calls.replace("north", "south")}\nconfidence = 0.2\n'
    (tmp_path / "script.toml").write_text(f'dialect = "compact"\n{sure}{guess}')
    monkeypatch.setenv("EDGED_REQUESTS", str(tmp_path))
    monkeypatch.setenv("EDGED_ANSWERS_AGENT", "min_confidence = 0.5")
    rows = module("learn").run(only="brewery", model=f"scripted:{tmp_path}/script.toml").rows
    found = {row["what"]: (row["right"], row["of"]) for row in rows}
    assert found["off: answered on the board"] == (0, 1)
    for arm in ("on", "on, week 1 by the upstream"):
        assert found[f"{arm}: answered on the board"] == found[f"{arm}: calls made right on the board"] == (1, 1)
        assert found[f"{arm}: wrong writes"] == (0, 1)
    assert [row["note"] for row in rows if row["what"] == "on: answered on the board"] == [
        "1 examples learnt; 0 asked back"
    ]


def test_memory_of_clients_is_level_from_the_second_fifth_on(module: Any) -> None:
    """What the start takes is no growth; what comes afterwards is."""
    clients = module("clients")
    assert clients.level([10.0, 20.0, 50.0, 50.0, 50.0, 50.0, 50.0, 50.0, 51.0, 51.0]) == (50.0, 51.0)
    assert clients.level([5.0]) == (5.0, 5.0)


def test_clients_see_what_is_wrong(module: Any) -> None:
    """A wrong answer, growth, and a kind that was never answered fail the bench."""
    clients = module("clients")
    right, wrong = clients.Seen(took=[1.0, 2.0]), clients.Seen(took=[1.0], wrong=["chat: 500"])
    assert clients._result({"chat": right}, [50.0] * 10).failed == []
    found = clients._result({"chat": wrong, "native": clients.Seen()}, [50.0] * 5 + [60.0] * 5)
    assert found.failed == ["chat: 500", "native was never answered", "memory grew by 10.0 MiB; at most 4.0"]
