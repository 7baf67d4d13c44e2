"""The inbox: who is recognised, who goes first, what a reboot does to deadlines, what is forgotten."""

from __future__ import annotations

import itertools
import random
from typing import Any

import apsw
import pytest
from msgspec.structs import replace

from edged.errors import BadRequest, Busy, NoLink
from edged.host import clock
from edged.store import conversations, journal, lookup, outbox, requests, retention
from edged.store.journal import Intent, Result, Step
from edged.store.lifecycle import WAITING, IllegalTransition, State
from edged.store.lookup import Row
from edged.store.requests import FreeSlots
from edged.types import Ask, Finding, Message, Packet, PastTurn, Priority, Spent, Status, Timing, ToolCall, Usage
from edged.wire import new_rid
from tests.support.store import ANY, ONE, PLENTY, answer, ask, claim, finished, put, settle, store

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


# -- identity ----------------------------------------------------------------------------------------------------------

BY_ID: dict[str, Any] = {"id": "a"}
BY_KEY: dict[str, Any] = {"key": "corr:1"}
NAMED = {"id": BY_ID, "correlation": BY_KEY, "both": {**BY_ID, **BY_KEY}}


@pytest.mark.parametrize("name", NAMED.values(), ids=NAMED)
def test_accept_of_the_same_identity_joins_while_it_waits_and_while_it_runs(
    c: apsw.Connection, name: dict[str, Any]
) -> None:
    """Nothing is asked twice."""
    first = put(c, ask(**name))
    assert not first.known
    again = put(c, ask(**name))
    assert (again.rid, again.known, again.reply) == (first.rid, True, None)
    claim(c)
    running = put(c, ask(**name))
    assert (running.rid, running.known, running.reply) == (first.rid, True, None)
    assert not requests.claim(c, ANY)


@pytest.mark.parametrize("status", [Status.DONE, Status.FAILED, Status.EXPIRED, Status.CANCELLED])
@pytest.mark.parametrize("name", NAMED.values(), ids=NAMED)
def test_accept_of_the_same_identity_gets_the_stored_reply_afterwards(
    c: apsw.Connection, name: dict[str, Any], status: Status
) -> None:
    """The same bytes, whatever the outcome was; nothing is executed again."""
    rid = finished(c, ask(**name), status)
    again = put(c, ask(**name))
    assert (again.rid, again.known, again.reply) == (rid, True, answer(rid, status))
    assert not requests.claim(c, ANY)


@pytest.mark.parametrize("name", NAMED.values(), ids=NAMED)
def test_accept_after_a_refusal_asks_again(c: apsw.Connection, name: dict[str, Any]) -> None:
    """Retryable refusals are not kept under the client's name, and stay findable by rid."""
    refused = finished(c, ask(**name), Status.REFUSED)
    again = put(c, ask(**name))
    assert not again.known
    assert again.rid != refused
    assert lookup.get(c, refused).status == "refused"


@pytest.mark.parametrize("ended", [False, True], ids=["waiting", "answered"])
@pytest.mark.parametrize(("name", "says"), [(BY_ID, "id 'a'"), (BY_KEY, "Correlation Data")], ids=["id", "correlation"])
def test_accept_of_the_same_identity_with_other_content_is_refused(
    c: apsw.Connection, name: dict[str, Any], says: str, ended: bool
) -> None:
    """And leaves the first as it was."""
    rid = finished(c, ask(**name)) if ended else put(c, ask(**name)).rid
    with pytest.raises(BadRequest, match=says):
        put(c, ask("something else", **name))
    assert lookup.get(c, rid).request.messages == (Message("user", "hi"),)
    assert put(c, ask(**name)).rid == rid


def test_accept_ignores_how_a_repetition_is_timed_and_carried(c: apsw.Connection) -> None:
    """A retry may have another deadline and another reply topic."""
    first = put(c, ask(id="a", deadline_s=5, reply_topic="r/1"))
    assert put(c, ask(id="a", deadline_s=9, stream=True, priority=Priority.BATCH, reply_topic="r/2")).rid == first.rid
    assert [t for (t,) in c.execute("SELECT topic FROM deliveries ORDER BY id")] == ["r/1", "r/2"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (ask(id="a"), ask(id="a", client="d")),
        (ask(key="corr:a"), ask(key="corr:a", client="d")),
        (ask(id="a"), ask(id="b")),
        (ask(id="a"), ask(key="a")),
        (ask(), ask()),
        (ask(packet=Packet(1, b"x", False)), ask(packet=Packet(1, b"x", False))),
        (ask(packet=Packet(1, b"x", False)), ask(packet=Packet(1, b"y", True))),
        (ask(packet=Packet(1, b"x", False)), ask(packet=Packet(2, b"x", True))),
    ],
    ids=[
        "id-of-another-client", "correlation-of-another-client", "other-id", "id-is-not-correlation", "no-identity",
        "packet-not-dup", "packet-other-content", "packet-other-id",
    ],
)  # fmt: skip
def test_accept_of_another_identity_is_another_request(c: apsw.Connection, one: Ask, other: Ask) -> None:
    """A publisher that sends twice without a name asks twice."""
    first = put(c, one)
    second = put(c, other)
    assert not second.known
    assert second.rid != first.rid


def test_id_goes_before_correlation_data(c: apsw.Connection) -> None:
    """The same id under fresh Correlation Data is the same request; the same data under another id is not."""
    first = put(c, ask(id="a", key="corr:1"))
    assert put(c, ask(id="a", key="corr:2")).rid == first.rid
    assert put(c, ask(id="b", key="corr:1")).rid != first.rid


def test_redelivered_packet_is_recognised_without_any_name(c: apsw.Connection) -> None:
    """The broker did not hear our acknowledgement: DUP, same packet id, same payload."""
    first = put(c, ask(packet=Packet(7, b"x", False)))
    again = put(c, ask(packet=Packet(7, b"x", True)))
    assert (again.rid, again.known) == (first.rid, True)


def test_redelivered_packet_of_a_new_session_is_new(c: apsw.Connection) -> None:
    """Its packet ids begin again."""
    first = put(c, ask(packet=Packet(7, b"x", False)))
    requests.forget_packets(c)
    assert put(c, ask(packet=Packet(7, b"x", True))).rid != first.rid


def test_redelivered_packet_that_was_never_committed_is_new_and_then_known(c: apsw.Connection) -> None:
    """DUP alone proves nothing."""
    first = put(c, ask(packet=Packet(7, b"x", True)))
    assert not first.known
    assert put(c, ask(packet=Packet(7, b"x", True))).rid == first.rid


def test_packet_id_that_the_broker_uses_again_stands_for_the_newer_request(c: apsw.Connection) -> None:
    """Brokers reuse ids after the acknowledgement."""
    put(c, ask("one", packet=Packet(7, b"x", False)))
    second = put(c, ask("two", packet=Packet(7, b"y", False)))
    assert put(c, ask("two", packet=Packet(7, b"y", True))).rid == second.rid
    assert not put(c, ask("one", packet=Packet(7, b"x", True))).known


def test_packets_are_kept_as_far_back_as_a_broker_redelivers(c: apsw.Connection) -> None:
    """And no further: the table does not grow."""
    first = [put(c, ask(packet=Packet(i, b"x", False))).rid for i in range(requests.PACKETS_KEPT + 10)]
    assert c.execute("SELECT count(*) FROM packets").get == requests.PACKETS_KEPT
    assert put(c, ask(packet=Packet(20, b"x", True))).rid == first[20]
    assert not put(c, ask(packet=Packet(3, b"x", True))).known


def test_joined_packet_is_remembered_too(c: apsw.Connection) -> None:
    """A retry by id whose own acknowledgement is lost does not ask a third time."""
    first = put(c, ask(id="a", packet=Packet(1, b"x", False)))
    put(c, ask(id="a", packet=Packet(2, b"x", False)))
    assert put(c, ask(id="a", packet=Packet(2, b"x", True))).rid == first.rid


# -- room --------------------------------------------------------------------------------------------------------------


def test_accept_into_a_full_queue_is_busy_but_a_known_request_is_joined(c: apsw.Connection) -> None:
    """Running ones do not count; the refusal says when to ask again and stores nothing."""
    put(c, ask(id="a"), max_waiting=2)
    put(c, ask(id="b"), max_waiting=2)
    with pytest.raises(Busy, match="max_waiting is 2") as caught:
        put(c, ask(id="c"), max_waiting=2)
    assert caught.value.retry_after_s
    assert put(c, ask(id="a"), max_waiting=2).known
    claim(c)
    assert not put(c, ask(id="c"), max_waiting=2).known


def test_accept_into_a_full_store_is_busy(c: apsw.Connection) -> None:
    """[store] max_bytes."""
    size = retention.used_bytes(c)
    assert size > 0
    with pytest.raises(Busy, match="max_bytes"):
        requests.accept(c, ask(), "r", "boot", 10, size)
    with pytest.raises(Busy, match="100 of them a log"):
        requests.accept(c, ask(), "r", "boot", 10, size + 100, log_bytes=100)
    assert requests.accept(c, ask(), "r", "boot", 10, size + 1).rid == "r"


# -- order -------------------------------------------------------------------------------------------------------------


def test_claim_takes_interactive_before_batch_and_earliest_deadline_first(c: apsw.Connection) -> None:
    """What has no deadline comes last among its kind, in order of arrival."""
    names = [
        ("batch-soon", ask(priority=Priority.BATCH, deadline_s=1)),
        ("late", ask(deadline_s=500)),
        ("none-1", ask()),
        ("none-2", ask()),
        ("soon", ask(deadline_s=5)),
        ("by-expiry", ask(deadline_s=1000, expiry_s=50)),
        ("batch", ask(priority=Priority.BATCH)),
    ]
    rids = {put(c, wanted).rid: name for name, wanted in names}
    waiting = {rid: len(lookup.ahead(c, lookup.get(c, rid))) for rid in rids}
    order = [claim(c).rid for _ in names]
    assert [rids[rid] for rid in order] == ["soon", "by-expiry", "late", "none-1", "none-2", "batch-soon", "batch"]
    assert [waiting[rid] for rid in order] == list(range(7))  # `ahead` tells the same order
    assert not requests.claim(c, ANY)


def test_claim_counts_the_attempt_and_gives_the_whole_row(c: apsw.Connection, clocks: Clocks) -> None:
    """What the pipeline needs is in it."""
    rid = put(c, ask("do it", id="a", conversation="k", deadline_s=30)).rid
    row = claim(c)
    assert (row.rid, row.id, row.client, row.agent, row.conversation, row.state, row.attempts) == (
        rid, "a", "c", "house", "k", State.RUNNING, 1,
    )  # fmt: skip
    assert row.request.messages == (Message("user", "do it"),)
    assert (row.accepted_boot, row.deadline_boot, row.accepted_wall) == (1000.0, 1030.0, clocks.wall)
    assert row.reply is None


def test_claim_keeps_a_conversation_in_its_order(c: apsw.Connection) -> None:
    """One at a time, first come first served, even against priority; others go past."""
    first = put(c, ask("1", conversation="k", priority=Priority.BATCH)).rid
    second = put(c, ask("2", conversation="k", deadline_s=1)).rid
    other = put(c, ask("3", conversation="l")).rid
    stranger = put(c, ask("4", conversation="k", client="d")).rid
    agent = put(c, ask("5", conversation="k", agent="car")).rid
    loose = put(c, ask("6")).rid
    assert [claim(c).rid for _ in range(5)] == [other, stranger, agent, loose, first]
    assert not requests.claim(c, ANY)
    requests.release(c, first, Spent())
    assert claim(c).rid == first
    settle(c, first)
    assert claim(c).rid == second


@pytest.mark.parametrize("status", list(Status))
def test_conversation_goes_on_however_a_turn_ends(c: apsw.Connection, status: Status) -> None:
    """Also when it was cancelled while it waited."""
    first, second = (put(c, ask(conversation="k")).rid for _ in range(2))
    if status is Status.DONE:
        claim(c)
    settle(c, first, status)
    assert claim(c).rid == second


# -- outcome -----------------------------------------------------------------------------------------------------------


def test_settle_stores_one_outcome_and_refuses_a_second(c: apsw.Connection) -> None:
    """Whoever comes second changes nothing and is told."""
    rid = put(c).rid
    claim(c)
    assert settle(c, rid, Status.CANCELLED)
    before = lookup.get(c, rid)
    assert not settle(c, rid, Status.DONE)
    assert not settle(c, rid, Status.EXPIRED)
    assert lookup.get(c, rid) == before
    assert (before.state, before.status, before.reply) == (State.CANCELLED, "cancelled", answer(rid, Status.CANCELLED))


@pytest.mark.parametrize(
    ("status", "quarantine", "state"),
    [
        (Status.DONE, False, State.DONE),
        (Status.FAILED, False, State.FAILED),
        (Status.REFUSED, False, State.FAILED),
        (Status.EXPIRED, False, State.EXPIRED),
        (Status.CANCELLED, False, State.CANCELLED),
        (Status.FAILED, True, State.QUARANTINED),
    ],
)
def test_settle_without_anybody_to_deliver_to_ends_the_request(
    c: apsw.Connection, status: Status, quarantine: bool, state: State
) -> None:
    """Each status has its state."""
    rid = put(c).rid
    claim(c)
    assert settle(c, rid, status, quarantine=quarantine)
    assert lookup.get(c, rid).state is state


def test_settle_of_what_only_waits_does_not_touch_what_runs(c: apsw.Connection) -> None:
    """A worker may claim it between the look and the write."""
    rid = put(c).rid
    claim(c)
    assert not settle(c, rid, Status.EXPIRED, only=(State.RECEIVED,))
    assert lookup.get(c, rid).state is State.RUNNING


def test_release_does_not_count_the_attempt_and_an_end_of_its_own_does(c: apsw.Connection) -> None:
    """A stop is no crash."""
    rid = put(c).rid
    claim(c)
    requests.release(c, rid, SPENT)
    assert (lookup.get(c, rid).state, lookup.get(c, rid).attempts) == (State.RECEIVED, 0)
    assert lookup.get(c, rid).spent == SPENT
    claim(c)
    _ended(c)
    requests.put_back(c, rid)
    assert (lookup.get(c, rid).state, lookup.get(c, rid).attempts) == (State.RECEIVED, 1)
    later = put(c, ask(deadline_s=1)).rid
    assert lookup.ahead(c, lookup.get(c, rid)) == []  # what killed the daemon, or not, is tried first
    assert lookup.ahead(c, lookup.get(c, later)) == ["house"]
    with pytest.raises(IllegalTransition):
        requests.put_back(c, rid)


def _ended(c: apsw.Connection, *, own_fault: bool = True, boot: str = "boot-1") -> list[Row]:
    """The daemon has ended and begun again."""
    return requests.count_end(c, requests.recover(c, boot), own_fault=own_fault)


@pytest.mark.parametrize("own_fault", [True, False])
def test_every_end_makes_suspects_and_only_own_faults_count_as_attempts(c: apsw.Connection, own_fault: bool) -> None:
    """What ran is known to have begun, and goes first; what waited is none."""
    ran, other = put(c).rid, put(c).rid
    claim(c)
    [row] = _ended(c, own_fault=own_fault)
    assert (row.rid, row.attempts, row.ends, row.alone) == (ran, int(own_fault), 1, 1)
    requests.put_back(c, ran)
    assert lookup.suspects(c) == [ran]
    first, second = requests.claim(c, ANY)
    assert [(row.rid, row.begun) for row in (first, second)] == [(ran, True), (other, False)]


def test_ends_in_a_row_are_counted_for_what_ran_alone_at_each(c: apsw.Connection) -> None:
    """One beside others, or one that another was to blame for, begins anew."""
    one, other = put(c).rid, put(c).rid

    def end(count: int) -> dict[str, int]:
        for row in requests.claim(c, FreeSlots(count, 1, 1)):
            assert row.rid in (one, other)
        for row in _ended(c, own_fault=False):
            requests.put_back(c, row.rid)
        return {rid: lookup.get(c, rid).alone for rid in (one, other)}

    assert [end(1), end(1), end(2), end(1)] == [{one: n, other: 0} for n in (1, 2, 0, 1)]
    assert end(1) == {one: 0, other: 1}, "what was alone last goes last, so that innocents share no blame"
    settle(c, claim(c).rid)
    assert [end(1), end(1)] == [{one: 0, other: n} for n in (2, 3)]


def test_end_at_which_nothing_ran_says_nothing(c: apsw.Connection) -> None:
    """A suspect that waited is what it was."""
    rid = put(c).rid
    claim(c)
    _ended(c)
    requests.put_back(c, rid)
    assert _ended(c) == []
    assert (lookup.get(c, rid).ends, lookup.get(c, rid).alone) == (1, 1)


def test_attempts_that_a_reload_could_not_put_back_do_not_count(c: apsw.Connection) -> None:
    """Nor is anybody suspected: the process has not ended."""
    rid = put(c).rid
    claim(c)
    [row] = requests.uncount(c, [each.rid for each in requests.recover(c, "boot-1").rows])
    assert (row.rid, row.attempts, row.ends) == (rid, 0, 0)


def test_parked_suspect_is_one_no_more(c: apsw.Connection) -> None:
    """The daemon lived through its attempt."""
    rid = put(c).rid
    claim(c)
    _ended(c)
    requests.put_back(c, rid)
    claim(c)
    requests.park(c, rid, 9, SPENT)
    requests.resume(c, ("house",), 1)
    assert lookup.suspects(c) == []
    assert claim(c).begun, "what its attempts did is looked up all the same"


def test_recover_knows_whether_the_board_was_switched_off(c: apsw.Connection) -> None:
    """By what ran; what waits from an earlier boot says nothing about the last end."""
    put(c, boot="boot-0")
    put(c, boot="boot-1")
    assert not requests.recover(c, "boot-1").another_boot
    claim(c)
    assert not requests.recover(c, "boot-1").another_boot
    assert requests.recover(c, "boot-2").another_boot
    assert not requests.recover(c, "boot-2").another_boot


def put_remote(c: apsw.Connection, wanted: Ask | None = None) -> str:
    """A request that an upstream is to answer."""
    return requests.accept(
        c, wanted or ask(), new_rid(), "boot-1", 1000, PLENTY, decision="cloud cloud_asked 0 up", remote=True
    ).rid


def test_work_that_others_do_takes_its_own_slots_only(c: apsw.Connection) -> None:
    """The board's own passes it."""
    remote = [put_remote(c) for _ in range(3)]
    own = put(c).rid
    assert [row.rid for row in requests.claim(c, FreeSlots(9, 9, 2))] == [*remote[:2], own]
    assert requests.claim(c, FreeSlots(9, 9, 0)) == []
    assert [row.rid for row in requests.claim(c, ONE)] == remote[2:]


def test_request_that_finds_no_slot_elsewhere_waits_for_one_and_is_decided_anew(c: apsw.Connection) -> None:
    """It is no attempt."""
    rid = put(c).rid
    claim(c)
    requests.release(c, rid, SPENT, remote=True)
    row = lookup.get(c, rid)
    assert (row.state, row.attempts, row.remote, row.decision) == (State.RECEIVED, 0, True, "")
    assert requests.claim(c, FreeSlots(1, 1, 0)) == []
    assert claim(c).rid == rid
    requests.release(c, rid, SPENT)
    assert lookup.get(c, rid).remote, "a stop changes nothing about that"


def test_decision_is_kept_while_it_holds(c: apsw.Connection) -> None:
    """Until the link changes, or the daemon begins anew."""
    rid = put_remote(c)
    assert claim(c).decision == "cloud cloud_asked 0 up"
    requests.park(c, rid, 9, SPENT, "wait cloud_asked 0")
    assert lookup.get(c, rid).decision == "wait cloud_asked 0"
    requests.resume(c, ("house",), 1)
    assert lookup.get(c, rid).decision == ""
    other = put_remote(c)
    requests.recover(c, "boot-1")
    assert lookup.get(c, other).decision == ""


def test_resume_leaves_room_for_those_that_are_queued_for_it(c: apsw.Connection) -> None:
    """And for no others: one that ended meanwhile, or is of another agent, takes none."""
    waiting = [parked(c) for _ in range(4)]
    assert requests.resume(c, ("house",), 1) == waiting[:1]
    assert requests.resume(c, ("house",), 1) == []
    put_remote(c, ask(agent="shed"))
    assert requests.resume(c, ("house",), 2) == waiting[1:2]
    settle(c, waiting[0], Status.EXPIRED)
    assert requests.resume(c, ("house",), 2) == waiting[2:3]
    assert claim(c).rid == waiting[1]
    assert requests.resume(c, ("house",), 2) == waiting[3:]


@pytest.mark.parametrize(("stored", "found"), [("operator", True), ("", True), ("viewer", False)])
def test_request_is_found_under_the_name_that_its_client_had_before(
    c: apsw.Connection, stored: str, found: bool
) -> None:
    """Where it came by the same role, or before there were any; else it may be somebody else's."""

    def named(client: str, role: str, former: str = "") -> Ask:
        wanted = ask(client=client, id="q")
        return replace(wanted, caller=replace(wanted.caller, role=role, former=former))

    old = put(c, named("mqtt:r", stored))
    again = put(c, named("mqtt:r via t", "operator", "mqtt:r"))
    assert (again.rid == old.rid, again.known) == (found, found)
    assert put(c, named("mqtt:r via t", "operator", "mqtt:r")).rid == again.rid


def parked(c: apsw.Connection, wanted: Ask | None = None) -> str:
    """A request that waits for a link."""
    rid = put(c, wanted).rid
    while claim(c).rid != rid:
        pass
    requests.park(c, rid, 1000, Spent())
    return rid


SPENT = Spent(Usage(prompt_tokens=7), Timing(prefill_ms=12.5, total_ms=12.5))


def test_park_is_no_attempt_and_keeps_what_was_found(c: apsw.Connection) -> None:
    """A request that waited a day for its link has not been tried once too often."""
    rid = put(c).rid
    claim(c)
    requests.note(c, rid, (Finding.ESCALATED, Finding.FAILED))
    assert lookup.get(c, rid).spent is None
    requests.park(c, rid, 1000, SPENT)
    row = lookup.get(c, rid)
    assert (row.state, row.attempts) == (State.WAITING_LINK, 0)
    assert row.findings == (Finding.ESCALATED, Finding.FAILED)
    assert row.spent == SPENT
    assert not requests.claim(c, ANY)
    assert requests.resume(c, ("house",), 5) == [rid]
    assert claim(c).findings == (Finding.ESCALATED, Finding.FAILED)


def test_park_beyond_the_bound_is_refused_and_changes_nothing(c: apsw.Connection) -> None:
    """What waits for a link is bounded as the queue is."""
    parked(c)
    rid = put(c).rid
    claim(c)
    with pytest.raises(NoLink, match="1 requests wait"):
        requests.park(c, rid, 1, Spent())
    assert lookup.get(c, rid).state is State.RUNNING


def test_resume_takes_so_many_as_there_is_room_for_in_order_of_deadline(c: apsw.Connection) -> None:
    """Interactive before batch, the earliest deadline first, those without one last; other agents wait on."""
    late = parked(c, ask(deadline_s=900))
    batch = parked(c, ask(deadline_s=10, priority=Priority.BATCH))
    never, soon = parked(c, ask()), parked(c, ask(deadline_s=60))
    other = parked(c, ask(agent="shed"))
    assert requests.resume(c, ("house",), 2) == [soon, late]
    assert requests.resume(c, ("house",), 9) == [never, batch]
    assert requests.resume(c, ("house",), 9) == []
    assert lookup.get(c, other).state is State.WAITING_LINK
    requests.resume_others(c, ("house",))
    assert lookup.get(c, other).state is State.RECEIVED


def test_parked_request_holds_back_the_next_of_its_conversation_and_nothing_else(c: apsw.Connection) -> None:
    """A conversation is answered in its order."""
    parked(c, ask(conversation="k"))
    second, apart = put(c, ask(conversation="k")).rid, put(c, ask()).rid
    assert claim(c).rid == apart
    assert not requests.claim(c, ANY)
    [first] = requests.resume(c, ("house",), 1)
    assert claim(c).rid == first
    settle(c, first)
    assert claim(c).rid == second


def test_parked_request_expires_and_is_counted_and_cancelled_like_any_other(c: apsw.Connection) -> None:
    """It may wait for ever for a link, but not longer than anybody wants its answer."""
    rid = parked(c, ask(deadline_s=0))
    overdue, following = lookup.deadlines(c)
    assert [row.rid for row in overdue] == [rid]
    assert following is None
    assert lookup.counts(c) == {"waiting_link": 1}
    assert settle(c, rid, Status.EXPIRED, only=WAITING)
    assert lookup.get(c, rid).state is State.EXPIRED


def test_ahead_counts_those_that_wait_for_the_same(c: apsw.Connection) -> None:
    """A position among what waits for a link, and among what waits for the board."""
    first, second = parked(c), parked(c)
    queued = put(c).rid
    assert [lookup.ahead(c, lookup.get(c, rid)) for rid in (first, second, queued)] == [[], ["house"], []]


def test_try_again_gives_a_failed_request_a_new_life(c: apsw.Connection) -> None:
    """No deadline, no attempts, no reply; whoever got the old reply gets the new one, under the same identity."""
    rid = put(c, ask(key="k", reply_topic="t", deadline_s=0)).rid
    claim(c)
    requests.release(c, rid, SPENT)
    claim(c)
    settle(c, rid, Status.FAILED, quarantine=True)
    requests.try_again(c, rid)
    row = lookup.get(c, rid)
    assert (row.state, row.attempts, row.deadline_boot, row.reply, row.status) == (State.RECEIVED, 0, None, None, None)
    assert row.spent == Spent()
    assert outbox.ready(c, ("mqtt",), (), 9) == []
    assert put(c, ask(key="k", reply_topic="t", deadline_s=0)).rid == rid
    claim(c)
    settle(c, rid)
    assert [d.status for d in outbox.ready(c, ("mqtt",), (), 9)] == [Status.DONE]


@pytest.mark.parametrize("status", [Status.DONE, Status.CANCELLED, None])
def test_try_again_of_what_did_not_fail_is_refused(c: apsw.Connection, status: Status | None) -> None:
    """What was done is not done again, and what runs is not started twice."""
    rid = put(c).rid
    claim(c)
    if status:
        settle(c, rid, status)
    with pytest.raises(BadRequest, match="failed, expired, quarantined"):
        requests.try_again(c, rid)


def test_random_events_give_every_request_one_outcome(c: apsw.Connection) -> None:
    """Whatever is claimed, released, settled or asked again, in any order."""
    chance = random.Random(3)
    rids = [put(c, ask(id=str(i), conversation=chance.choice([None, "k"]))).rid for i in range(20)]
    outcomes: dict[str, bytes] = {}
    for _ in range(600):
        rid = chance.choice(rids)
        action = chance.randrange(4)
        if action == 0:
            requests.claim(c, ONE)
        elif action == 1:
            try:
                requests.release(c, rid, Spent())
            except IllegalTransition:
                assert lookup.get(c, rid).state is not State.RUNNING
        elif action == 2:
            status = chance.choice([Status.FAILED, Status.EXPIRED, Status.CANCELLED])
            if settle(c, rid, status):
                assert rid not in outcomes
                outcomes[rid] = answer(rid, status)
        else:
            found = put(c, ask(id=str(rids.index(rid)), conversation=lookup.get(c, rid).conversation))
            assert (found.rid, found.reply) == (rid, outcomes.get(rid))
    assert sum(lookup.counts(c).values()) == 20


# -- deadlines and boots -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deadline_s", "expiry_s", "at"), [(None, None, None), (5, None, 5), (None, 7, 7), (5, 7, 5), (9, 7, 7), (0, 7, 0)]
)
def test_deadline_is_the_earlier_of_the_clients_and_the_transports(
    c: apsw.Connection, clocks: Clocks, deadline_s: float | None, expiry_s: float | None, at: float | None
) -> None:
    """On the boot clock."""
    row = lookup.get(c, put(c, ask(deadline_s=deadline_s, expiry_s=expiry_s)).rid)
    assert row.deadline_boot == (None if at is None else 1000.0 + at)


def test_overdue_are_those_that_wait_and_are_past_their_deadline(c: apsw.Connection, clocks: Clocks) -> None:
    """A running one has a timeout of its own."""
    running = put(c, ask(deadline_s=1)).rid
    claim(c)
    soon = put(c, ask(deadline_s=2)).rid
    put(c, ask(deadline_s=50))
    put(c)
    assert lookup.deadlines(c) == ([], 1002.0)
    clocks.advance(2)
    overdue, following = lookup.deadlines(c)
    assert [row.rid for row in overdue] == [soon]
    assert following == 1050.0
    assert lookup.get(c, running).state is State.RUNNING


def test_recover_in_the_same_boot_changes_no_deadline(c: apsw.Connection, clocks: Clocks) -> None:
    """The daemon died, the board did not; what ran is named."""
    rid = put(c, ask(deadline_s=100)).rid
    claim(c)
    clocks.advance(30)
    [row] = requests.recover(c, "boot-1").rows
    assert (row.rid, row.deadline_boot, row.accepted_boot) == (rid, 1100.0, 1000.0)


@pytest.mark.parametrize(
    ("wall_passed", "left"),
    [(40.0, 60.0), (0.0, 100.0), (100.0, 0.0), (5000.0, 0.0), (-5000.0, 100.0)],
    ids=["some-left", "at-once", "used-up", "long-off", "clock-went-back"],
)
def test_recover_in_another_boot_keeps_what_is_left_by_the_wall_clock(
    c: apsw.Connection, clocks: Clocks, wall_passed: float, left: float
) -> None:
    """A clock that went back takes nothing away, and gives nothing beyond what was asked."""
    waiting = put(c, ask("1", deadline_s=100)).rid
    unlimited = put(c, ask("2")).rid
    clocks.boot, clocks.wall = 7.0, clocks.wall + wall_passed
    assert requests.recover(c, "boot-2").rows == []
    row = lookup.get(c, waiting)
    assert row.deadline_boot is not None
    assert row.deadline_boot == pytest.approx(7.0 + left)
    assert row.deadline_boot - row.accepted_boot == pytest.approx(100.0)
    assert lookup.get(c, unlimited).deadline_boot is None
    assert lookup.get(c, unlimited).accepted_boot == 7.0


def test_recover_through_several_boots_adds_up(c: apsw.Connection, clocks: Clocks) -> None:
    """Each boot takes what passed since the request came in, once."""
    rid = put(c, ask(deadline_s=100)).rid
    for boot, left in (("boot-2", 70.0), ("boot-3", 40.0), ("boot-3", 40.0)):
        if left == 70.0 or lookup.get(c, rid).deadline_boot == pytest.approx(5.0 + 70.0):
            clocks.wall += 30
        clocks.boot = 5.0
        requests.recover(c, boot)
        assert lookup.get(c, rid).deadline_boot == pytest.approx(5.0 + left)


# -- finding, and conversations ----------------------------------------------------------------------------------------


def test_find_by_rid_or_by_the_clients_id(c: apsw.Connection) -> None:
    """The latest of an id; a rid goes before an id; another client's are not shown to one."""
    a = finished(c, ask(id="x"), Status.REFUSED)
    b = put(c, ask(id="x")).rid
    d = put(c, ask(id="x", client="d")).rid
    e = put(c, ask(id=a)).rid
    cases = [
        ("x", None, d),
        ("x", "c", b),
        ("x", "d", d),
        ("x", "e", None),
        (a, None, a),
        (b, "d", None),
        ("?", None, None),
    ]
    for name, client, rid in cases:
        found = lookup.find(c, name, client)
        assert (found.rid if found else None) == rid
    assert e != a
    with pytest.raises(KeyError):
        lookup.get(c, "x")


def test_latest_and_counts_show_the_states(c: apsw.Connection) -> None:
    """Newest first."""
    done = finished(c)
    waiting = [put(c).rid for _ in range(3)]
    assert [row.rid for row in lookup.latest(c, 2)] == waiting[:0:-1]
    assert [row.rid for row in lookup.latest(c, 9, (State.DONE,))] == [done]
    assert lookup.counts(c) == {"done": 1, "received": 3}


def test_unfinished_are_counted_from_their_index(c: apsw.Connection) -> None:
    """It is asked once a second, and the rows are the larger part of a store of 64 MiB."""
    put(c)
    asked: list[str] = []
    c.trace_v2(apsw.SQLITE_TRACE_STMT, lambda event: asked.append(event["sql"]))
    assert lookup.unfinished(c) == {"received": 1}
    c.trace_v2(0, None)
    [look] = [str(row[3]) for row in c.execute(f"EXPLAIN QUERY PLAN {asked[0]}")]
    assert "USING INDEX requests_unfinished" in look


def turn(text: str) -> conversations.Turn:
    return (Message("user", text), Message("assistant", "ok", (ToolCall("t", {"a": 1}),)))


def test_history_is_the_conversations_turns_before_the_request(c: apsw.Connection, clocks: Clocks) -> None:
    """Per client and agent, oldest first; later turns of a request that was overtaken are not seen."""
    for text, client in (("1", "c"), ("x", "d"), ("2", "c")):
        put(c, ask(text, client=client, conversation="k"))
        conversations.add_turn(c, claim(c), turn(text), clocks.wall + 60, private=True)
        settle(c, lookup.latest(c, 1)[0].rid)
    put(c, ask("3", conversation="k"))
    assert conversations.history(c, claim(c)) == [PastTurn(turn("1"), True), PastTurn(turn("2"), True)]
    put(c, ask("4"))
    assert conversations.history(c, claim(c)) == []


def test_history_expires_as_a_whole_and_lives_on_with_its_newest_turn(c: apsw.Connection, clocks: Clocks) -> None:
    """A conversation that goes on keeps its beginning."""
    rows = []
    for text in ("1", "2", "3"):
        rid = put(c, ask(text, conversation="k")).rid
        rows.append(claim(c))
        settle(c, rid)
    conversations.add_turn(c, rows[0], turn("1"), clocks.wall + 60, private=True)
    clocks.advance(50)
    conversations.add_turn(c, rows[1], turn("2"), clocks.wall + 60, private=True)
    clocks.advance(50)
    assert conversations.history(c, rows[2]) == [PastTurn(turn("1"), True), PastTurn(turn("2"), True)]
    clocks.advance(50)
    assert conversations.history(c, rows[2]) == []
    retention.trim(c, DAY, "boot-1", PLENTY, ("mqtt",))
    assert c.execute("SELECT count(*) FROM turns").get == 0


def test_history_keeps_the_newest_turns_only(c: apsw.Connection, clocks: Clocks) -> None:
    """More than a model's context could ever hold are not stored."""
    for i in range(conversations.TURNS_KEPT + 5):
        rid = put(c, ask(conversation="k")).rid
        conversations.add_turn(c, claim(c), turn(str(i)), clocks.wall + 60, private=True)
        settle(c, rid)
    put(c, ask(conversation="k"))
    history = conversations.history(c, claim(c))
    assert len(history) == conversations.TURNS_KEPT
    assert history[0].messages[0].content == "5"
    assert c.execute("SELECT count(*) FROM turns").get == conversations.TURNS_KEPT


def test_claim_takes_what_ran_when_the_daemon_died_first(c: apsw.Connection) -> None:
    """Until it is over one request runs at a time, so it must not wait behind everything else."""
    survivor = put(c, ask("batch", priority=Priority.BATCH)).rid
    assert claim(c).rid == survivor
    _ended(c)
    requests.put_back(c, survivor)
    put(c, ask("urgent", deadline_s=1.0))
    assert claim(c).rid == survivor


# -- trim --------------------------------------------------------------------------------------------------------------


def test_trim_forgets_finished_requests_past_the_retention_with_all_they_had(
    c: apsw.Connection, clocks: Clocks
) -> None:
    """Journal, packets and outbox rows go along; afterwards the id is free."""
    old = finished(c, ask(id="a", packet=Packet(1, b"x", False)))
    journal.intend(c, old, 0, Intent(ToolCall("t", {}), None))
    clocks.advance(8 * DAY)
    young = finished(c, ask(id="b"))
    waiting = put(c).rid
    assert retention.trim(c, 7 * DAY, "boot-1", PLENTY, ("mqtt",)) == 1
    assert [row.rid for row in lookup.latest(c, 9)] == [waiting, young]
    assert c.execute("SELECT (SELECT count(*) FROM steps) + (SELECT count(*) FROM packets)").get == 0
    assert not put(c, ask(id="a")).known


def test_trim_forgets_a_reply_that_nobody_can_deliver_any_more(c: apsw.Connection, clocks: Clocks) -> None:
    """Its transport is gone from the configuration. Until the retention it waits for that to come back."""
    finished(c, ask(reply_topic="r"))
    assert outbox.waiting(c, ("mqtt",)) == 1
    assert outbox.waiting(c, ()) == 0
    assert retention.trim(c, 7 * DAY, "boot-1", PLENTY, ()) == 0
    clocks.advance(8 * DAY)
    assert retention.trim(c, 7 * DAY, "boot-1", PLENTY, ("mqtt",)) == 0
    assert retention.trim(c, 7 * DAY, "boot-1", PLENTY, ()) == 1
    assert outbox.waiting(c, ("mqtt",)) == 0


def test_trim_keeps_what_is_unfinished_or_not_delivered(c: apsw.Connection, clocks: Clocks) -> None:
    """However old, and however full the store."""
    undelivered = finished(c, ask("1", reply_topic="r"))
    waiting = put(c, ask("2")).rid
    clocks.advance(100 * DAY)
    assert retention.trim(c, 0, "boot-1", 0, ("mqtt",)) == 0
    [delivery] = outbox.ready(c, ("mqtt",), (), 9)
    outbox.confirm(c, delivery)
    assert retention.trim(c, -1, "boot-1", 0, ("mqtt",)) == 1
    with pytest.raises(KeyError):
        lookup.get(c, undelivered)
    assert lookup.get(c, waiting).state is State.RECEIVED


def test_trim_on_a_board_that_learns_the_date_forgets_nothing_of_this_boot(c: apsw.Connection, clocks: Clocks) -> None:
    """A clock that jumps by years does not make what was just done old; in a later boot the date is all there is."""
    rid = finished(c, ask(id="a"))
    clocks.wall += 3000 * DAY
    assert retention.trim(c, 7 * DAY, "boot-1", PLENTY, ("mqtt",)) == 0
    assert put(c, ask(id="a")).rid == rid
    assert retention.trim(c, 7 * DAY, "boot-2", PLENTY, ("mqtt",)) == 1


def test_trim_of_a_nearly_full_store_forgets_the_oldest_first(c: apsw.Connection, clocks: Clocks) -> None:
    """Before the queue has to refuse; a store with room keeps what is young."""
    rids = []
    for _ in range(retention.TRIM_FOR_ROOM + 10):
        rids.append(finished(c))
        clocks.advance(1)
    assert retention.trim(c, DAY, "boot-1", PLENTY, ("mqtt",)) == 0
    assert retention.trim(c, DAY, "boot-1", retention.used_bytes(c), ("mqtt",)) == retention.TRIM_FOR_ROOM
    assert [row.rid for row in lookup.latest(c, 99)] == rids[: retention.TRIM_FOR_ROOM - 1 : -1]


# -- journal -----------------------------------------------------------------------------------------------------------


def test_journal_gives_the_steps_back_in_order(c: apsw.Connection) -> None:
    """An intent without a result is a step that may have been done."""
    rid = put(c).rid
    call = ToolCall("t", {"a": [1, {"b": "ü"}], "c": None})
    for number in (1, 0):
        journal.intend(c, rid, number, Intent(call, -0.5 if number else None))
    journal.finish(c, rid, Step(0, Intent(call, None), Result({"rows": [{"x": 1.5}]}, True)))
    first, second = journal.steps(c, rid)
    assert (first.number, first.intent, first.result) == (
        0, Intent(call, None), Result({"rows": [{"x": 1.5}]}, True),
    )  # fmt: skip
    assert (second.number, second.intent, second.result) == (1, Intent(call, -0.5), None)
    assert journal.steps(c, "other") == []


def test_journal_refuses_a_second_intent_for_a_step(c: apsw.Connection) -> None:
    """Two runs of one request would be a bug that must not stay unseen."""
    rid = put(c).rid
    journal.intend(c, rid, 0, Intent(ToolCall("t", {}), None))
    with pytest.raises(apsw.ConstraintError):
        journal.intend(c, rid, 0, Intent(ToolCall("u", {}), None))
    with pytest.raises(apsw.ConstraintError):
        journal.intend(c, "unknown", 0, Intent(ToolCall("u", {}), None))


def test_every_pair_of_names_is_told_apart(c: apsw.Connection) -> None:
    """(client, id) and (client, correlation) exhaustively: two clients, two names, both ways of naming."""
    clients = ("c", "d")
    names: tuple[dict[str, Any], ...] = (
        {"id": "1"},
        {"id": "2"},
        {"key": "corr:1"},
        {"key": "corr:2"},
        {"key": "id-1"},
    )
    made = {
        (client, str(name)): put(c, ask(client=client, **name)).rid
        for client, name in itertools.product(clients, names)
    }
    assert len(set(made.values())) == len(made)
    for (client, _), name in zip(made, itertools.cycle(names), strict=False):
        assert put(c, ask(client=client, **name)).rid == made[client, str(name)]
