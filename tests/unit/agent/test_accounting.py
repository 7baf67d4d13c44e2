"""The books of a request's time, with a clock that a test moves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from edged.agent.accounting import Accounting
from edged.errors import NoLink, NoMemory
from edged.host import clock
from edged.types import ChatAnswer, Completion, Finish, Spent, Timing, Usage
from tests.support.timing import assert_adds_up


class Hand:
    """The clock's; `moves` it by milliseconds."""

    def __init__(self) -> None:
        self.now = 500.0

    def moves(self, ms: float) -> None:
        self.now += ms / 1000


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Hand:
    made = Hand()
    monkeypatch.setattr(clock, "boot", lambda: made.now)
    return made


def completion(**times: Any) -> Completion:
    """Of 100 prompt tokens, 60 of them cached, and 20 tokens in 8 steps."""
    counts: dict[str, Any] = {"prompt_tokens": 100, "cached_tokens": 60, "completion_tokens": 20, "forced_tokens": 11}
    unsaid = dict.fromkeys(("load_ms", "queue_ms", "prefill_ms", "first_token_ms", "decode_ms"), 0.0)
    return Completion(text="", finish=Finish.STOP, decode_steps=8, logprob=None, **counts, **{**unsaid, **times})


def told(tally: Accounting) -> dict[str, float]:
    """What a reply says; it adds up, whatever it is."""
    timing: dict[str, float] = msgspec.to_builtins(tally.timing())
    assert_adds_up(timing)
    return {name: value for name, value in timing.items() if value}


def took(tally: Accounting) -> tuple[float, float, float, float]:
    """What the estimates learn from it."""
    need = tally.need()
    return need.prompt_tokens, need.steps, need.other_s, need.work_s


def generate(tally: Accounting, hand: Hand, took_ms: float, done: Completion) -> None:
    """A generation on the board."""
    with tally.local() as generating:
        hand.moves(took_ms)
        generating.done = done


def test_every_part_of_a_request_has_its_place(hand: Hand) -> None:
    """Two generations with a tool between them, and what lies around them."""
    hand.moves(30)  # in the queue
    tally = Accounting(500.0)
    hand.moves(2)  # the store is read
    with tally.loading():
        hand.moves(50)  # the template
    hand.moves(3)  # the prompt is rendered
    first = completion(load_ms=400, queue_ms=20, prefill_ms=600, first_token_ms=1025, decode_ms=90)
    generate(tally, hand, 1117, first)  # 5 until the engine took it, 2 until the loop heard of its end
    with tally.tool():
        hand.moves(15)
    generate(tally, hand, 250, completion(prefill_ms=100, first_token_ms=100, decode_ms=150))
    hand.moves(1)
    assert told(tally) == {
        "queue_ms": 50.0,
        "load_ms": 450.0,
        "prefill_ms": 700.0,
        "first_token_ms": 1110.0,
        "decode_ms": 242.0,
        "tools_ms": 15.0,
        "other_ms": 11.0,
        "total_ms": 1468.0,
    }
    assert tally.usage() == Usage(prompt_tokens=200, cached_tokens=120, completion_tokens=40, decode_steps=16)
    # 30 were waited before it began, 20 in the engine, 450 are loads
    assert took(tally) == pytest.approx((80, 16, 0.026, 0.968))


def test_escalation_counts_the_board_and_then_the_upstream(hand: Hand) -> None:
    """Which waits for room in its budget, then for its first token."""
    tally = Accounting()
    generate(tally, hand, 100, completion(prefill_ms=60, first_token_ms=60, decode_ms=40))
    with tally.upstream() as asked:
        hand.moves(7 + 500)
        asked.done = ChatAnswer(
            text="", finish="stop", prompt_tokens=9, cached_tokens=1, completion_tokens=3, first_token_ms=300,
            total_ms=500,
        )  # fmt: skip
    assert told(tally) == {
        "queue_ms": 7.0, "prefill_ms": 360.0, "first_token_ms": 60.0, "decode_ms": 240.0, "total_ms": 607.0,
    }  # fmt: skip
    assert tally.usage().completion_tokens == 23
    assert took(tally) == pytest.approx((40, 8, 0.507, 0.607))


BROKEN: dict[str, tuple[Callable[[Accounting], Any], BaseException, float | None, dict[str, float]]] = {
    "local, cancelled before a token": (Accounting.local, asyncio.CancelledError(), None, {"other_ms": 100.0}),
    "local, cancelled amid": (
        Accounting.local, asyncio.CancelledError(), 70.0, {"other_ms": 70.0, "decode_ms": 30.0, "first_token_ms": 70.0},
    ),
    "local, refused": (Accounting.local, NoMemory("no room"), None, {"load_ms": 100.0}),
    "upstream, not there": (Accounting.upstream, NoLink("nobody"), None, {"prefill_ms": 100.0}),
    "upstream, cut": (
        Accounting.upstream, NoLink("cut"), 70.0, {"prefill_ms": 70.0, "decode_ms": 30.0, "first_token_ms": 70.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_generation_that_ends_badly_is_in_the_books(hand: Hand, case: str) -> None:
    """As far as is known what it was doing."""
    around, error, first_ms, parts = BROKEN[case]
    tally = Accounting()
    with contextlib.suppress(type(error)), around(tally) as one:
        hear = one.hearing(None)
        if first_ms is not None:
            hand.moves(first_ms)
            hear("a")
        hand.moves(100 - (first_ms or 0))
        raise error
    assert told(tally) == {**parts, "total_ms": 100.0}


def test_hearing_hands_everything_on(hand: Hand) -> None:
    """And notes the first piece only."""
    heard: list[str] = []
    with Accounting().local() as one:
        hear = one.hearing(heard.append)
        for piece in "abc":
            hand.moves(10)
            hear(piece)
        one.done = completion(first_token_ms=10)
    assert heard == ["a", "b", "c"]
    assert one.first_ms == pytest.approx(10)


def test_tool_that_is_broken_off_was_a_tool(hand: Hand) -> None:
    """A write is waited for, however the request ends."""
    tally = Accounting()
    with contextlib.suppress(asyncio.CancelledError), tally.tool():
        hand.moves(40)
        raise asyncio.CancelledError
    assert told(tally) == {"tools_ms": 40.0, "total_ms": 40.0}


def test_what_an_earlier_attempt_took_keeps_its_names(hand: Hand) -> None:
    """Only what passed between the two was a wait."""
    first = Accounting()
    generate(first, hand, 100, completion(prefill_ms=60, first_token_ms=60, decode_ms=40))
    hand.moves(5)
    spent = msgspec.json.decode(msgspec.json.encode(first.spent()), type=Spent)
    hand.moves(10_000)  # without a link
    second = Accounting(500.0, spent)
    with second.upstream() as asked:
        hand.moves(50)
        asked.done = ChatAnswer(
            text="",
            finish="stop",
            prompt_tokens=9,
            cached_tokens=1,
            completion_tokens=3,
            first_token_ms=50,
            total_ms=50,
        )
    assert told(second) == {
        "queue_ms": 10_000.0, "prefill_ms": 110.0, "first_token_ms": 60.0, "decode_ms": 40.0, "other_ms": 5.0,
        "total_ms": 10_155.0,
    }  # fmt: skip
    assert second.usage().completion_tokens == 23
    assert second.need().steps == 0


def test_attempt_of_an_earlier_boot_is_not_lost_nor_counted_twice(hand: Hand) -> None:
    """After a reboot the acceptance is moved into the time of this boot: the parts are more than it knows of."""
    spent = Spent(Usage(), Timing(prefill_ms=800.0, first_token_ms=800.0, total_ms=800.0))
    tally = Accounting(hand.now - 0.3, spent)
    hand.moves(20)
    assert told(tally) == {"prefill_ms": 800.0, "first_token_ms": 800.0, "total_ms": 800.0}


def test_request_that_nobody_worked_on_has_waited(hand: Hand) -> None:
    """Expired or cancelled in the queue."""
    hand.moves(1234.56)
    assert told(Accounting(500.0)) == {"queue_ms": 1234.6, "total_ms": 1234.6}


def test_parts_are_the_whole_however_they_are_rounded(hand: Hand) -> None:
    """Hundredths of milliseconds everywhere."""
    for step in range(1, 200):
        tally = Accounting(hand.now - step / 7000)
        hand.moves(step / 13)
        generate(tally, hand, step / 3, completion(prefill_ms=step / 9, first_token_ms=step / 9, decode_ms=step / 6))
        told(tally)
