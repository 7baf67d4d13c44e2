"""What `toolcall` and `restart` ask: an office building with eight tools, thirty requests and the call each one wants.

Every tool writes and has `say`, so a request is accepted durably, decided, journalled, done in SQLite, answered and
settled; the peer only decides. Most arguments are a choice or a number, as on a board; `announce` takes free text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Call = tuple[str, dict[str, Any]]

SYSTEM = "You run an office building. See to exactly what was asked for. Hours go from 0 to 23."

ROOMS = ["lobby", "office", "kitchen", "workshop"]

TABLES = """
CREATE TABLE lights(id INTEGER PRIMARY KEY, room TEXT NOT NULL, state TEXT NOT NULL);
CREATE TABLE heating(id INTEGER PRIMARY KEY, celsius INTEGER NOT NULL);
CREATE TABLE blinds(id INTEGER PRIMARY KEY, position TEXT NOT NULL);
CREATE TABLE doors(id INTEGER PRIMARY KEY, door TEXT NOT NULL, action TEXT NOT NULL);
CREATE TABLE fans(id INTEGER PRIMARY KEY, room TEXT NOT NULL, speed TEXT NOT NULL);
CREATE TABLE alarm(id INTEGER PRIMARY KEY, mode TEXT NOT NULL);
CREATE TABLE bookings(id INTEGER PRIMARY KEY, hour INTEGER NOT NULL, people INTEGER NOT NULL);
CREATE TABLE announcements(id INTEGER PRIMARY KEY, text TEXT NOT NULL);
"""


def _tool(table: str, description: str, say: str, example: tuple[str, dict[str, Any]], **parameters: Any) -> Any:
    names = ", ".join(parameters)
    values = ", ".join(f":{name}" for name in parameters)
    return {
        "description": description,
        "database": "building",
        "sql": f"INSERT INTO {table}({names}) VALUES ({values})",  # noqa: S608 - names of this file
        "effect": "write",
        "say": say,
        "parameters": parameters,
        "examples": [{"input": example[0], "arguments": example[1]}],
    }


TOOLS: dict[str, Any] = {
    "set_light": _tool(
        "lights",
        "Switch the light of a room.",
        "The light in the {room} is {state}.",
        ("Make it bright in the workshop.", {"room": "workshop", "state": "on"}),
        room={"enum": ROOMS},
        state={"enum": ["on", "off"]},
    ),
    "set_temperature": _tool(
        "heating",
        "Set the heating to degrees Celsius.",
        "The heating is set to {celsius} degrees.",
        ("I feel cold, 22 degrees please.", {"celsius": 22}),
        celsius={"type": "integer", "minimum": 5, "maximum": 30},
    ),
    "set_blinds": _tool(
        "blinds",
        "Move the window blinds.",
        "The blinds are {position}.",
        ("Let the sun in.", {"position": "open"}),
        position={"enum": ["open", "closed", "half"]},
    ),
    "set_door": _tool(
        "doors",
        "Lock or unlock a door.",
        "The {door} door: {action}.",
        ("Let them in at the back.", {"door": "back", "action": "unlock"}),
        door={"enum": ["front", "back", "garage"]},
        action={"enum": ["lock", "unlock"]},
    ),
    "set_fan": _tool(
        "fans",
        "Set the fan of a room.",
        "The fan in the {room} runs at {speed}.",
        ("A little fresh air in the kitchen.", {"room": "kitchen", "speed": "low"}),
        room={"enum": ROOMS},
        speed={"enum": ["off", "low", "high"]},
    ),
    "set_alarm": _tool(
        "alarm",
        "Set the burglar alarm.",
        "The alarm is set to {mode}.",
        ("We have all gone home, watch the building.", {"mode": "full"}),
        mode={"enum": ["disarmed", "night", "full"]},
    ),
    "book_meeting": _tool(
        "bookings",
        "Book the meeting room.",
        "The meeting room is booked at {hour} for {people} people.",
        ("Four of us meet at 9.", {"hour": 9, "people": 4}),
        hour={"type": "integer", "minimum": 0, "maximum": 23},
        people={"type": "integer", "minimum": 1, "maximum": 40},
    ),
    "announce": _tool(
        "announcements",
        "Say a text over the loudspeakers.",
        "Announced: {text}",
        ("Tell everybody: coffee is ready", {"text": "coffee is ready"}),
        text={"type": "string", "maxLength": 80},
    ),
}

REQUESTS: tuple[tuple[str, Call], ...] = (
    ("Turn on the light in the office.", ("set_light", {"room": "office", "state": "on"})),
    ("Set the heating to 21 degrees.", ("set_temperature", {"celsius": 21})),
    ("Lock the front door.", ("set_door", {"door": "front", "action": "lock"})),
    ("Run the kitchen fan at high speed.", ("set_fan", {"room": "kitchen", "speed": "high"})),
    ("Close the blinds.", ("set_blinds", {"position": "closed"})),
    ("Set the alarm to night mode.", ("set_alarm", {"mode": "night"})),
    ("Book a meeting at 14 for 8 people.", ("book_meeting", {"hour": 14, "people": 8})),
    ("Announce: the bus is here", ("announce", {"text": "the bus is here"})),
    ("Lights off in the kitchen, please.", ("set_light", {"room": "kitchen", "state": "off"})),
    ("Heat the building to 17 degrees.", ("set_temperature", {"celsius": 17})),
    ("Unlock the garage door, a delivery is coming.", ("set_door", {"door": "garage", "action": "unlock"})),
    ("Switch the fan in the office off.", ("set_fan", {"room": "office", "speed": "off"})),
    ("Open the blinds, please.", ("set_blinds", {"position": "open"})),
    ("Disarm the alarm.", ("set_alarm", {"mode": "disarmed"})),
    ("Six of us want to meet at 10.", ("book_meeting", {"hour": 10, "people": 6})),
    ("Tell everybody: lunch is at noon", ("announce", {"text": "lunch is at noon"})),
    ("Nobody is in the lobby, switch the light off there.", ("set_light", {"room": "lobby", "state": "off"})),
    ("I would like 23 degrees.", ("set_temperature", {"celsius": 23})),
    ("Please lock the back door for the night.", ("set_door", {"door": "back", "action": "lock"})),
    ("Set the workshop fan to low.", ("set_fan", {"room": "workshop", "speed": "low"})),
    ("Put the blinds half way.", ("set_blinds", {"position": "half"})),
    ("Arm the full alarm.", ("set_alarm", {"mode": "full"})),
    ("Reserve the meeting room at 17 for 20 people.", ("book_meeting", {"hour": 17, "people": 20})),
    ("Say over the loudspeakers: please close the windows", ("announce", {"text": "please close the windows"})),
    ("I need light in the workshop.", ("set_light", {"room": "workshop", "state": "on"})),
    ("Turn the heating down to 16.", ("set_temperature", {"celsius": 16})),
    ("Unlock the front door.", ("set_door", {"door": "front", "action": "unlock"})),
    ("Full ventilation in the lobby.", ("set_fan", {"room": "lobby", "speed": "high"})),
    ("The sun blinds me, close the blinds.", ("set_blinds", {"position": "closed"})),
    ("Meeting for 3 at 11, please book it.", ("book_meeting", {"hour": 11, "people": 3})),
)


def write_config(folder: Path, models: Path, source: str, context: int) -> None:
    """edged's configuration with the agent `house`, and its database, below a folder."""
    import apsw

    with apsw.Connection(str(folder / "building.db")) as building:
        building.execute(TABLES).fetchall()
    lines = [
        f'[node]\nid = "bench"\nstate_dir = "{folder}/state"\nruntime_dir = "{folder}/run"\nmodels_dir = "{models}"',
        f'[databases.building]\npath = "{folder}/building.db"\nmode = "rw"',
        f'[models.small]\nsource = "{source}"\ncontext = {context}',
        f'[agents.house]\nmodel = "small"\nsystem = {json.dumps(SYSTEM)}\ntools = {json.dumps(list(TOOLS))}',
    ]
    for name, tool in TOOLS.items():
        lines.append(f"[tools.{name}]")
        lines += [f"{key} = {_toml(value)}" for key, value in tool.items()]
    (folder / "edged.toml").write_text("\n".join(lines) + "\n")


def _toml(value: Any) -> str:
    """A value as TOML writes it inline; strings and numbers are spelled as in JSON."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(inner) for inner in value) + "]"
    return json.dumps(value)


def same(made: Call | None, wanted: Call) -> bool:
    """Whether a call is the wanted one; free text counts by its words, whatever its case and punctuation."""
    if made is None or made[0] != wanted[0] or not isinstance(made[1], dict):
        return False
    return {k: _plain(v) for k, v in made[1].items()} == {k: _plain(v) for k, v in wanted[1].items()}


def parsed(text: str) -> Call | None:
    """The call in what a peer wrote; None where it was cut off."""
    try:
        call = json.loads(text)
        return call["name"], call["arguments"]
    except (ValueError, KeyError, TypeError):
        return None


def _plain(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    kept = "".join(c for c in value.lower() if c.isalnum() or c.isspace())
    return " ".join(kept.split())
