"""The books of the crash tests: what a load knows by itself, what there is at the end, and the verdict. No line of it
is edged's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

FINAL = {"done", "failed", "expired", "cancelled", "quarantined"}
NOTE, KEEP, LAMP = "note", "keep", "lamp"
PUBLISH, PUBACK = 3, 4  # types of MQTT packets


@dataclass(frozen=True)
class Due:
    """What has to come of a request. effects: (tool, text) of each, where it is done; unsure: one that failed may have
    had them all the same, as that of a tool that was killed."""

    statuses: frozenset[str] = frozenset({"done"})
    effects: tuple[tuple[str, str], ...] = ()
    unsure: bool = False


@dataclass
class Books:
    """What a load knows by itself. asked: texts by number, of what was handed over for good (the broker confirmed it,
    or the client asks until it is answered). replies: every copy's bytes, by number. due: what has to come of them;
    without it (a real model decides) what the reply tells. refused: how often it was told to come again, and did."""

    asked: dict[int, str] = field(default_factory=dict)
    replies: dict[int, list[bytes]] = field(default_factory=dict)
    due: dict[int, Due] = field(default_factory=dict)
    refused: int = 0

    def keep(self, number: int, reply: bytes) -> None:
        """One copy of a reply."""
        self.replies.setdefault(number, []).append(reply)


@dataclass(frozen=True)
class World:
    """What there is at the end. notes: texts in the SQL tool's table; lamps: messages that the lamp got, or the broker
    took for it; states: of the requests in the store; undelivered: rows of its outbox; disordered: acknowledgements
    that overtook another; kept: texts that the Python tool has, one for each key; tries: its calls."""

    notes: Counter[str]
    lamps: int
    states: list[str]
    undelivered: int = 0
    disordered: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    tries: int = 0


@dataclass(frozen=True)
class Verdict:
    """Of all requests: zero of everything behind `refused` is the promise. repeats: of tools with `on_uncertain =
    "retry"`: messages to the lamp, and calls of the Python tool under a key that it had. failed: with another status
    than it had to, or another effect told."""

    requests: int
    effects: int
    copies: int
    repeats: int
    refused: int
    lost: int
    differing: int
    duplicated: int
    missing: int
    failed: int
    disordered: int
    stuck: int

    @property
    def kept(self) -> bool:
        """Whether the promise was kept. A lamp may be told twice (`on_uncertain = "retry"`), a reply come twice."""
        return not any(
            (self.lost, self.differing, self.duplicated, self.missing, self.failed, self.disordered, self.stuck)
        )


def judge(books: Books, world: World) -> Verdict:
    """Compare the load's account with the world."""
    replies = {number: json.loads(copies[0]) for number, copies in books.replies.items()}
    due = {number: books.due.get(number, told(reply)) for number, reply in replies.items()}
    done = {number for number, reply in replies.items() if reply["status"] == "done"}
    effects = Counter(effect for number in done for effect in due[number].effects)
    unsure = Counter(effect for number in replies.keys() - done if due[number].unsure for effect in due[number].effects)
    lamps = sum(count for (tool, _), count in effects.items() if tool == LAMP)
    wanted = Counter({effect: count for effect, count in effects.items() if effect[0] != LAMP})
    there = Counter({(NOTE, text): count for text, count in world.notes.items()})
    there += Counter({(KEEP, text): count for text, count in world.kept.items()})
    return Verdict(
        requests=len(books.asked),
        effects=effects.total(),
        copies=sum(len(copies) - 1 for copies in books.replies.values()),
        repeats=max(0, world.lamps - lamps) + world.tries - world.kept.total(),
        refused=books.refused,
        lost=len(books.asked.keys() - books.replies.keys()),
        differing=sum(len(set(copies)) > 1 for copies in books.replies.values()),
        duplicated=(there - wanted - unsure).total(),
        missing=(wanted - there).total() + max(0, lamps - world.lamps),
        failed=sum(not _right(reply, due[number]) for number, reply in replies.items()),
        disordered=world.disordered,
        stuck=sum(state not in FINAL for state in world.states) + world.undelivered,
    )


def _right(reply: Any, due: Due) -> bool:
    """Whether it has a status that it had to have and tells the effects that it had to have."""
    if reply["status"] not in due.statuses:
        return False
    return reply["status"] != "done" or Counter(told(reply).effects) == Counter(due.effects)


def told(reply: Any) -> Due:
    """What a reply tells that came of it; one that is not done is never right by that."""
    return Due(effects=tuple(_effects(reply["tool_calls"])))


def _effects(calls: Iterable[Any]) -> Iterable[tuple[str, str]]:
    for call in calls:
        if call["ok"] and call["name"] in (NOTE, KEEP, LAMP):
            yield call["name"], call["arguments"].get("text", "")


class AckOrder:
    """Looks at what passes between daemon and broker: on each connection requests are acknowledged in the order in
    which they came. `hear` is for a Wire.

    Attributes:
        disordered: acknowledgements that overtook another.
        confirmed: messages that the broker confirmed, by topic.
    """

    def __init__(self) -> None:
        self.disordered = 0
        self.confirmed: Counter[str] = Counter()
        self._data: dict[tuple[int, bool], bytearray] = {}
        self._open: dict[int, list[int]] = {}
        self._sent: dict[tuple[int, int], str] = {}

    def hear(self, connection: int, up: bool, data: bytes) -> None:
        """Bytes that passed."""
        buffer = self._data.setdefault((connection, up), bytearray())
        buffer += data
        while (packet := _packet(buffer)) is not None:
            self._look(connection, up, *packet)

    def _look(self, connection: int, up: bool, first: int, body: bytes) -> None:
        waiting = self._open.setdefault(connection, [])
        if first >> 4 == PUBLISH and first & 0x06:
            at = 2 + int.from_bytes(body[:2], "big")
            mid = int.from_bytes(body[at : at + 2], "big")
            if up:
                self._sent[connection, mid] = body[2:at].decode()
            else:
                waiting.append(mid)
        elif first >> 4 == PUBACK:
            mid = int.from_bytes(body[:2], "big")
            if not up and (topic := self._sent.pop((connection, mid), None)):
                self.confirmed[topic] += 1
            elif up and mid in waiting:
                self.disordered += waiting[0] != mid
                waiting.remove(mid)


def _packet(buffer: bytearray) -> tuple[int, bytes] | None:
    """Take the first whole packet out: its first byte and its body."""
    size = shift = 0
    for at in range(1, min(len(buffer), 5)):
        size |= (buffer[at] & 0x7F) << shift
        shift += 7
        if not buffer[at] & 0x80:
            if len(buffer) < at + 1 + size:
                return None
            first, body = buffer[0], bytes(buffer[at + 1 : at + 1 + size])
            del buffer[: at + 1 + size]
            return first, body
    return None
