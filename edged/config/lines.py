"""Lines of keys in a text of TOML: tomllib does not tell them.

The text is known to be valid, so this reads tokens only and leaves values alone. A key is written as a path of its
parts; "[2]" is the third element of an array, or the third table of an array of tables.
"""

from __future__ import annotations

import re
import tomllib

from edged.config.values import Key

TOKEN = re.compile(
    r"""
    (?P<skip>   [ \t]+ | \#[^\n]* )
  | (?P<string> "{3} (?:[^\\]|\\.)*? "{3,5} | '{3} .*? '{3,5} | "(?:[^"\\\n]|\\.)*" | '[^'\n]*' )
  | (?P<mark>   [\[\]{}=,.\n] )
  | (?P<word>   [^\s\[\]{}=,.\#"']+ )
    """,
    re.VERBOSE | re.DOTALL,
)


def lines(text: str) -> dict[Key, int]:
    """The line of each key, table and element; the first line is 1. Of a table that several places name it is the line
    of its own header, or else of the first place."""
    reader = _Reader()
    for token in TOKEN.finditer(text):
        if token.lastgroup != "skip":
            reader.take(token[0], is_mark=token.lastgroup == "mark")
    return reader.found


class _Level:
    """An array or an inline table that has begun and not ended, or the table of the last header below all of them."""

    def __init__(self, path: Key, index: int | None = None) -> None:
        self.path = path
        self.index = index  # of an array's element that is read now or next; None: of a table
        self.value = path  # where the value belongs that is read now


class _Reader:
    """What is known between two tokens."""

    def __init__(self) -> None:
        self.found: dict[Key, int] = {}
        self._line = 1
        self._levels = [_Level(())]
        self._lengths: dict[Key, int] = {}  # of arrays of tables
        self._parts: list[str] = []  # of the key that is read now
        self._in_key = True
        self._brackets = 0  # of the header that is read now

    def take(self, word: str, *, is_mark: bool) -> None:
        """The next token."""
        if word == "\n":
            self._line += 1
            if len(self._levels) == 1:
                self._expect_key()
        elif self._in_key:
            self._take_key(word, is_mark=is_mark)
        elif word in ("]", "}") and is_mark:
            self._end()
        elif word == "," and is_mark:
            self._expect_next()
        elif word != "." or not is_mark:
            self._take_value(word, is_mark=is_mark)
            self._line += word.count("\n")

    def _take_key(self, word: str, *, is_mark: bool) -> None:
        if not is_mark:
            self._parts.append(tomllib.loads(f"key = {word}")["key"] if word[0] in "\"'" else word)
        elif word == "=":
            self._levels[-1].value = self._named(self._levels[-1].path)
            self._in_key = False
        elif word == "[":
            self._brackets += 1
        elif word == "]" and self._parts:
            self._levels[0].path = self._header()
            self._parts = []
        elif word == "}":
            self._end()

    def _take_value(self, word: str, *, is_mark: bool) -> None:
        level = self._levels[-1]
        if level.index is not None:
            level.value = (*level.path, f"[{level.index}]")
            self.found.setdefault(level.value, self._line)
        if word == "[" and is_mark:
            self._levels.append(_Level(level.value, 0))
        elif word == "{" and is_mark:
            self._levels.append(_Level(level.value))
            self._expect_key()

    def _expect_key(self) -> None:
        self._parts, self._in_key, self._brackets = [], True, 0

    def _expect_next(self) -> None:
        level = self._levels[-1]
        if level.index is None:
            self._expect_key()
        else:
            level.index += 1

    def _end(self) -> None:
        self._in_key = False
        if len(self._levels) > 1:
            self._levels.pop()

    def _named(self, path: Key) -> Key:
        """The path of a key in a table."""
        for part in self._parts:
            path = (*path, part)
            self.found.setdefault(path, self._line)
        return path

    def _header(self) -> Key:
        """The path of a table's header. Below an array of tables it goes on in the last of them."""
        path: Key = ()
        for part in self._parts[:-1]:
            path = (*path, part)
            self.found.setdefault(path, self._line)
            if path in self._lengths:
                path = (*path, f"[{self._lengths[path] - 1}]")
        path = (*path, self._parts[-1])
        if self._brackets == 1:
            self.found[path] = self._line
            return path
        self.found.setdefault(path, self._line)
        index = self._lengths.get(path, 0)
        self._lengths[path] = index + 1
        path = (*path, f"[{index}]")
        self.found[path] = self._line
        return path
