"""The books of the crash tests can find something: each kind of broken promise, planted."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace
from typing import Any

import pytest

from tests.support.fault_verdict import KEEP, LAMP, NOTE, AckOrder, Books, Due, World, judge

ZEROES = ("lost", "differing", "duplicated", "missing", "failed", "disordered", "stuck")


def reply(*calls: tuple[str, dict[str, Any], bool], status: str = "done") -> bytes:
    made = [{"name": name, "arguments": arguments, "ok": ok} for name, arguments, ok in calls]
    return json.dumps({"status": status, "tool_calls": made}).encode()


NOTED = reply(("note", {"text": "n1"}, True))
LIT = reply(("lamp", {}, True))


def good() -> tuple[Books, World]:
    """Two notes and a lamp, all answered, one of the replies twice."""
    books = Books({1: "a", 2: "b", 3: "c"}, {1: [NOTED, NOTED], 2: [NOTED], 3: [LIT]})
    return books, World(Counter({"n1": 2}), 1, ["done"] * 3)


def test_good_books_are_good() -> None:
    """A copy is counted, and is no harm; nor is a lamp that was told twice."""
    books, world = good()
    verdict = judge(books, world)
    assert verdict.kept
    assert (verdict.requests, verdict.effects, verdict.copies, verdict.repeats) == (3, 3, 1, 0)
    again = judge(books, replace(world, lamps=2))
    assert again.kept
    assert again.repeats == 1


KEPT = reply(("keep", {"text": "k4"}, True))


def known() -> tuple[Books, World]:
    """The same of a load that knows what has to come of each."""
    due = {
        1: Due(effects=((NOTE, "n1"),)),
        2: Due(effects=((KEEP, "k4"),)),
        3: Due(effects=((LAMP, ""),)),
        4: Due(frozenset({"cancelled"})),
    }
    ended = reply(status="cancelled")
    books = Books(dict.fromkeys(due, ""), {1: [NOTED], 2: [KEPT], 3: [LIT], 4: [ended]}, due)
    return books, World(Counter(["n1"]), 1, ["done"] * 3 + ["cancelled"], kept=Counter(["k4"]), tries=1)


def test_a_key_that_comes_again_is_a_repeat() -> None:
    """The Python tool was called twice, and has it once."""
    books, world = known()
    verdict = judge(books, replace(world, tries=2))
    assert verdict.kept
    assert verdict.repeats == 1


@pytest.mark.parametrize(
    ("replies", "there", "broken"),
    [
        ({1: [reply()]}, {}, ["failed"]),
        ({1: [reply()]}, {"notes": Counter()}, ["missing", "failed"]),
        ({1: [reply(("note", {"text": "n2"}, True))]}, {"notes": Counter(["n2"])}, ["duplicated", "missing", "failed"]),
        ({1: [reply(status="failed")]}, {"notes": Counter()}, ["failed"]),
        ({4: [reply()]}, {}, ["failed"]),
        ({}, {"kept": Counter(["k4", "k4"]), "tries": 2}, ["duplicated"]),
        ({}, {"kept": Counter(), "tries": 0}, ["missing"]),
    ],
)
def test_reply_that_tells_another_story_is_found(
    replies: dict[int, list[bytes]], there: dict[str, Any], broken: list[str]
) -> None:
    """The load knows what had to come of a request: a reply is no witness of its own."""
    books, world = known()
    assert judge(books, world).kept
    books.replies |= replies
    verdict = judge(books, replace(world, **there))
    assert [name for name in ZEROES if asdict(verdict)[name]] == broken


@pytest.mark.parametrize(("times", "kept"), [(0, True), (1, True), (2, False)])
def test_effect_of_a_tool_that_was_killed_may_be_there_once(times: int, kept: bool) -> None:
    """What it was doing failed."""
    books, world = known()
    books.due[2] = Due(frozenset({"done", "failed"}), ((KEEP, "k4"),), unsure=True)
    books.replies[2] = [reply(status="failed")]
    assert judge(books, replace(world, kept=Counter({"k4": times}), tries=times)).kept is kept


@pytest.mark.parametrize(
    ("found", "broken"),
    [
        ({"books": {1: [NOTED], 3: [LIT]}, "world": {"notes": Counter({"n1": 1})}}, "lost"),
        ({"books": {1: [NOTED, NOTED + b" "], 2: [NOTED], 3: [LIT]}}, "differing"),
        ({"world": {"notes": Counter({"n1": 3})}}, "duplicated"),
        ({"world": {"notes": Counter({"n1": 2, "other": 1})}}, "duplicated"),
        ({"world": {"notes": Counter({"n1": 1})}}, "missing"),
        ({"world": {"lamps": 0}}, "missing"),
        ({"books": {1: [NOTED], 2: [NOTED], 3: [reply(status="failed")]}, "world": {"lamps": 0}}, "failed"),
        ({"world": {"disordered": 1}}, "disordered"),
        ({"world": {"states": ["done", "done", "running"]}}, "stuck"),
        ({"world": {"undelivered": 1}}, "stuck"),
    ],
)
def test_planted_fault_is_found_and_called_by_its_name(found: dict[str, Any], broken: str) -> None:
    """And no other."""
    books, world = good()
    books.replies = found.get("books", books.replies)
    verdict = judge(books, replace(world, **found.get("world", {})))
    assert not verdict.kept
    assert [name for name in ZEROES if asdict(verdict)[name]] == [broken]


def publish(mid: int, payload: bytes = b"x" * 200) -> bytes:
    body = b"\0\1t" + mid.to_bytes(2, "big") + b"\0" + payload
    return bytes([0x32, 0x80 | len(body) & 0x7F, len(body) >> 7]) + body


def ack(mid: int) -> bytes:
    return b"\x40\x02" + mid.to_bytes(2, "big")


@pytest.mark.parametrize(("acks", "wanted"), [([1, 2, 3], 0), ([2, 1, 3], 1), ([3, 1, 2], 1), ([1], 0)])
@pytest.mark.parametrize("piece", [1, 7, 10_000])
def test_acknowledgements_that_overtake_are_counted(acks: list[int], wanted: int, piece: int) -> None:
    """Whatever the pieces are in which the bytes pass; another connection begins anew."""
    order = AckOrder()
    for connection in (1, 2):
        for up, data in ((False, b"".join(map(publish, (1, 2, 3)))), (True, b"".join(map(ack, acks)))):
            for at in range(0, len(data), piece):
                order.hear(connection, up, data[at : at + piece])
    assert order.disordered == 2 * wanted
    assert not order.confirmed


def test_what_the_broker_confirmed_is_counted_by_topic() -> None:
    """Once, though it was sent twice; what it did not confirm is not."""
    order = AckOrder()
    order.hear(1, True, publish(1) + publish(1) + publish(2))
    order.hear(1, False, ack(1))
    assert order.confirmed == Counter({"t": 1})
