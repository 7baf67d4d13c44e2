"""System texts of which a line changes from request to request: the time, the state of a lamp.

A model's computed prompt is good up to the first token that differs, so because of a clock at the top of a long text
all of it is computed anew each time. Such a line is recognised when it has changed once. From then on its place holds a
mark and the line itself stands in front of the last question, with the same mark: what is long stays the same, byte for
byte, and nothing that the client said is left out. Nothing else is approximated: every token is computed over exactly
what stands before it.

Pure but for what was seen of each model, which is kept in memory and bounded.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence

from msgspec import Struct, structs

from edged.types import Message

LONG_LINE = 200  # letters; a longer one is looked at sentence by sentence: some clients write everything in one
SENTENCE = re.compile(r"(?<=[.!?] )")
MOST_MOVED = 6  # pieces; with more that change a text is another one rather than the same with news
LEAST_FIXED = 0.75  # of a text's letters, else it is another one
LEAST_SAVED = 800  # letters after the first change, about 200 tokens: less is computed sooner than a reader notices
HEADS = 16  # texts kept of each model: about as many clients as a board has
LONGEST = 200_000  # letters: longer ones fit no context, and are not kept
MARK = "[#{}]"


class Placed(Struct, frozen=True):
    """A system text with marks in place of what changes, and what the marks stand for.

    whole: as the client sent it. fixed: with the marks. said: the lines that go before the question.
    """

    whole: str
    fixed: str
    said: str


class _Head(Struct):
    """A text as it was last seen. labels: of the pieces that change, what stayed of their beginnings."""

    pieces: list[str]
    labels: dict[int, str]


class Heads:
    """What was seen of one model."""

    def __init__(self) -> None:
        self._seen: deque[_Head] = deque(maxlen=HEADS)

    def placed(self, text: str) -> Placed | None:
        """A text as it is to be shown; None: as it is.

        Args:
            text: the system text of a request. It is remembered.
        """
        if not LEAST_SAVED <= len(text) <= LONGEST or MARK.partition("{}")[0] in text:
            return None
        pieces = list(_pieces(text))
        for head in self._seen:
            if (labels := _changed(head, pieces)) is not None:
                self._seen.remove(head)
                self._seen.appendleft(_Head(pieces, labels))
                return _placed(text, pieces, labels) if labels else None
        self._seen.appendleft(_Head(pieces, {}))
        return None


def shown(messages: Sequence[Message], placed: Placed | None) -> tuple[Message, ...]:
    """The messages of a request with what changes moved to the last question."""
    if placed is None:
        return tuple(messages)
    made = list(messages)
    made[0] = structs.replace(made[0], content=placed.fixed + made[0].content.removeprefix(placed.whole))
    at = max(place for place, message in enumerate(made) if message.role == "user")
    made[at] = structs.replace(made[at], content=f"{placed.said}\n\n{made[at].content}")
    return tuple(made)


def movable(messages: Sequence[Message]) -> str:
    """The text that `shown` can take apart: the first message, the system's, where a question follows; else nothing."""
    if messages and messages[0].role == "system" and any(message.role == "user" for message in messages):
        return messages[0].content
    return ""


def _pieces(text: str) -> Iterator[str]:
    for line in text.splitlines(keepends=True):
        yield from SENTENCE.split(line) if len(line) > LONG_LINE else (line,)


def _changed(head: _Head, pieces: list[str]) -> dict[int, str] | None:
    """The pieces that change, with what stays of their beginnings; None: it is another text."""
    if len(pieces) != len(head.pieces):
        return None
    places = head.labels.keys() | {place for place, piece in enumerate(pieces) if piece != head.pieces[place]}
    if len(places) > MOST_MOVED:
        return None
    fixed = sum(len(piece) for place, piece in enumerate(pieces) if place not in places)
    if fixed < LEAST_FIXED * sum(map(len, pieces)):
        return None
    if places and sum(map(len, pieces[min(places) :])) < LEAST_SAVED:
        return dict(head.labels)
    labels = {}
    for place in sorted(places):
        before = head.labels.get(place, head.pieces[place])
        common = _common(before, pieces[place])
        # up to a word's end, and where the piece was whole until now, without its end
        labels[place] = before if common == before and place in head.labels else common[: common.rfind(" ") + 1]
    return labels


def _placed(text: str, pieces: Sequence[str], labels: dict[int, str]) -> Placed:
    fixed, said = list(pieces), []
    for number, (place, label) in enumerate(labels.items(), start=1):
        mark = MARK.format(number)
        ending = pieces[place][len(pieces[place].rstrip()) :]
        fixed[place] = f"{label}{mark}{ending}"
        said.append(f"{mark} {pieces[place].strip()}")
    return Placed(text, "".join(fixed), "\n".join(said))


def _common(one: str, other: str) -> str:
    """What both begin with."""
    differs = (place for place, (own, others) in enumerate(zip(one, other, strict=False)) if own != others)
    return one[: next(differs, min(len(one), len(other)))]
