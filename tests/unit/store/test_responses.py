"""Stored responses: what goes on from what, whose they are, what is forgotten when."""

from __future__ import annotations

from typing import Any

import apsw
import pytest

from edged.host import clock
from edged.store import lookup, responses, retention
from edged.store.recovery import mend
from edged.store.responses import Kept
from tests.support.store import PLENTY, ask, finished, store

DAY = 86400.0


@pytest.fixture
def c() -> apsw.Connection:
    return store()


class Clocks:
    """Both clocks, set by hand."""

    def __init__(self) -> None:
        self.boot, self.wall = 1000.0, 1_700_000_000.0

    def advance(self, seconds: float) -> None:
        self.boot += seconds
        self.wall += seconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    hands = Clocks()
    monkeypatch.setattr(clock, "boot", lambda: hands.boot)
    monkeypatch.setattr(clock, "wall", lambda: hands.wall)
    return hands


def kept(id: str, previous: str | None = None, **more: Any) -> Kept:
    """A response of client c, in the thread that begins with a."""
    values = {"client": "c", "thread": "a", "created_wall": clock.wall(), "input": b"[]", "body": b"{}", **more}
    return Kept(id=id, previous=previous, **values)


def ids(c: apsw.Connection) -> list[str]:
    return [str(id) for (id,) in c.execute("SELECT id FROM responses ORDER BY seq")]


def trim(c: apsw.Connection, max_bytes: int = PLENTY) -> int:
    return retention.trim(c, 7 * DAY, clock.boot_id(), max_bytes, ("mqtt",))


def test_chain_is_all_that_a_response_goes_on_from_oldest_first(c: apsw.Connection) -> None:
    """Branches are not part of one another; what another client has is not there."""
    for each in (kept("a"), kept("b", "a"), kept("c", "b"), kept("d", "a"), kept("x", client="other")):
        assert responses.keep(c, each, PLENTY)
    assert [one.id for one in responses.chain(c, "c", "c")] == ["a", "b", "c"]
    assert [one.id for one in responses.chain(c, "c", "d")] == ["a", "d"]
    assert responses.find(c, "c", "x") is None
    with pytest.raises(KeyError, match="x"):
        responses.chain(c, "c", "x")
    assert responses.delete(c, "c", "b")
    with pytest.raises(KeyError, match="b"):
        responses.chain(c, "c", "c")


def test_chain_has_an_end(c: apsw.Connection) -> None:
    """As a dialogue that a model can read has."""
    last = None
    for number in range(responses.MAX_CHAIN + 1):
        responses.keep(c, kept(str(number), last), PLENTY)
        last = str(number)
    assert len(responses.chain(c, "c", str(responses.MAX_CHAIN - 1))) == responses.MAX_CHAIN
    with pytest.raises(OverflowError):
        responses.chain(c, "c", str(responses.MAX_CHAIN))


def test_newer_body_takes_the_place_of_the_older_one_of_its_client_only(c: apsw.Connection) -> None:
    """Ids are unique among all; nobody writes into another's."""
    responses.keep(c, kept("a", body=b"1"), PLENTY)
    responses.keep(c, kept("a", body=b"2"), PLENTY)
    responses.keep(c, kept("a", body=b"3", client="other"), PLENTY)
    found = responses.find(c, "c", "a")
    assert found is not None
    assert found.body == b"2"
    assert responses.find(c, "other", "a") is None
    assert not responses.delete(c, "other", "a")


def test_full_store_keeps_none(c: apsw.Connection) -> None:
    """The bound is that of everything in it."""
    assert not responses.keep(c, kept("a"), retention.used_bytes(c))
    assert ids(c) == []


@pytest.mark.parametrize("keyed", [False, True])
def test_request_of_an_agent_goes_with_its_response_unless_it_has_a_key(c: apsw.Connection, keyed: bool) -> None:
    """With a key it has to stay known: it must not be done again."""
    finished(c, ask(id="a"))
    responses.keep(c, kept("a", keyed=keyed), PLENTY)
    assert responses.delete(c, "c", "a")
    assert bool(lookup.latest(c, 9)) is keyed


def test_thread_lives_as_long_as_its_newest_response(c: apsw.Connection, clocks: Clocks) -> None:
    """What a dialogue goes on from is there while it goes on."""
    responses.keep(c, kept("a"), PLENTY)
    responses.keep(c, kept("z", thread="z"), PLENTY)
    clocks.advance(6 * DAY)
    responses.keep(c, kept("b", "a"), PLENTY)
    clocks.advance(2 * DAY)
    assert trim(c) == 1
    assert ids(c) == ["a", "b"]
    clocks.advance(6 * DAY)
    assert trim(c) == 2
    assert ids(c) == []


def test_board_that_learns_the_date_forgets_nothing_for_it(c: apsw.Connection, clocks: Clocks) -> None:
    """It began in 1970."""
    clocks.wall = 0.0
    responses.keep(c, kept("a"), PLENTY)
    clocks.wall = 1_700_000_000.0
    assert trim(c) == 0
    assert ids(c) == ["a"]


def test_crowded_store_forgets_what_is_oldest_of_requests_and_threads(c: apsw.Connection, clocks: Clocks) -> None:
    """Neither kind pushes the other out, and a thread goes whole."""
    responses.keep(c, kept("a"), PLENTY)
    clocks.advance(1)
    for number in range(10):
        finished(c, ask(id=str(number)))
    clocks.advance(1)
    responses.keep(c, kept("b", thread="b"), PLENTY)
    responses.keep(c, kept("c", thread="b"), PLENTY)
    assert trim(c, 1) == 1
    assert ids(c) == ["b", "c"]
    while len(lookup.latest(c, 99)):
        assert trim(c, 1) > 0
        assert ids(c) == ["b", "c"]
    assert trim(c, 1) == 2
    assert ids(c) == []


def test_row_that_holds_what_nobody_wrote_is_dropped_after_a_salvage(c: apsw.Connection) -> None:
    """The others stay."""
    for each in (kept("a"), kept("b", input=b"{}"), kept("c", body=b"\xff"), kept("d"), kept("e"), kept("f")):
        responses.keep(c, each, PLENTY)
    c.execute("UPDATE responses SET body = substr(body, 1, 5) WHERE id = 'd'")
    c.execute("UPDATE responses SET body = x'' WHERE id = 'e'")
    c.execute("UPDATE responses SET body = x'7b7d', input = x'5b5d' WHERE id = 'f'")  # not packed
    mend.mend(c)
    assert ids(c) == ["a", "f"]


def test_what_is_stored_is_packed_and_what_was_not_is_read(c: apsw.Connection) -> None:
    """Tools that are told again in each response take little."""
    body = b'{"tools": "%s"}' % (b"x" * 10_000)
    responses.keep(c, kept("a", body=body), PLENTY)
    assert c.execute("SELECT length(body) < 200 FROM responses").get == 1
    found = responses.find(c, "c", "a")
    assert found is not None
    assert found.body == body
    c.execute("UPDATE responses SET body = x'7b7d'")
    found = responses.find(c, "c", "a")
    assert found is not None
    assert found.body == b"{}"
