"""Where the texts of a tool hold its parameters: what a value is put into, and what only looks so. Pure.

Templates (topics, payloads, sentences) hold `{name}`, statements `:name`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

WORD = "[A-Za-z_][A-Za-z0-9_]*"
PLACEHOLDER = re.compile(rf"\{{({WORD})\}}")
# As Jinja writes it, whose braces people know from Home Assistant: the name comes first, filters and members after it.
JINJA = re.compile(rf"\{{\{{-?\s*({WORD})\b[^{{}}]*\}}\}}")

# Parts of a statement in which SQLite looks for no parameter: texts and quoted names, then comments.
QUOTED = r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`(?:[^`]|``)*`|\[[^\]]*\]"
COMMENT = r"--[^\n]*|/\*.*?(?:\*/|\Z)"
SQL_PART = re.compile(rf"(?P<quoted>{QUOTED})|(?P<comment>{COMMENT})", re.DOTALL)
BOUND = re.compile(rf"[:@$]({WORD})")  # as SQLite writes names of parameters
POSITIONAL = re.compile(r"\?\d*")


def in_jinja(template: str, names: Collection[str]) -> Iterator[str]:
    """What is wrong with names in the double braces of Jinja: their values are not put there."""
    for match in JINJA.finditer(template):
        if match[1] in names:
            yield f"{match[0]!r} is no place for a value: braces are not doubled here, write {{{match[1]}}}"


def unknown(template: str, names: Collection[str]) -> Iterator[str]:
    """Names in single braces that no parameter has: such braces are left as they stand."""
    for match in re.finditer(rf"(?<!\{{){PLACEHOLDER.pattern}", template):
        if match[1] not in names:
            yield match[1]


def bound(sql: str) -> set[str]:
    """Names of the parameters that a statement binds."""
    return set(BOUND.findall(SQL_PART.sub(" ", sql)))


def unbound(sql: str, names: Collection[str]) -> Iterator[str]:
    """What is wrong with parameters of a statement that SQLite will never bind: they have no name, or are text."""
    if (match := POSITIONAL.search(SQL_PART.sub(" ", sql))) is not None:
        given = " ".join(f":{name}" for name in names) or "and declare it in `parameters`"
        yield f"{match[0]!r} has no name, and arguments are given by name: write {given}"
    there = bound(sql)
    quoted = " ".join(part[0] for part in SQL_PART.finditer(sql) if part["quoted"])
    for name in names:
        if name in there:
            continue
        if (match := re.search(rf"[:@$]{name}\b", quoted)) is not None:
            yield (
                f"{match[0]!r} stands in quotes, so it is text and gets no value: write :{name} without quotes, "
                f"and beside other text '...' || :{name}"
            )
        elif (match := re.search(rf"\{{+[%\-\s]*{name}\b[^{{}}]*\}}+", sql)) is not None:
            yield f"{match[0]!r} gets no value: a statement has no braces, write :{name} without quotes"
