"""`edged check`: what is wrong although every key is right by itself, with the line where it is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cli import edged
from tests.support.daemon import Daemon

DB = 'description = "Read."\ndatabase = "plant"\n'
SQL = DB + 'sql = "SELECT level FROM tank_levels WHERE tank = {}"\n'
LAMP = 'description = "Switch a lamp."\npublish = {{ topic = "z/{}/set", payload = \'{{"state":"{}"}}\' }}\n'
ROOM = 'parameters.room = { enum = ["north", "south"] }\n'
LAMPS = 'parameters.lamp = { enum = ["hall"] }\nparameters.state = { enum = ["ON"] }\n'

# (table of a tool, the line in it that is named, words of what is printed)
WRONG = {
    "unused": (SQL.format("'north'") + ROOM, 5, "parameters.room: is not used by the statement"),
    "unused-in-a-topic": (
        LAMP.format("hall", "{state}") + LAMPS,
        4,
        "lamp: is not used by topic and payload",
    ),
    "quoted": (SQL.format("':room'") + ROOM, 4, "sql: ':room' stands in quotes, so it is text"),
    "quoted-in-a-pattern": (SQL.format("'' OR tank LIKE '%:room%'") + ROOM, 4, "'...' || :room"),
    "jinja-in-a-statement": (SQL.format("'{{ room }}'") + ROOM, 4, "'{{ room }}' gets no value"),
    "braces-in-a-statement": (SQL.format("'{room}'") + ROOM, 4, "'{room}' gets no value"),
    "positional": (SQL.format("?") + ROOM, 4, "'?' has no name, and arguments are given by name: write :room"),
    "positional-with-a-number": (SQL.format("?1") + ROOM, 4, "'?1' has no name"),
    "jinja-in-a-topic": (LAMP.format("{{ lamp }}", "{state}") + LAMPS, 3, "publish.topic: '{{ lamp }}' is no place"),
    "jinja-without-spaces": (LAMP.format("{lamp}", "{{state}}") + LAMPS, 3, "'{{state}}' is no place for a value"),
    "jinja-with-a-filter": (
        LAMP.format("{lamp}", "{{ state | lower }}") + LAMPS,
        3,
        "'{{ state | lower }}'",
    ),
    "typo": (
        LAMP.format("{lamp}", "{stat}") + LAMPS,
        3,
        "{stat} is no parameter and is sent as it",
    ),
    "jinja-in-a-sentence": (
        SQL.format(":room") + 'say_none = "{{ room }} is unknown."\n' + ROOM,
        5,
        "say_none: '{{ room }}'",
    ),
    "default": (
        SQL.format(":room") + 'parameters.room = { enum = ["a"], default = "b" }\n',
        5,
        "default: is not",
    ),
    "default-type": (
        SQL.format(":room") + 'parameters.room = { type = "integer", default = "4" }\n',
        5,
        "'4' is not of type",
    ),
    "example": (
        SQL.format(":room") + ROOM + 'examples = [\n{ input = "a", arguments = { room = "north" } },\n'
        '{ input = "How warm is the bathroom?", arguments = { room = "bathroom" } },\n]\n',
        8,
        "examples[1].arguments.room: is not what the parameter allows: 'bathroom' is not one of",
    ),
    "example-range": (
        SQL.format(":room") + 'parameters.room = { type = "integer", maximum = 9 }\n'
        'examples = [{ input = "a", arguments = { room = 10 } }]\n',
        6,
        "10 is greater than the maximum of 9",
    ),
}


async def test_what_makes_calls_wrong_is_found_with_its_line(tmp_path: Path) -> None:
    """Every tool here could be called, and would do something else than it says."""
    daemon = Daemon(tmp_path, broker=1)
    text = daemon.config.read_text() + "\n"
    begins = {}
    for name, (table, *_) in WRONG.items():
        begins[name] = text.count("\n") + 1
        text += f"[tools.{name}]\n{table}"
    daemon.config.write_text(text)
    ended = await edged("check", config=daemon.config)
    assert ended.code == 78
    printed = ended.err.splitlines()
    for name, (_, line, words) in WRONG.items():
        at = f"{daemon.config}:{begins[name] + line - 1}: tools.{name}."
        assert [told for told in printed if told.startswith(at) and words in told], (name, at, printed)


RIGHT = {
    "comment": DB + "sql = \"SELECT level FROM tank_levels WHERE tank = :room -- not ':room', is it?\"\n" + ROOM,
    "text": DB + "sql = \"SELECT 'what? :time {x} '':room''' FROM tank_levels WHERE tank = @room\"\n" + ROOM,
    "discovery": 'description = "Announce."\npublish = { topic = "homeassistant/{id}/config", payload = '
    '\'{"name":"{id}","value_template":"{{ value_json.id | round(1) }}","device":{"ids":[{{"a":1}}]}}\' }\n'
    'parameters.id = { enum = ["a"] }\n',
    "object": 'description = "Colour."\npublish = { topic = "z/set", payload = \'{"color":{color}}\' }\n'
    'parameters.color = { type = "object" }\n',
    "optional": SQL.format(":room") + "parameters.room = { optional = true }\n"
    'examples = [{ input = "a", arguments = {} }]\n',
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
async def test_what_only_looks_like_a_mistake_is_right(tmp_path: Path, name: str) -> None:
    """Texts and comments of SQL, templates that are for somebody else, objects in JSON."""
    ended = await edged("check", config=Daemon(tmp_path, broker=1, config=f"[tools.{name}]\n{RIGHT[name]}").config)
    assert (ended.code, ended.err) == (0, "")
