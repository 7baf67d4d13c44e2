"""The daemon's documents as lines."""

from __future__ import annotations

import re
from typing import Any

import pytest

from edged.cli.common import line, size, span
from edged.cli.view import event_line, status_lines, upstream_text

STATE: dict[str, Any] = {
    "version": "1",
    "node": "n1",
    "pid": 7,
    "uptime_s": 90061.0,
    "memory": {"private_bytes": 2**20, "mapped_bytes": 0, "budget_bytes": 2**30, "available_bytes": None},
    "queue": {"requests": {"done": 3, "waiting_link": 1}, "running": 2, "outbox_waiting": 4},
    "models": {"small": {"state": "ready", "predicted_bytes": 600 * 2**20, "in_use": 1, "context": 4096}},
    "engine": {"small": {"threads": 4, "generated_tokens": 21, "decode_steps": 6}},
    "mqtt": {"connected": False, "broker": "b:1883", "version": "5", "error": "refused"},
    "link": {},
}


def test_status_tells_everything_on_one_line_each() -> None:
    """What is not known is said to be unknown."""
    assert status_lines(STATE) == [
        "edged 1 on n1, pid 7, up 1 d 1 h",
        "memory  1 MiB private, 0 KiB mapped, budget 1024 MiB, unknown available on the board",
        "requests  2 running; 3 done, 1 waiting_link; 4 replies on their way",
        "model  small: ready, 600 MiB, in use by 1, 4 threads, 21 tokens in 6 steps",
        "broker  b:1883: not connected (refused)",
    ]


def test_status_tells_what_is_given_up_and_why() -> None:
    """Nothing where all is well."""
    well: dict[str, Any] = {"level": 0, "reason": None, "since": None, "given_up": []}
    hot = {"level": 1, "reason": "too hot", "since": 1e9, "given_up": ["a thread"]}
    short = {"level": 2, "reason": "20 MiB are left", "since": 1e9, "given_up": ["caches", "idle models"]}
    assert status_lines({**STATE, "pressure": {**well, "board": well}}) == status_lines(STATE)
    told = status_lines({**STATE, "pressure": {**short, "board": hot}})[2:4]
    assert re.fullmatch(
        r"pressure  level 2 since \d\d:\d\d:\d\d, without caches, idle models: 20 MiB are left", told[0]
    )
    assert re.fullmatch(r"board  level 1 since \d\d:\d\d:\d\d, without a thread: too hot", told[1])


@pytest.mark.parametrize(
    ("rates", "told"),
    [
        ({"prefill_tokens_s": None, "decode_tokens_s": None, "batch_tokens_s": None}, ""),
        ({"prefill_tokens_s": 411.6, "decode_tokens_s": None}, ", prefill 412 tokens/s"),
        (
            {"prefill_tokens_s": 411.6, "decode_tokens_s": 20.2, "batch_tokens_s": 99.9},
            ", prefill 412 tokens/s, decode 20 tokens/s (all: 100)",
        ),
        ({"decode_tokens_s": 20.2, "batch_tokens_s": 20.2}, ", decode 20 tokens/s"),
    ],
)
def test_status_tells_the_speed_of_each_phase_once_it_is_measured(rates: dict[str, Any], told: str) -> None:
    """The sum of all sequences where there are several."""
    state = {**STATE, "engine": {"small": {**STATE["engine"]["small"], **rates}}}
    assert status_lines(state)[3].endswith(f"21 tokens in 6 steps{told}")


@pytest.mark.parametrize(
    ("passed_over", "told"),
    [({}, "on CPU"), ({"CUDA": "it failed: no\ndriver"}, "on CPU (not on CUDA: it failed: no driver)")],
)
def test_status_tells_what_an_embedding_model_read_and_on_what(passed_over: dict[str, str], told: str) -> None:
    """And why not on something else that the board has."""
    engine = {"threads": 2, "texts": 3, "prompt_tokens": 21, "provider": "CPU", "passed_over": passed_over}
    told_of = status_lines({**STATE, "engine": {"small": engine}})[3]
    assert told_of == f"model  small: ready, 600 MiB, in use by 1, 2 threads, 3 texts of 21 tokens {told}"


def test_status_tells_links_and_listeners_where_there_are_some() -> None:
    """A daemon that has them."""
    link = {"state": "down", "since": None, "reason": "timeout", "in_flight": 0, "window": 1}
    told = status_lines({**STATE, "link": {"big": link}, "http": {"listeners": ["unix:/run/http.sock", "[::1]:8377"]}})
    assert told[-2:] == [
        "upstream  big: down (timeout), 0 requests there of at most 1",
        "http  unix:/run/http.sock, [::1]:8377",
    ]


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ({"files": 0, "bytes": 0, "written_bytes": 0, "restored": 0, "refused": 0}, None),
        (
            {"files": 3, "bytes": 36 * 2**20, "written_bytes": 12 * 2**20, "restored": 2, "refused": 0},
            "prefixes  3 on the disk, 36 MiB; since the start 12 MiB written, 2 restored",
        ),
        (
            {"files": 1, "bytes": 2**20, "written_bytes": 0, "restored": 0, "refused": 1},
            "prefixes  1 on the disk, 1 MiB; since the start 0 KiB written, 0 restored, 1 refused",
        ),
    ],
)
def test_status_tells_what_is_kept_on_the_disk_where_there_is_something(kept: dict[str, int], said: str | None) -> None:
    """An older daemon tells nothing of it."""
    told = status_lines({**STATE, "snapshots": kept})
    assert [line for line in told if line.startswith("prefixes")] == ([said] if said else [])


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ({"state": "up"}, "up"),
        ({"state": "up", "since": 12.5}, "up"),
        ({"state": "down", "reason": "timeout", "next_probe_s": 4.6}, "down (timeout), tried again in 5 s"),
        ({"state": "up", "paused_s": None, "next_probe_s": 60.0}, "up"),
        ({"state": "up", "paused_s": 30.0, "next_probe_s": None}, "up, it wants to be left alone for 30 s"),
        ({"state": "up", "tokens_today": 900, "daily_token_budget": 1000}, "up, 900 of 1000 tokens today"),
        ({"state": "up", "tokens_today": 900, "daily_token_budget": None}, "up, 900 tokens today"),
        ({"state": "down", "reason": "no\x1b[2J\nroute"}, "down (no\N{REPLACEMENT CHARACTER}[2J route)"),
    ],
)
def test_upstream_is_told_as_far_as_it_is_known(link: dict[str, Any], said: str) -> None:
    """A `since` that is no time of day is left out; what a server says cannot move the cursor."""
    assert upstream_text(link) == said


def test_upstream_says_since_when() -> None:
    """In the time of this place."""
    assert upstream_text({"state": "up", "since": 1_700_000_000.0}).startswith("up since ")


def test_event_is_one_line_however_much_it_tells() -> None:
    """Its name, then its data."""
    assert event_line({"event": "model_loaded", "model": "small", "load_ms": 1.5}) == (
        'model_loaded  model="small" load_ms=1.5'
    )
    assert len(event_line({"event": "x", "text": "a\n" * 10_000}).splitlines()) == 1


@pytest.mark.parametrize(
    ("bytes", "text"),
    [(None, "unknown"), (0, "0 KiB"), (4096, "4 KiB"), (2**20, "1 MiB"), (9 * 2**30, "9216 MiB"), (2**35, "32.0 GiB")],
)
def test_sizes_have_a_unit_that_fits(bytes: int | None, text: str) -> None:
    """Of boards: a model's size stays in MiB."""
    assert size(bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 min 0 s"), (61, "1 min 1 s"), (3660, "1 h 1 min"), (90000, "1 d 1 h")]
)
def test_spans_have_their_two_largest_units(seconds: float, text: str) -> None:
    """As a person says it."""
    assert span(seconds) == text


def test_line_holds_no_control_characters() -> None:
    """Bells, escapes, and those of the upper half."""
    assert line("a\x07b\x9bc\td\r\ne") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c d e"
