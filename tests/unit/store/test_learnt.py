"""Examples in the store: one a text and role, so many a tool, gone with their request."""

from __future__ import annotations

from typing import Any

import apsw
import pytest

from edged.store import conversations, learnt, lookup, requests, retention
from edged.store.learnt import Lesson, Source
from edged.store.recovery import mend
from edged.types import Status, ToolCall
from tests.support.store import ask, claim, put, store

DAY = 86_400


@pytest.fixture
def c() -> apsw.Connection:
    """An empty store."""
    return store()


def lesson(text: str = "open it", valve: str = "north", **fields: Any) -> Lesson:
    """An example of one call."""
    calls = (ToolCall("set_valve", {"valve": valve}),)
    return Lesson(**{"agent": "house", "role": "", "source": Source.UPSTREAM, "text": text, "calls": calls, **fields})


def texts(c: apsw.Connection, **which: Any) -> list[str]:
    """Of the examples."""
    return [each.lesson.text for each in learnt.known(c, **which)]


def test_example_comes_back_as_it_was_kept(c: apsw.Connection) -> None:
    rid = put(c).rid
    kept = lesson(rid=rid, private=True, role="viewer")
    learnt.keep(c, kept)
    [found] = learnt.known(c)
    assert found.lesson == kept


def test_examples_are_those_of_one_agent_and_role(c: apsw.Connection) -> None:
    for place, (agent, role) in enumerate([("house", ""), ("house", "viewer"), ("barn", "viewer")]):
        learnt.keep(c, lesson(str(place), agent=agent, role=role))
    assert texts(c, agent="house", role="viewer") == ["1"]
    assert texts(c, agent="house", role="") == ["0"]
    assert texts(c, agent="house") == ["0", "1"]
    assert texts(c, role="viewer") == ["1", "2"]


def test_newest_of_a_text_counts_and_the_owner_before_any_upstream(c: apsw.Connection) -> None:
    learnt.keep(c, lesson(valve="north"))
    learnt.keep(c, lesson(valve="south"))
    assert [each.lesson.calls[0].arguments for each in learnt.known(c)] == [{"valve": "south"}]
    assert learnt.keep(c, lesson(valve="east", source=Source.ADDED)) is not None
    assert learnt.keep(c, lesson(valve="north")) is None
    assert learnt.keep(c, lesson(valve="west", source=Source.CORRECTED)) is not None
    assert [each.lesson.calls[0].arguments for each in learnt.known(c)] == [{"valve": "west"}]
    assert learnt.keep(c, lesson(valve="north", role="viewer")) is not None  # another role's own


def test_correction_takes_the_place_of_what_its_request_taught(c: apsw.Connection) -> None:
    rid = put(c).rid
    learnt.keep(c, lesson(rid=rid))
    learnt.keep(c, lesson("open it, as it was stored", rid=rid, source=Source.CORRECTED))
    assert learnt.keep(c, lesson(rid=rid)) is None
    assert texts(c) == ["open it, as it was stored"]


def test_a_tool_has_so_many_and_the_owners_stay_longest(c: apsw.Connection) -> None:
    learnt.keep(c, lesson("mine", source=Source.ADDED))
    learnt.keep(c, lesson("barn's", agent="barn"))
    for place in range(learnt.MOST + 3):
        learnt.keep(c, lesson(str(place)))
    assert texts(c, agent="house") == ["mine", *(str(place) for place in range(4, learnt.MOST + 3))]
    assert texts(c, agent="barn") == ["barn's"]


def test_example_goes_with_its_request(c: apsw.Connection) -> None:
    """Whatever forgets that: the retention, or want of room."""
    rid = put(c).rid
    claim(c)
    requests.settle(c, rid, Status.DONE, b"{}")
    learnt.keep(c, lesson("of a request", rid=rid))
    learnt.keep(c, lesson("written", source=Source.ADDED))
    assert retention.trim(c, 7 * DAY, "boot-1", 2**30, ()) == 0
    assert texts(c) == ["of a request", "written"]
    assert retention.trim(c, 7 * DAY, "boot-1", 1, ()) == 1
    assert texts(c) == ["written"]


def test_forgetting_names_one_or_many(c: apsw.Connection) -> None:
    numbers = [
        learnt.keep(c, lesson(text, agent=agent, role=role))
        for text, agent, role in [("a", "house", ""), ("b", "house", "viewer"), ("c", "barn", ""), ("d", "barn", "")]
    ]
    assert learnt.forget(c, numbers[0]) == 1
    assert learnt.forget(c, numbers[0]) == 0
    assert learnt.forget(c, agent="barn", role="viewer") == 0
    assert learnt.forget(c, role="viewer") == 1
    assert texts(c) == ["c", "d"]
    assert learnt.keep(c, lesson("e")) == 5
    learnt.forget(c, 5)
    assert learnt.keep(c, lesson("f")) == 6  # a number that somebody has noted never means another one
    assert learnt.forget(c) == 3


def test_salvage_keeps_what_is_whole(c: apsw.Connection) -> None:
    c.execute("PRAGMA foreign_keys = OFF")
    learnt.keep(c, lesson("whole", source=Source.ADDED))
    learnt.keep(c, lesson("its request is lost", rid="gone"))
    columns = "INSERT INTO learnt(agent, role, tool, source, private, text, calls, at) VALUES "
    c.execute(
        columns
        + "('house', '', 't', 'added', 0, 'no calls', x'7b', 1), ('house', '', 't', 'x', 0, 'whose', x'5b5d', 1)"
    )
    mend.mend(c)
    assert texts(c) == ["whole"]


def test_what_follows_in_a_conversation_is_known(c: apsw.Connection) -> None:
    rids = [put(c, ask(str(n), conversation="kitchen")).rid for n in range(2)]
    alone = put(c, ask("alone")).rid
    assert [conversations.follows(c, lookup.get(c, rid)) for rid in (*rids, alone)] == [False, True, False]
