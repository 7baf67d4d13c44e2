"""Times as models write them, and what becomes of them. Pure.

A small model does not count: it writes what was said ("now+20m", "fri 18:30"), and edged, which has a clock, makes the
time of it that a tool gets. Where a parameter of an agent's tool has one of the `FORMS` as its `format`, these forms
are allowed beside the absolute ones, the same in every language:

    time       now, now+1h30m, now-20m                                               -> 07:00
    date       today, tomorrow, yesterday, fri, last fri, now+3d, now-2w             -> 2026-12-04
    date-time  now, now+20m, a day of `date` or YYYY-MM-DD with HH:MM; HH:MM is next -> 2026-12-04T18:30:00+01:00
    duration   90m, 1h30m, 2d                                                        -> PT90M

Days and weeks are those of the calendar, hours, minutes and seconds are elapsed time. A weekday is the next one, today
included while the time has not passed. A local time that does not exist is moved forward, of two the first counts.

Behind `$ref`, and beside `enum`, `pattern` and the like, a format stays what JSON Schema says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Any

import msgspec
from msgspec import Struct

from edged.config import Tool
from edged.types import JSON, Message, ToolSpec

WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MONTHS_OF_DAYS = "(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|[12][0-9])"
CLOCK = "([01][0-9]|2[0-3]):[0-5][0-9]"
DATE = (
    f"(19[7-9][0-9]|2[0-9]{{3}})-({MONTHS_OF_DAYS})"  # earlier zones differ by seconds, for which RFC 3339 has no word
)
DAY = f"(today|tomorrow|yesterday|(last )?({'|'.join(WEEKDAYS)}))"
OFFSET = f"(Z|[+-]{CLOCK})"
SECONDS = ":[0-5][0-9]"
LEVELS = 8  # of a schema in which formats are looked for; deeper ones stay as they are


def _span(units: str) -> str:
    """Amounts in these units, each at most once and in this order, at least one. None is 0, days and weeks have three
    digits at most, the others four."""
    parts = [f"[1-9][0-9]{{0,{2 if unit in 'wd' else 3}}}{unit}" for unit in units]
    ways = ["".join([part, *(f"({later})?" for later in parts[i + 1 :])]) for i, part in enumerate(parts)]
    return f"({'|'.join(ways)})"


class Form(Struct, frozen=True):
    """How a model may write values of a format.

    pattern: all of it, as a regular expression without look-around. signature: in the compact dialect.
    described: for models that are shown JSON Schema.
    """

    pattern: str
    signature: str
    described: str


ISO = f"P([1-9][0-9]{{0,3}}[WD]|([1-9][0-9]{{0,3}}D)?T{_span('HMS')})"
FORMS = {
    "time": Form(f"{CLOCK}|now([+-]{_span('hm')})?", "HH:MM|now+20m", 'HH:MM, or "now+20m"'),
    "date": Form(
        f"{DATE}|{DAY}|now[+-]{_span('wd')}",
        "YYYY-MM-DD|tomorrow|fri",
        'YYYY-MM-DD, or "today", "tomorrow", "fri", "last fri", "now+3d"',
    ),
    "date-time": Form(
        f"{DATE}[ T]{CLOCK}({SECONDS})?{OFFSET}?|{DAY} {CLOCK}|{CLOCK}|now([+-]{_span('wdhms')})?",
        "YYYY-MM-DD HH:MM|now+20m|fri 18:30",
        'YYYY-MM-DD HH:MM, or "now+20m", "tomorrow 07:00", "fri 18:30"',
    ),
    "duration": Form(f"{_span('wdhms')}|{ISO}", "duration 90m", 'as "90m", "1h30m", "2d"'),
}

# What is absolute already and stays as it is: RFC 3339, and ISO 8601 for durations.
FULL_TIME = re.compile(rf"{CLOCK}(:([0-5][0-9]|60)(\.[0-9]+)?{OFFSET}?)?", re.ASCII)
FULL_DATE_TIME = re.compile(rf"{DATE}T{CLOCK}{SECONDS}(\.[0-9]+)?{OFFSET}", re.ASCII)
LOCAL_DATE_TIME = re.compile(rf"(?P<day>{DATE})[ Tt](?P<clock>{CLOCK}({SECONDS})?)(?P<offset>{OFFSET})?", re.ASCII)
FULL_DURATION = re.compile(
    r"P(?=[0-9T])([0-9]+Y)?([0-9]+M)?([0-9]+W)?([0-9]+D)?(T(?=[0-9])([0-9]+H)?([0-9]+M)?([0-9]+(\.[0-9]+)?S)?)?",
    re.ASCII,
)
AMOUNT = re.compile("([0-9]+)([wdhms])")
WRITTEN = {kind: re.compile(form.pattern, re.ASCII) for kind, form in FORMS.items()}
DAYS_OF = {"w": 7, "d": 1}
SECONDS_OF = {"h": 3600, "m": 60, "s": 1}


class ClockUnset(Exception):
    """A relative time cannot be resolved: nobody knows what time it is."""


class Moment(Struct, frozen=True):
    """When a request was accepted.

    at: in the board's zone; None: the board's clock was not set. zone: with its name, as people write it.
    """

    at: datetime | None
    zone: tzinfo
    name: str

    @property
    def line(self) -> str:
        """For a model: `Now: Mon 2026-11-30 23:40, Europe/Berlin`."""
        if self.at is None:
            return "Now: unknown"
        return f"Now: {WEEKDAYS[self.at.weekday()].capitalize()} {self.at:%Y-%m-%d %H:%M}, {self.name}"


UNSET = Moment(None, UTC, "UTC")
ANY = Moment(datetime(2024, 1, 1, tzinfo=UTC), UTC, "UTC")  # for what does not depend on it


# -- prompts -----------------------------------------------------------------------------------------------------------


def tells(clock: bool | None, tools: Iterable[Tool]) -> bool:
    """Whether an agent's model is told what time it is. clock: as configured; None: where a tool takes times."""
    return any(_has_times(tool.parameters) for tool in tools) if clock is None else clock


def with_now(asked: Sequence[Message], moment: Moment) -> tuple[Message, ...]:
    """A question, its last message of the user's beginning with the time. All that stands before is not changed by it,
    so that it need not be computed again."""
    made = list(asked)
    for place in reversed(range(len(made))):
        if made[place].role == "user":
            said = f"{moment.line}\n{made[place].content}"
            made[place] = msgspec.structs.replace(made[place], content=said)
            break
    return tuple(made)


def described(tool: ToolSpec) -> ToolSpec:
    """As models see it that are shown JSON Schema. `format` goes: a server that keeps it would forbid the forms."""

    def told(schema: dict[str, Any], kind: str) -> dict[str, Any]:
        rest = {word: value for word, value in schema.items() if word != "format"}
        said = f"{schema['description'].rstrip('. ')}: " if schema.get("description") else ""
        return {**rest, "description": said + FORMS[kind].described}

    return _changed(tool, told)


def signed(tool: ToolSpec) -> ToolSpec:
    """As the compact dialect shows it: a format is what its signature says."""
    return _changed(tool, lambda schema, kind: {**schema, "format": FORMS[kind].signature})


def bounded(tool: ToolSpec) -> ToolSpec:
    """As a grammar takes it: a format is the pattern of its forms."""

    def shaped(schema: dict[str, Any], kind: str) -> dict[str, Any]:
        rest = {word: value for word, value in schema.items() if word != "format"}
        return {**rest, "pattern": f"^({FORMS[kind].pattern})$"}

    return _changed(tool, shaped)


def _has_times(value: JSON) -> bool:
    """Whether a schema, or one in it, is that of times, by its format. A pattern of HH:MM takes absolute times only:
    the model needs no clock for them, and adapters were taught prompts of such agents without one."""
    match value:
        case dict():
            form = value.get("format")
            return (isinstance(form, str) and form in FORMS) or any(map(_has_times, value.values()))
        case list():
            return any(map(_has_times, value))
    return False


def _changed(tool: ToolSpec, change: Callable[[dict[str, Any], str], dict[str, Any]]) -> ToolSpec:
    return msgspec.structs.replace(tool, parameters=_mapped(tool.parameters, change, LEVELS))


def _mapped(schema: JSON, change: Callable[[dict[str, Any], str], dict[str, Any]], levels: int) -> JSON:
    """A schema, changed where it is that of times."""
    if not isinstance(schema, dict) or not levels:
        return schema
    if (kind := _kind(schema)) is not None:
        return change(schema, kind)
    made = dict(schema)
    if isinstance(inner := made.get("properties"), dict):
        made["properties"] = {name: _mapped(each, change, levels - 1) for name, each in inner.items()}
    if isinstance(made.get("items"), dict):
        made["items"] = _mapped(made["items"], change, levels - 1)
    for word in ("anyOf", "oneOf"):
        if isinstance(made.get(word), list):
            made[word] = [_mapped(each, change, levels - 1) for each in made[word]]
    return made


def _kind(schema: Mapping[str, JSON]) -> str | None:
    """The format of a schema whose values may be written in forms; None: they may not."""
    form, kinds = schema.get("format"), schema.get("type", "string")
    if not isinstance(form, str) or form not in FORMS or "string" not in kinds:
        return None
    others = ("enum", "const", "pattern", "minLength", "maxLength", "$ref", "allOf", "anyOf", "oneOf", "not", "if")
    return None if any(word in schema for word in others) else form


# -- values ------------------------------------------------------------------------------------------------------------


def resolved(schema: dict[str, JSON], arguments: dict[str, JSON], moment: Moment) -> dict[str, JSON]:
    """Arguments with absolute times. What is none of the forms of its format stays as it is, see `problem`; and what is
    absolute, too, so that resolving twice is resolving once.

    Raises:
        ClockUnset: one is relative, and the moment is not known.
    """
    made: dict[str, JSON] = _resolved(schema, arguments, moment, LEVELS)
    return made


def dated(said: dict[str, JSON], made: dict[str, JSON]) -> dict[str, JSON]:
    """Arguments as somebody is asked about them: with days of the calendar, for "tomorrow" is another one after
    midnight. What counts from now does so from the answer, and a duration is plainest as it was said.

    Args:
        made: the same, resolved.
    """
    return {
        name: made[name] if isinstance(value, str) and not value.startswith("now") and _is_dated(made[name]) else value
        for name, value in said.items()
    }


def _is_dated(value: JSON) -> bool:
    return isinstance(value, str) and re.match(DATE, value, re.ASCII) is not None


def are_in(schema: dict[str, JSON], arguments: dict[str, JSON]) -> bool:
    """Whether an argument is a time, or has one in it."""
    properties = schema.get("properties", {})
    return any(True for name, value in arguments.items() for _ in _times(properties.get(name), value, LEVELS))


def problem(schema: dict[str, JSON], arguments: dict[str, JSON]) -> str | None:
    """The first argument that is no time of its format, in words for the model; None: there is none."""
    properties = schema.get("properties", {})
    for name, value in arguments.items():
        for kind, said in _times(properties.get(name), value, LEVELS):
            if _absolute(kind, said, ANY) is None:
                return f"{name}: {said!r} is no {kind}; write it as {FORMS[kind].described.removeprefix('as ')}"
    return None


def _resolved(schema: JSON, value: JSON, moment: Moment, levels: int) -> JSON:
    if not isinstance(schema, dict) or not levels:
        return value
    if (kind := _kind(schema)) is not None:
        made = _absolute(kind, value, moment) if isinstance(value, str) else None
        return value if made is None else made
    properties, items = schema.get("properties"), schema.get("items")
    if isinstance(value, dict) and isinstance(properties, dict):
        return {name: _resolved(properties.get(name), each, moment, levels - 1) for name, each in value.items()}
    if isinstance(value, list) and isinstance(items, dict):
        return [_resolved(items, each, moment, levels - 1) for each in value]
    for way in (*_list(schema.get("anyOf")), *_list(schema.get("oneOf"))):
        if (made := _resolved(way, value, moment, levels - 1)) != value:
            return made
    return value


def _times(schema: JSON, value: JSON, levels: int) -> Iterable[tuple[str, str]]:
    """(format, text) of all values that have to be times; where there are alternatives none has to."""
    if not isinstance(schema, dict) or not levels:
        return
    properties, items = schema.get("properties"), schema.get("items")
    if isinstance(value, str) and (kind := _kind(schema)) is not None:
        yield kind, value
    elif isinstance(value, dict) and isinstance(properties, dict):
        for name, each in value.items():
            yield from _times(properties.get(name), each, levels - 1)
    elif isinstance(value, list) and isinstance(items, dict):
        for each in value:
            yield from _times(items, each, levels - 1)


def _list(value: JSON) -> Sequence[JSON]:
    return value if isinstance(value, list) else ()


def _absolute(kind: str, said: str, moment: Moment) -> str | None:
    """What a text of a format means; None: it is none of its forms, or no calendar has the day. Raises ClockUnset."""
    try:
        return ABSOLUTE[kind](said, moment)
    except (ValueError, OverflowError):
        return None


def _time(said: str, moment: Moment) -> str | None:
    if FULL_TIME.fullmatch(said):
        return said
    return f"{_counted(said, moment):%H:%M}" if WRITTEN["time"].fullmatch(said) else None


def _date(said: str, moment: Moment) -> str | None:
    if re.fullmatch(DATE, said, re.ASCII):
        return date.fromisoformat(said).isoformat()
    if not WRITTEN["date"].fullmatch(said):
        return None
    day = _counted(said, moment).date() if said.startswith("now") else _day(said, _known(moment))
    return day.isoformat()


def _date_time(said: str, moment: Moment) -> str | None:
    if FULL_DATE_TIME.fullmatch(said):
        datetime.fromisoformat(said)  # raises ValueError where no calendar has the day
        return said
    if local := LOCAL_DATE_TIME.fullmatch(said):
        day, clock = date.fromisoformat(local["day"]), time.fromisoformat(local["clock"])
        zone = datetime.fromisoformat(f"{day}T{clock}{local['offset'] or ''}").tzinfo or moment.zone
        return _placed(day, clock, zone).isoformat(timespec="seconds")
    if not WRITTEN["date-time"].fullmatch(said):
        return None
    if said.startswith("now"):
        return _counted(said, moment).isoformat(timespec="seconds")
    at, (word, _, clocked) = _known(moment), said.rpartition(" ")
    clock, day = time.fromisoformat(clocked), _day(word or "today", at)
    made = _placed(day, clock, moment.zone)
    if made.timestamp() <= at.timestamp() and (not word or word in WEEKDAYS):  # it has passed: the next one
        made = _placed(day + timedelta(days=7 if word else 1), clock, moment.zone)
    return made.isoformat(timespec="seconds")


def _duration(said: str, moment: Moment) -> str | None:
    if FULL_DURATION.fullmatch(said):
        return said
    if not WRITTEN["duration"].fullmatch(said):
        return None
    days, rest = 0, ""
    for amount, unit in AMOUNT.findall(said):
        if unit in DAYS_OF:
            days += int(amount) * DAYS_OF[unit]  # ISO 8601 has weeks, but beside nothing else
        else:
            rest += amount + unit.upper()
    return f"P{f'{days}D' if days else ''}{f'T{rest}' if rest else ''}"


ABSOLUTE: Mapping[str, Callable[[str, Moment], str | None]] = {
    "time": _time,
    "date": _date,
    "date-time": _date_time,
    "duration": _duration,
}


def _known(moment: Moment) -> datetime:
    if moment.at is None:
        raise ClockUnset
    return moment.at


def _counted(said: str, moment: Moment) -> datetime:
    """now, now+1h30m, now-2d."""
    at, sign = _known(moment), -1 if "-" in said else 1
    days = seconds = 0
    for amount, unit in AMOUNT.findall(said):
        days += sign * int(amount) * DAYS_OF.get(unit, 0)
        seconds += sign * int(amount) * SECONDS_OF.get(unit, 0)
    if days:
        at = _placed(at.date() + timedelta(days=days), at.time(), moment.zone)
    return (at.astimezone(UTC) + timedelta(seconds=seconds)).astimezone(moment.zone)


def _day(word: str, at: datetime) -> date:
    """Of a weekday the next one, today included; with "last" the one before today."""
    today = at.date()
    if word.startswith("last "):
        behind = today.weekday() - WEEKDAYS.index(word.removeprefix("last "))
        return today - timedelta(days=(behind - 1) % 7 + 1)
    if word in WEEKDAYS:
        return today + timedelta(days=(WEEKDAYS.index(word) - today.weekday()) % 7)
    return today + timedelta(days={"yesterday": -1, "today": 0, "tomorrow": 1}[word])


def _placed(day: date, clock: time, zone: tzinfo) -> datetime:
    """A local time. One that the clocks skip is moved forward by what they skip; of two the first counts."""
    local = datetime.combine(day, clock.replace(fold=0), zone)
    return local.astimezone(UTC).astimezone(zone)
