"""The line of every key: tomllib says what keys there are, and a writer of documents counts where it writes them."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, note
from hypothesis import strategies as st

from edged.config.lines import lines
from tests.support.fuzz import cpu_s

Path = tuple[str, ...]


def paths(value: Any, at: Path = ()) -> Iterator[Path]:
    """Everything that a value of TOML holds."""
    if isinstance(value, dict):
        below = list(value.items())
    elif isinstance(value, list):
        below = [(f"[{i}]", one) for i, one in enumerate(value)]
    else:
        return
    for key, one in below:
        yield (*at, key)
        yield from paths(one, (*at, key))


# What a person may write, line by line, with the paths that begin there; "$" is the table of the level.
WRITTEN: list[tuple[str, str]] = [
    ('# a comment with [brackets] and "quotes"', ""),
    ("top = 1", "top"),
    (""""a.b" . 'c d' = "x # no comment"   # dotted and quoted""", "a.b a.b/c|d"),
    ("", ""),
    ("[tools.level]", "tools/level"),
    ('description = """', "tools/level/description"),
    ("several [lines]", ""),
    ('of = "text" \\"""', ""),
    ('"""', ""),
    ("""p.tank = { enum = ["n", "s"] }""", "$p $p/tank $p/tank/enum $p/tank/enum/[0] $p/tank/enum/[1]"),
    ("""p."va\\u006cve".default = 'north'""", "$p/valve $p/valve/default"),
    ("examples = [", "tools/level/examples"),
    ('    { input = "x" },', "tools/level/examples/[0] tools/level/examples/[0]/input"),
    ("    # the second", ""),
    ("    { arguments = {} },", "tools/level/examples/[1] tools/level/examples/[1]/arguments"),
    ("]", ""),
    ("[[points]]", "points points/[0]"),
    ("x = -1.5e3", "points/[0]/x"),
    ("[points.inner]", "points/[0]/inner"),
    ("at = 1979-05-27 07:32:00", "points/[0]/inner/at"),
    ("[[points]]", "points/[1]"),
    ("y = [[1, 2],", "points/[1]/y points/[1]/y/[0] points/[1]/y/[0]/[0] points/[1]/y/[0]/[1]"),
    ("     [3]]", "points/[1]/y/[1] points/[1]/y/[1]/[0]"),
    ("[[points.inner.more]]", "points/[1]/inner points/[1]/inner/more points/[1]/inner/more/[0]"),
    ("z = '''", "points/[1]/inner/more/[0]/z"),
    ("'''''", ""),
    ("[tools]", "tools"),
    ("other = inf", "tools/other"),
]
TEXT = "\n".join(text for text, _ in WRITTEN)
LINES = {
    tuple(path.replace("|", " ").replace("$", "tools/level/").split("/")): number
    for number, (_, all) in enumerate(WRITTEN, 1)
    for path in all.split()
}


def test_every_way_to_write_a_key_has_its_line() -> None:
    """Headers, dotted and quoted keys, inline tables, arrays of tables, strings and arrays over several lines."""
    assert set(LINES) == set(paths(tomllib.loads(TEXT)))
    assert lines(TEXT) == LINES


# -- any document ------------------------------------------------------------------------------------------------------

names = st.sampled_from(["a", "b", "c-1", "_", "7", "x.y", "", 'q"', "[0]", "#", "\n", "\u00e9", "\\", "true"])


def key(name: str) -> st.SearchStrategy[str]:
    """Ways to write one part of a key."""
    ways = [json.dumps(name)]
    if name and not set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789-_"):
        ways.append(name)
    if "'" not in name and "\n" not in name:
        ways.append(f"'{name}'")
    return st.sampled_from(ways)


scalars = st.sampled_from(
    [
        *("1", "0x1F", "-1.5e3", "inf", "true", "1979-05-27T07:32:00Z", "1979-05-27 07:32:00", "07:32:00", '""', "''"),
        *(
            '"a # b"',
            "'[x]'",
            '"\\" = {"',
            "'\\'",
            '"""a""b\n]\n"""',
            "'''\n'a' = 1\n'''''",
            '"""\\"""\n\n"""""',
            "''''a'''",
        ),
    ]
)
between = st.sampled_from(["", " ", "\t"])
gaps = st.sampled_from(["", " ", "\n", " # ]\n", "\n\n"])


class Writer:
    """A document, and the lines of what is in it."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.text = ""
        self.lines: dict[Path, int] = {}

    def write(self, *pieces: st.SearchStrategy[str] | str) -> None:
        for piece in pieces:
            self.text += piece if isinstance(piece, str) else self.draw(piece)

    def mark(self, path: Path) -> None:
        self.lines.setdefault(path, self.text.count("\n") + 1)

    def dotted(self, parts: list[str]) -> None:
        for i, part in enumerate(parts):
            self.write(between, "." if i else "", between, key(part))

    def value(self, path: Path, depth: int) -> None:
        kind = self.draw(st.sampled_from(["scalar", "array", "table"] if depth else ["scalar"]))
        if kind == "scalar":
            self.write(scalars)
        elif kind == "array":
            self.write("[")
            count = self.draw(st.integers(0, 3))
            for i in range(count):
                self.write(gaps)
                self.mark((*path, f"[{i}]"))
                self.value((*path, f"[{i}]"), depth - 1)
                self.write(gaps, "," if i + 1 < count else st.sampled_from(["", ","]))
            self.write(gaps, "]")
        else:
            self.write("{", between)
            for i, name in enumerate(self.draw(st.lists(names, max_size=2, unique=True))):
                self.write("," if i else "", between)
                self.mark((*path, name))
                self.dotted([name])
                self.write(between, "=", between)
                self.value((*path, name), depth - 1)
            self.write(between, "}")

    def keys(self, table: Path) -> None:
        """Some keys of a table, each with two parts: so they clash with no table that is written elsewhere."""
        for name in self.draw(st.lists(names, max_size=2, unique=True)):
            path = (*table, "of", name)
            self.mark((*table, "of"))
            self.mark(path)
            self.dotted(["of", name])
            self.write(between, "=", between)
            self.value(path, 2)
            self.write(between, st.sampled_from(["", "# [x]"]), "\n", gaps.filter(lambda gap: gap != " "))


@st.composite
def documents(draw: st.DrawFn) -> Writer:
    """Headers of tables, of arrays of tables and of tables in these, in any order, with keys below them."""
    writer = Writer(draw)
    writer.keys(())
    length = 0  # of the array of tables "u"
    for number, kind in enumerate(draw(st.lists(st.sampled_from(["table", "array", "below"]), max_size=5))):
        if kind == "array":
            at: Path = ("u", f"[{length}]")
            length += 1
            writer.mark(("u",))
            writer.mark(at)
            writer.write("[[", between, key("u"), between, "]]", between, "\n")
        else:
            names_of_header = ["u" if kind == "below" and length else "t", f"own{number}"]
            at = ("t", names_of_header[1]) if names_of_header[0] == "t" else ("u", f"[{length - 1}]", f"own{number}")
            writer.mark(at[:1])
            writer.mark(at)
            writer.write("[", between)
            writer.dotted(names_of_header)
            writer.write(between, "]", "\n")
        writer.keys(at)
    return writer


@given(documents())
def test_any_document_has_the_lines_that_were_written(written: Writer) -> None:
    """And tomllib finds the same keys."""
    note(written.text)
    assert set(written.lines) == set(paths(tomllib.loads(written.text)))
    assert lines(written.text) == written.lines


@given(st.text(alphabet="ab=.[]{},\"'\\#\n 1", max_size=60))
@example("a = ]]}}")
@example("[[[[a")
@example('"')
def test_text_that_is_no_toml_breaks_nothing(text: str) -> None:
    """It is never asked for the lines of one, but a key of a valid one must not depend on that."""
    found = lines(text)
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, ValueError):
        return
    assert set(found) == set(paths(table))


@pytest.mark.parametrize(
    "text",
    ["x = [" + "1," * 100_000 + "]", "".join(f"[a{n}]\n" for n in range(20_000)), "x = '''" + "'\n" * 50_000 + "'''"],
    ids=["array", "tables", "string"],
)
def test_long_text_takes_little_time(text: str) -> None:
    """As long as the parser itself."""
    assert cpu_s(lambda: lines(text)) < 5
