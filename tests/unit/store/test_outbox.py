"""The outbox: whose turn it is, how long a reply is of use, when a request is done."""

from __future__ import annotations

import apsw
import pytest

from edged.host import clock
from edged.store import lookup, outbox, requests
from edged.store.lifecycle import State
from edged.types import Address, Delivery, Format, Status
from tests.support.store import answer, ask, claim, finished, put, settle, store


@pytest.fixture
def c(monkeypatch: pytest.MonkeyPatch) -> apsw.Connection:
    monkeypatch.setattr(clock, "boot", lambda: 1000.0)
    monkeypatch.setattr(clock, "wall", lambda: 1e9)
    monkeypatch.setattr(clock, "boot_id", lambda: "boot-1")
    return store()


def ready(
    c: apsw.Connection, *except_ids: int, transports: tuple[str, ...] = ("mqtt",), limit: int = 99
) -> list[Delivery]:
    return outbox.ready(c, transports, except_ids, limit)


def test_delivery_is_ready_once_there_is_an_answer(c: apsw.Connection) -> None:
    """And carries what the transport needs."""
    rid = put(c, ask(id="a", reply_topic="r/t", correlation=b"\x00x")).rid
    assert ready(c) == []
    claim(c)
    assert settle(c, rid)
    [found] = ready(c)
    assert (found.rid, found.request_id, found.status, found.body) == (rid, "a", Status.DONE, answer(rid))
    assert found.address == Address("r/t", b"\x00x", Format.JSON)
    assert outbox.waiting(c, ("mqtt",)) == 1


@pytest.mark.parametrize("status", list(Status))
def test_every_outcome_is_delivered(c: apsw.Connection, status: Status) -> None:
    """Failures, expiries and refusals too."""
    finished(c, ask(reply_topic="r"), status)
    assert [d.status for d in ready(c)] == [status]


def test_request_is_done_when_the_last_of_its_replies_arrived(c: apsw.Connection) -> None:
    """Two who asked for the same each get it."""
    rid = put(c, ask(id="a", reply_topic="r/1")).rid
    put(c, ask(id="a", reply_topic="r/2"))
    claim(c)
    settle(c, rid)
    first, second = ready(c)
    assert first.body == second.body
    outbox.confirm(c, first)
    assert lookup.get(c, rid).state is State.ANSWERED
    assert [d.id for d in ready(c)] == [second.id]
    outbox.confirm(c, second)
    assert lookup.get(c, rid).state is State.DONE
    assert outbox.waiting(c, ("mqtt",)) == 0


def test_confirm_twice_changes_nothing(c: apsw.Connection) -> None:
    """A broker may confirm a redelivered reply again."""
    rid = finished(c, ask(reply_topic="r"))
    [only] = ready(c)
    outbox.confirm(c, only)
    outbox.confirm(c, only)
    assert lookup.get(c, rid).state is State.DONE


def test_late_confirmation_of_a_reply_says_nothing_of_the_one_that_came_after_it(
    c: apsw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request was tried again while its old reply was on its way: whoever got that is to get the new one, too."""
    rid = finished(c, ask(reply_topic="r"), Status.FAILED)
    [old] = ready(c)
    requests.try_again(c, rid)
    outbox.confirm(c, old)
    monkeypatch.setattr(clock, "wall", lambda: 1e9 + 1)
    claim(c)
    settle(c, rid)
    [new] = ready(c)
    outbox.confirm(c, old)
    assert ready(c) == [new]
    assert new.status is Status.DONE
    outbox.confirm(c, new)
    assert ready(c) == []
    assert lookup.get(c, rid).state is State.DONE


def test_asking_again_after_delivery_delivers_the_same_bytes_again(c: apsw.Connection) -> None:
    """The client did not get it, or lost it; while it is on its way it is not sent twice."""
    rid = finished(c, ask(id="a", reply_topic="r"))
    [first] = ready(c)
    put(c, ask(id="a", reply_topic="r"))
    assert len(ready(c)) == 1
    outbox.confirm(c, first)
    assert put(c, ask(id="a", reply_topic="r")).known
    [again] = ready(c)
    assert (again.rid, again.body) == (rid, first.body)
    outbox.confirm(c, again)
    assert ready(c) == []


def test_asking_again_with_other_correlation_data_is_another_delivery(c: apsw.Connection) -> None:
    """Each reply carries the data of its request."""
    finished(c, ask(id="a", reply_topic="r", correlation=b"1"))
    put(c, ask(id="a", reply_topic="r", correlation=b"2"))
    assert [d.address.correlation for d in ready(c)] == [b"1", b"2"]


def test_ready_gives_the_oldest_of_the_wanted_transports_without_those_on_their_way(c: apsw.Connection) -> None:
    """At most as many as there is room for."""
    for i in range(5):
        finished(c, ask(reply_topic=f"r/{i}"))
    everything = ready(c)
    assert [d.address.topic for d in everything] == [f"r/{i}" for i in range(5)]
    assert ready(c, everything[0].id, everything[2].id, limit=2) == [everything[1], everything[3]]
    assert ready(c, transports=()) == []
    assert ready(c, transports=("other", "mqtt")) == everything


@pytest.mark.parametrize(("deadline_s", "expires"), [(None, 1060.0), (10, 1060.0), (60, 1060.0), (300, 1300.0)])
def test_reply_is_of_use_until_the_deadline_and_at_least_a_minute(
    c: apsw.Connection, deadline_s: float | None, expires: float
) -> None:
    """CONTRACT section 4."""
    finished(c, ask(reply_topic="r", deadline_s=deadline_s))
    assert [d.expires_boot for d in ready(c)] == [expires]


def test_reply_that_waits_through_a_reboot_keeps_what_is_left(
    c: apsw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline of a boot that lasted for months is no time of the new one."""
    monkeypatch.setattr(clock, "boot", lambda: 5e6)
    finished(c, ask("1", reply_topic="r/1", deadline_s=300))
    finished(c, ask("2", id="b", reply_topic="r/2", deadline_s=300))
    outbox.confirm(c, ready(c)[1])
    monkeypatch.setattr(clock, "boot", lambda: 50.0)
    monkeypatch.setattr(clock, "wall", lambda: 1e9 + 100)
    monkeypatch.setattr(clock, "boot_id", lambda: "boot-2")
    requests.recover(c, "boot-2")
    put(c, ask("2", id="b", reply_topic="r/2"))  # its reply goes out once more: of use for a minute
    assert [d.expires_boot for d in ready(c)] == [50.0 + 200.0, 50.0 + 60.0]
