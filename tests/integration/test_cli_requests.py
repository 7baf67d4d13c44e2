"""`edged requests`: what was asked, as a person sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.cli import edged
from tests.support.daemon import Daemon
from tests.support.msgpack_server import Refuse, StandIn

pytestmark = pytest.mark.asyncio(loop_scope="module")  # of the daemon they share


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """A daemon with a plant."""
    async with Daemon(tmp_path_factory.mktemp("requests")) as daemon:
        yield daemon


async def test_request_is_shown_with_its_answer_its_calls_and_its_time(daemon: Daemon) -> None:
    """Readable without being told to."""
    assert (await edged("ask", "open the north valve", "--id", "valve", config=daemon.config)).code == 0
    shown = await edged("requests", "show", "valve", config=daemon.config)
    assert (shown.code, shown.err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in shown.out.splitlines())
    assert "(id valve)" in shown.out.splitlines()[0]
    assert lines["status"] == "done"
    assert lines["answer"] == "Valve north is now open."
    assert lines["called"] == 'set_valve(valve="north", position="open") -> {"changes":1,"rows":[]}'
    assert lines["route"].startswith("local, model small: ")
    assert " ms" in lines["took"]


async def test_request_that_failed_is_shown_with_its_reason_and_0(daemon: Daemon) -> None:
    """The question was answered: what became of it."""
    assert (await edged("ask", "never ends", "--deadline", "0.1", "--id", "late", config=daemon.config)).code == 70
    shown = await edged("requests", "show", "late", config=daemon.config)
    assert shown.code == 0
    assert "status  expired\n" in shown.out
    assert "error   expired: " in shown.out


async def test_cancelling_what_has_its_outcome_says_which(daemon: Daemon) -> None:
    """It keeps it."""
    assert (await edged("ask", "hello", "--id", "over", config=daemon.config)).code == 0
    ended = await edged("requests", "cancel", "over", config=daemon.config)
    assert (ended.code, ended.out.endswith(": done\n")) == (0, True)
    document = (await edged("requests", "cancel", "over", "--json", config=daemon.config)).json()
    assert (document["id"], document["status"]) == ("over", "done")


@pytest.mark.parametrize("question", ["[/nothing] [bold]x", "two\nlines", "\x1b[2J"], ids=["markup", "lines", "escape"])
async def test_list_shows_what_was_asked_on_one_line_and_as_it_is(daemon: Daemon, question: str) -> None:
    """What looks like markup is a user's text; a list has one line a request."""
    assert (await edged("ask", question, config=daemon.config)).code == 0
    listed = (await edged("requests", "ls", "--limit", "1", config=daemon.config)).out.splitlines()
    assert len(listed) == 2
    assert "\x1b" not in listed[1]
    assert question.split(maxsplit=1)[0].replace("\x1b", "\N{REPLACEMENT CHARACTER}") in listed[1]
    rows = (await edged("requests", "ls", "--json", "--limit", "1", config=daemon.config)).json()
    assert rows[0]["input"] == question


QUEUED = {"id": "x", "rid": "01a2", "status": "queued", "position": 3, "eta_s": 65.0}


async def test_requeue_says_how_far_it_is(tmp_path: Path) -> None:
    """The name goes to the daemon as it is."""
    async with StandIn(tmp_path, {"request.requeue": QUEUED}) as daemon:
        plain = await edged("requests", "requeue", "x", "--socket", str(daemon.path))
        assert plain == (0, "01a2: queued\n", "")
        document = await edged("requests", "requeue", "x", "--json", "--socket", str(daemon.path))
        assert document.json() == QUEUED
        assert daemon.calls == [("request.requeue", {"name": "x"})] * 2


async def test_requeue_of_what_is_done_is_65_with_the_daemons_sentence(tmp_path: Path) -> None:
    """It is the caller's mistake."""
    refusal = Refuse("bad_request", "request '01a2' is done; only what failed can be tried again")
    async with StandIn(tmp_path, {"request.requeue": refusal}) as daemon:
        ended = await edged("requests", "requeue", "01a2", "--socket", str(daemon.path))
        assert (ended.code, ended.out) == (65, "")
        assert "only what failed can be tried again" in ended.err


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (QUEUED, "status  queued, 3 before it, about 1 min 5 s left\n"),
        ({**QUEUED, "status": "running", "position": 0, "eta_s": None}, "status  running\n"),
        ({**QUEUED, "status": "waiting_link", "position": 0, "eta_s": None}, "status  waiting for a link\n"),
    ],
    ids=["queued", "running", "waiting"],
)
async def test_unfinished_request_is_shown_with_its_place(tmp_path: Path, document: object, said: str) -> None:
    """What is not known is left out."""
    async with StandIn(tmp_path, {"request.get": document}) as daemon:
        shown = await edged("requests", "show", "x", "--socket", str(daemon.path))
        assert shown == (0, f"01a2  (id x)\n{said}", "")


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (Refuse("busy", "the queue is full", retryable=True), 75),
        (Refuse("no_link", "no upstream", retryable=True), 75),
        (Refuse("over_budget", "spent", retryable=True), 75),
        (Refuse("forbidden", "not yours"), 77),
        (Refuse("quarantined", "it killed the daemon"), 70),
        (Refuse("internal", "a bug"), 70),
        (Refuse("too_large", "too many bytes"), 65),
    ],
    ids=["busy", "no_link", "over_budget", "forbidden", "quarantined", "internal", "too_large"],
)
async def test_refusal_has_the_exit_code_of_its_kind(tmp_path: Path, refusal: Refuse, code: int) -> None:
    """65: change something; 75: try again; 77: ask for access; 70: neither helps."""
    async with StandIn(tmp_path, {"request.get": refusal}) as daemon:
        ended = await edged("requests", "show", "x", "--json", "--socket", str(daemon.path))
        assert ended.code == code
        assert ended.json() == {"error": refusal.error}
        assert refusal.error["message"] in ended.err


async def test_daemon_that_ends_meanwhile_is_69_and_says_what_to_do(tmp_path: Path) -> None:
    """It was there, so the advice is another one than `edged run`."""
    async with StandIn(tmp_path, {}, hang_up=("agent.ask",)) as daemon:
        ended = await edged("ask", "hello", "--socket", str(daemon.path))
        assert (ended.code, ended.out) == (69, "")
        assert "closed the connection" in ended.err
        assert "--id" in ended.err


async def test_expired_request_of_a_daemon_is_worked_on_again(daemon: Daemon) -> None:
    """By its id, without the deadline it had; one that was cancelled stays so."""
    assert (await edged("ask", "never ends", "--id", "again", "--deadline", "0.1", config=daemon.config)).code == 70
    requeued = await edged("requests", "requeue", "again", "--json", config=daemon.config)
    assert requeued.code == 0
    assert requeued.json()["status"] in ("queued", "running")
    cancelled = await edged("requests", "cancel", "again", config=daemon.config)
    assert cancelled.out == f"{requeued.json()['rid']}: cancelled\n"
    refused = await edged("requests", "requeue", "again", "--json", config=daemon.config)
    assert (refused.code, refused.json()["error"]["code"]) == (65, "bad_request")
