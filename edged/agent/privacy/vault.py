"""Values and the placeholders that stand for them, `[EMAIL_1]`, and the way back. Pure.

A vault is filled by going through the texts in their order, so the same texts always give the same numbers, and more of
them at the end give more numbers: a request that is resumed asks with the words it asked with before.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable

from edged.agent.privacy import detect
from edged.types import JSON

PRIVATE = "PRIVATE"
# A private value of fewer characters is hidden where it stands, and not wherever the same characters come up: 1, 42 and
# "no" are everywhere by chance.
MENTIONED_CHARS = 3
MAX_DIGITS = 6  # of a number; a request has no million values

_KIND = "|".join((PRIVATE, *detect.KINDS))
# As models deform them: other letters, a blank for the underline, Markdown's backslashes; without brackets only with
# the underline, because "phone 1" is a phrase. A backslash in front is Markdown's where one is at the end, too: else it
# stood before the value.
SEEN = re.compile(
    rf"(?:\\(?=\[ ?(?:{_KIND})(?:\\?_| |-)?\d{{1,{MAX_DIGITS}}} ?\\\]))?"
    rf"\[ ?(?P<kind>{_KIND})(?:\\?_| |-)?(?P<number>\d{{1,{MAX_DIGITS}}}) ?\\?\]"
    rf"|(?<![A-Za-z0-9_])(?P<bare_kind>{_KIND})\\?_(?P<bare_number>\d{{1,{MAX_DIGITS}}})(?![A-Za-z0-9_])",
    re.IGNORECASE | re.ASCII,
)
_WORD = re.compile(r"\w+")
_WORD_CHAR = re.compile(r"[A-Za-z0-9_]", re.ASCII)
IN_WORD = "0"  # of which no placeholder can be a part


def _beginnings(*parts: str) -> str:
    """A pattern for every beginning of what these parts match one after the other, the whole included."""
    pattern = ""
    for part in reversed(parts):
        pattern = f"(?:{part}{pattern})?"
    return pattern


_LETTERS = "|".join(_beginnings(*kind) for kind in (PRIVATE, *detect.KINDS))
# What the end of a text may have to be for a placeholder to become of it with what comes next.
_MAY_BECOME = re.compile(
    rf"\\|\\?\[ ?(?:{_LETTERS})|\\?\[ ?(?:{_KIND})(?:\\?_?| |-)?(?:\d{{1,{MAX_DIGITS}}} ?\\?)?"
    rf"|(?<![A-Za-z0-9_])(?:(?:{_LETTERS})|(?:{_KIND})\\?(?:_\d{{0,{MAX_DIGITS}}})?)",
    re.IGNORECASE | re.ASCII,
)
LONGEST = len("\\[ " + PRIVATE + "\\_" + " \\]") + MAX_DIGITS  # of what `SEEN` matches


class Vault:
    """What stands for what.

    Args:
        detects: e-mail addresses and the like are found by themselves; False: only values that were hidden are.
    """

    def __init__(self, *, detects: bool = True) -> None:
        self._detects = detects
        self._known: dict[str, str] = {}  # a value's text -> its placeholder
        self._hidden: dict[tuple[bool, str], str] = {}  # the same of private values; 42 is not "42"
        self._values: dict[str, JSON] = {}  # placeholder -> the value
        self._next: Counter[str] = Counter()
        self._taken: set[str] = set()
        self._mentioned: set[str] = set()  # private values that are looked for in texts
        self._lengths: dict[
            str, list[tuple[int, int]]
        ] = {}  # by their first word: (length, where it begins), longest first

    def avoid(self, texts: Iterable[str]) -> None:
        """Give out no placeholder that one of these texts has already. To be called before anything else."""
        for text in texts:
            self._taken |= {name for match in SEEN.finditer(text) if (name := _name(match))}

    @property
    def counts(self) -> dict[str, int]:
        """How many values have a placeholder, by kind."""
        counted = Counter(placeholder[1:].rpartition("_")[0] for placeholder in self._values)
        return dict(sorted(counted.items()))

    @property
    def empty(self) -> bool:
        """Whether nothing has a placeholder."""
        return not self._values

    def gave(self, placeholder: str) -> bool:
        """Whether a placeholder stands for something."""
        return placeholder in self._values

    def hide(self, value: JSON) -> str:
        """The placeholder of a private value: a text, a number or a truth value."""
        text, key = _plain(value), (isinstance(value, str), _plain(value))
        if key not in self._hidden:
            known = self._known.get(text)
            if known is None or self._values[known] != value:
                known = self._give(detect.kind_of(text) or PRIVATE, text, value)
            self._hidden[key] = known
            if not isinstance(value, bool):
                for surface in (text, text.strip(), in_json(text), repr(text)[1:-1]):  # the last as errors quote it
                    self._mention(surface)
        return self._hidden[key]

    def number(self, value: float) -> JSON:
        """A number, or its placeholder where it is a card's, or a private one."""
        text = _plain(value)
        found = text in self._mentioned or (self._detects and detect.kind_of(text) is not None)
        return self.hide(value) if found else value

    def mask(self, text: str) -> str:
        """A text with placeholders for private values that are known, and for what is found in it."""
        parts: list[str] = []
        rest = 0
        for start, end in self._mentions(text):
            parts += [self._detected(text[rest:start]), self._known[text[start:end]]]
            rest = end
        return "".join((*parts, self._detected(text[rest:])))

    def restore(self, text: str, written: Callable[[str], str] = str) -> str:
        """The text with the values again. What was never given out stays as it is.

        Args:
            written: how a value stands in the text; `in_json` where it is JSON.
        """

        def value(match: re.Match[str]) -> str:
            name = _name(match)
            return written(_plain(self._values[name])) if name in self._values else match[0]

        return SEEN.sub(value, text) if self._values else text

    def restored(self, value: JSON, *, typed: bool = True) -> JSON:
        """JSON with the values again, in texts and keys. typed: a text that is nothing but a placeholder becomes the
        value itself, a number say."""
        if isinstance(value, str):
            match = SEEN.fullmatch(value.strip()) if typed else None
            if match and (name := _name(match)) in self._values:
                return self._values[name]
            return self.restore(value)
        if isinstance(value, list):
            return [self.restored(one, typed=typed) for one in value]
        if isinstance(value, dict):
            return {self.restore(key): self.restored(one, typed=typed) for key, one in value.items()}
        return value

    def _detected(self, text: str) -> str:
        if not self._detects:
            return text
        parts: list[str] = []
        rest = 0
        for start, end, kind in detect.find(text):
            found = text[start:end]
            if found not in self._known:
                self._give(kind, found, found)
            parts += [text[rest:start], self._known[found]]
            rest = end
        return "".join((*parts, text[rest:]))

    def _give(self, kind: str, text: str, value: JSON) -> str:
        while True:
            self._next[kind] += 1
            name = f"[{kind}_{self._next[kind]}]"
            if name not in self._taken:
                break
        self._known.setdefault(text, name)
        self._values[name] = value
        return name

    def _mention(self, text: str) -> None:
        """Look for it in texts from here on."""
        word = _WORD.search(text)
        if text in self._mentioned or len(text.strip()) < MENTIONED_CHARS or word is None:
            return
        if text not in self._known:
            self._give(PRIVATE, text, text)
        self._mentioned.add(text)
        lengths = self._lengths.setdefault(word[0], [])
        if (one := (len(text), word.start())) not in lengths:
            lengths.append(one)
            lengths.sort(reverse=True)

    def _mentions(self, text: str) -> list[tuple[int, int]]:
        """Where private values stand as whole words, the longest of those that begin at the same word."""
        places: list[tuple[int, int]] = []
        free = 0
        if not self._mentioned:
            return places
        for word in _WORD.finditer(text):
            for length, before in self._lengths.get(word[0], ()):
                start = word.start() - before
                end = start + length
                if start >= free and text[start:end] in self._mentioned and _is_whole(text, start, end):
                    places.append((start, end))
                    free = end
                    break
        return places


class Restorer:
    """`Vault.restore` for a text that comes in pieces: of each only so much waits as may still become a placeholder.

    Args:
        send: gets what is certain.
    """

    def __init__(self, vault: Vault, send: Callable[[str], None], written: Callable[[str], str] = str) -> None:
        self._vault, self._send, self._written = vault, send, written
        self._before = ""  # stands for a word that what is held goes on in: no placeholder begins in its middle
        self._held = ""

    def piece(self, text: str) -> None:
        """More of it."""
        if self._vault.empty:
            self._send(text)
            return
        self._held += text
        self._let_go(_waits_from(self._before, self._held))

    def end(self) -> None:
        """Nothing comes any more."""
        self._let_go(len(self._held))

    def _let_go(self, count: int) -> None:
        if count:
            whole = self._before + self._held[:count]
            self._send(self._vault.restore(whole, self._written)[len(self._before) :])
            self._before = IN_WORD if _WORD_CHAR.fullmatch(whole[-1]) else ""
            self._held = self._held[count:]


def in_json(text: str) -> str:
    """As it stands between the quotes of JSON."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _waits_from(before: str, held: str) -> int:
    """From where on a text may still become a placeholder; its length where nothing may."""
    whole = before + held
    for at in range(max(len(before), len(whole) - LONGEST), len(whole)):
        if _MAY_BECOME.fullmatch(whole, at):
            return at - len(before)
    return len(held)


def _name(match: re.Match[str]) -> str:
    kind, number = match["kind"] or match["bare_kind"], match["number"] or match["bare_number"]
    return f"[{kind.upper()}_{int(number)}]"


def _plain(value: JSON) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _is_whole(text: str, start: int, end: int) -> bool:
    """Whether the part stands for itself, and does not go on in a word."""
    inside = (text[start - 1 : start] + text[start : start + 1], text[end - 1 : end] + text[end : end + 1])
    return start >= 0 and not any(len(pair) == 2 and _WORD.fullmatch(pair) for pair in inside)
