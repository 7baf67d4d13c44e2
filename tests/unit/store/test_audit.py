"""The audit log's chain: what it shows, what it forgets, and what it never holds."""

from __future__ import annotations

from collections.abc import Iterator

import apsw
import pytest

from edged.host import clock
from edged.store import audit
from edged.types import AuditEntry
from tests.support.store import store

DAY = 86400.0


@pytest.fixture
def c(monkeypatch: pytest.MonkeyPatch) -> Iterator[apsw.Connection]:
    """A store with ten entries, a second apart."""
    now = [1e9]
    monkeypatch.setattr(clock, "wall", lambda: now[0])
    connection = store()
    for number in range(10):
        now[0] += 1
        audit.append(connection, entry(number))
    yield connection
    connection.close()


def entry(number: int) -> AuditEntry:
    return AuditEntry(what="request.accepted", who=f"unix:{number % 2}", rid=f"r{number}", about={"agent": "house"})


def test_chain_that_nobody_touched_is_whole(c: apsw.Connection) -> None:
    """And knows each head it ever had; an empty one is whole, too."""
    heads = [bytes(made).hex() for (made,) in c.execute("SELECT hash FROM audit ORDER BY seq")]
    found = audit.verify(c)
    assert (found.first, found.last, found.problem) == (1, 10, None)
    assert found.head == heads[-1] == audit.head(c).hash
    assert all(audit.verify(c, head).knows for head in heads)
    assert not audit.verify(c, "00" * 32 + "11").knows
    assert audit.verify(store()) == audit.Found(1, 0, audit.NO_HASH.hex())


@pytest.mark.parametrize(
    ("tampering", "problem"),
    [
        (
            "UPDATE audit SET body = CAST(replace(body, 'unix:1', 'unix:0') AS BLOB) WHERE seq = 4",
            "row 4 is not as it was written",
        ),
        ("UPDATE audit SET at = at + 1 WHERE seq = 4", "row 4 is not as it was written"),
        ("UPDATE audit SET hash = zeroblob(32) WHERE seq = 4", "row 4 is not as it was written"),
        ("DELETE FROM audit WHERE seq IN (4, 5)", "rows 4 to 5 are missing"),
        ("DELETE FROM audit WHERE seq <= 2", "rows 1 to 2 are missing"),
        ("DELETE FROM audit WHERE seq = 5; UPDATE audit SET seq = 5 WHERE seq = 6", "row 5 is not as it was written"),
    ],
)
def test_what_was_changed_is_found(tampering: str, problem: str, c: apsw.Connection) -> None:
    """The first row that is not right is named."""
    c.execute(tampering).fetchall()
    assert audit.verify(c).problem == problem


def test_cut_off_end_is_missed_by_whoever_knows_a_head(c: apsw.Connection) -> None:
    """The chain alone cannot show it."""
    known = audit.head(c).hash
    c.execute("DELETE FROM audit WHERE seq > 7").fetchall()
    assert audit.verify(c).problem is None
    assert not audit.verify(c, known).knows


def test_piece_of_work_that_is_undone_leaves_the_chain_whole(c: apsw.Connection) -> None:
    """The next row's hash is made of what is really there."""
    before = audit.head(c)
    c.execute("SAVEPOINT piece")
    audit.append(c, entry(10))
    c.execute("ROLLBACK TO piece")
    assert audit.head(c) == before
    audit.append(c, entry(11))
    assert audit.verify(c).problem is None


def test_what_is_forgotten_leaves_the_rest_provable(monkeypatch: pytest.MonkeyPatch, c: apsw.Connection) -> None:
    """Old rows go from the beginning; the newest stay whatever their age, unless the store is full."""
    assert audit.forget(c, 0.0) == 0
    monkeypatch.setattr(audit, "KEPT_ROWS", 4)
    assert audit.forget(c, 100.0) == 0
    assert audit.forget(c, 5.5) == 4
    found = audit.verify(c)
    assert (found.first, found.last, found.problem) == (5, 10, None)
    assert audit.forget(c, 0.0) == 2
    assert audit.verify(c).first == 7
    monkeypatch.setattr(audit, "FORGET", 2)
    assert audit.forget(c, 1e9, crowded=True) == 2
    assert audit.verify(c).problem is None
    audit.append(c, entry(10))
    assert [row["seq"] for row in audit.entries(c, 10)] == [9, 10, 11]
    assert audit.verify(c).problem is None


def test_entries_can_be_chosen(c: apsw.Connection) -> None:
    """By who, and by request; the newest, in their order."""
    assert [row["rid"] for row in audit.entries(c, 2)] == ["r8", "r9"]
    assert [row["rid"] for row in audit.entries(c, 3, who="unix:0")] == ["r4", "r6", "r8"]
    assert [(row["seq"], row["who"], row["what"]) for row in audit.entries(c, 9, rid="r3")] == [
        (4, "unix:1", "request.accepted")
    ]


def test_arguments_are_told_as_far_as_they_are_no_text() -> None:
    """Numbers and words of an enumeration; never what is private."""
    arguments = {"valve": "north", "level": 4.5, "on": True, "note": "my secret", "list": [1], "none": None, "pin": 7}
    assert audit.masked(arguments, {"valve"}, {"pin"}) == {
        "valve": "north",
        "level": 4.5,
        "on": True,
        "note": {"bytes": 11},
        "list": {"bytes": 3},
        "none": None,
        "pin": {"bytes": 1},
    }


def test_entry_with_half_a_surrogate_pair_is_kept_spelled(c: apsw.Connection) -> None:
    """A tool's error quotes the name of a file that is no UTF-8; what may not be missing here is the entry."""
    about = {"reason": "T\udcfcr.jpg", "parts": ["\ud800"], "\udcff": 1}
    audit.append(c, AuditEntry(what="tool.called", who="edged", about=about))
    (told,) = audit.entries(c, 1)
    assert told["about"] == {"reason": r"T\udcfcr.jpg", "parts": [r"\ud800"], r"\udcff": 1}
    assert audit.verify(c).problem is None
