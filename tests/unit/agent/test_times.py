"""Times as models write them: what is a form, and what becomes of it."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from edged.agent import times
from edged.agent.dialects import compact
from edged.agent.times import FORMS, UNSET, WEEKDAYS, ClockUnset, Moment
from edged.config import SqlTool
from edged.types import Message, ToolSpec

BERLIN = ZoneInfo("Europe/Berlin")
MON = "2026-11-30T23:40:30"  # a Monday, late


def moment(local: str = MON, zone: ZoneInfo = BERLIN, *, fold: int = 0) -> Moment:
    return Moment(datetime.fromisoformat(local).replace(tzinfo=zone, fold=fold), zone, zone.key)


def made(kind: str, said: Any, when: Moment | None = None) -> Any:
    schema = {"type": "object", "properties": {"at": {"type": "string", "format": kind}}}
    return times.resolved(schema, {"at": said}, moment() if when is None else when)["at"]


RESOLVED = [
    # time
    ("time", "07:00", "07:00"),
    ("time", "now", "23:40"),
    ("time", "now+20m", "00:00"),
    ("time", "now+1h30m", "01:10"),
    ("time", "now-41m", "22:59"),
    ("time", "07:00:00Z", "07:00:00Z"),
    # date
    ("date", "2026-12-24", "2026-12-24"),
    ("date", "today", "2026-11-30"),
    ("date", "tomorrow", "2026-12-01"),
    ("date", "yesterday", "2026-11-29"),
    ("date", "mon", "2026-11-30"),
    ("date", "tue", "2026-12-01"),
    ("date", "sun", "2026-12-06"),
    ("date", "last mon", "2026-11-23"),
    ("date", "last sun", "2026-11-29"),
    ("date", "last tue", "2026-11-24"),
    ("date", "now+3d", "2026-12-03"),
    ("date", "now+1w1d", "2026-12-08"),
    ("date", "now-2w", "2026-11-16"),
    # date-time
    ("date-time", "now", "2026-11-30T23:40:30+01:00"),
    ("date-time", "now+20m", "2026-12-01T00:00:30+01:00"),
    ("date-time", "now+90s", "2026-11-30T23:42:00+01:00"),
    ("date-time", "now-1d2h", "2026-11-29T21:40:30+01:00"),
    ("date-time", "tomorrow 07:00", "2026-12-01T07:00:00+01:00"),
    ("date-time", "today 07:00", "2026-11-30T07:00:00+01:00"),
    ("date-time", "yesterday 18:30", "2026-11-29T18:30:00+01:00"),
    ("date-time", "07:00", "2026-12-01T07:00:00+01:00"),
    ("date-time", "23:50", "2026-11-30T23:50:00+01:00"),
    ("date-time", "23:40", "2026-12-01T23:40:00+01:00"),
    ("date-time", "fri 18:30", "2026-12-04T18:30:00+01:00"),
    ("date-time", "mon 23:50", "2026-11-30T23:50:00+01:00"),
    ("date-time", "mon 23:40", "2026-12-07T23:40:00+01:00"),
    ("date-time", "last fri 18:30", "2026-11-27T18:30:00+01:00"),
    ("date-time", "2026-07-01 07:00", "2026-07-01T07:00:00+02:00"),
    ("date-time", "2026-07-01T07:00:05", "2026-07-01T07:00:05+02:00"),
    ("date-time", "2026-07-01T07:00Z", "2026-07-01T07:00:00+00:00"),
    ("date-time", "2026-07-01T07:00:00Z", "2026-07-01T07:00:00Z"),
    ("date-time", "2026-07-01T07:00:00.5-03:00", "2026-07-01T07:00:00.5-03:00"),
    # duration
    ("duration", "90m", "PT90M"),
    ("duration", "1h30m", "PT1H30M"),
    ("duration", "2d", "P2D"),
    ("duration", "2w1d6h", "P15DT6H"),
    ("duration", "45s", "PT45S"),
    ("duration", "PT20M", "PT20M"),
    ("duration", "P1Y2M", "P1Y2M"),
    ("duration", "P2W", "P2W"),
]


@pytest.mark.parametrize(("kind", "said", "expected"), RESOLVED)
def test_form_becomes_an_absolute_value(kind: str, said: str, expected: str) -> None:
    assert made(kind, said) == expected


@pytest.mark.parametrize(("kind", "said", "expected"), RESOLVED)
def test_resolving_twice_is_resolving_once(kind: str, said: str, expected: str) -> None:
    """Also at another time: so a run that is resumed leaves what is in its journal as it is."""
    assert made(kind, expected, moment("2031-02-28T12:00:00")) == expected


NO_FORMS = [
    ("time", "7:00"),
    ("time", "24:00"),
    ("time", "now+3d"),
    ("time", "now+0m"),
    ("time", "now+20"),
    ("time", "now+20m1h"),
    ("time", "NOW"),
    ("time", "soon"),
    ("time", "07:00\n"),
    ("time", "\u0660\u0667:00"),
    ("date", "2026-02-29"),
    ("date", "2026-13-01"),
    ("date", "now"),
    ("date", "friday"),
    ("date", "last today"),
    ("date-time", "2026-02-29 07:00"),
    ("date-time", "2026-02-29T07:00:00Z"),
    ("date-time", "tomorrow"),
    ("date-time", "fri"),
    ("date-time", "tomorrow 7:00"),
    ("date-time", "now+"),
    ("duration", "90"),
    ("duration", "P"),
    ("duration", "PT"),
    ("duration", "PT20"),
    ("duration", "90m1h"),
    ("duration", ""),
]


@pytest.mark.parametrize(("kind", "said"), NO_FORMS)
def test_what_is_no_form_stays_and_is_told(kind: str, said: str) -> None:
    schema = {"type": "object", "properties": {"at": {"type": "string", "format": kind}}}
    assert made(kind, said) == said
    wrong = times.problem(schema, {"at": said})
    assert wrong is not None
    assert wrong.startswith(f"at: {said!r} is no {kind}; write it as ")


@pytest.mark.parametrize(("kind", "said", "expected"), RESOLVED)
def test_form_is_no_problem(kind: str, said: str, expected: str) -> None:
    schema = {"type": "object", "properties": {"at": {"type": "string", "format": kind}}}
    assert times.problem(schema, {"at": said}) is None
    assert times.problem(schema, {"at": expected}) is None


RELATIVE = {
    "time": ["now", "now+20m", "now-1h"],
    "date": ["today", "fri", "last fri", "now+3d"],
    "date-time": ["now", "now+20m", "07:00", "tomorrow 07:00", "fri 18:30", "last fri 18:30"],
}


@pytest.mark.parametrize(("kind", "said"), [(kind, said) for kind, every in RELATIVE.items() for said in every])
def test_without_a_clock_nothing_is_counted_from_it(kind: str, said: str) -> None:
    with pytest.raises(ClockUnset):
        made(kind, said, UNSET)


@pytest.mark.parametrize(
    ("kind", "said", "expected"),
    [
        ("time", "07:00", "07:00"),
        ("date", "2026-12-24", "2026-12-24"),
        ("date-time", "2026-07-01 07:00", "2026-07-01T07:00:00+02:00"),
        ("duration", "90m", "PT90M"),
    ],
)
def test_without_a_clock_what_is_absolute_works(kind: str, said: str, expected: str) -> None:
    assert made(kind, said, Moment(None, BERLIN, "Europe/Berlin")) == expected


# -- daylight saving: in Berlin 02:00 to 03:00 is left out on 2026-03-29, and there twice on 2026-10-25 --------------


@pytest.mark.parametrize(
    ("at", "said", "expected"),
    [
        ("2026-03-28T12:00:00", "tomorrow 02:30", "2026-03-29T03:30:00+02:00"),
        ("2026-03-28T12:00:00", "sun 03:00", "2026-03-29T03:00:00+02:00"),
        ("2026-03-29T01:50:00", "now+20m", "2026-03-29T03:10:00+02:00"),
        ("2026-03-28T02:30:00", "now+1d", "2026-03-29T03:30:00+02:00"),
        ("2026-03-28T02:30:00", "now+24h", "2026-03-29T03:30:00+02:00"),
        ("2026-03-28T12:00:00", "now+1d", "2026-03-29T12:00:00+02:00"),
        ("2026-03-28T12:00:00", "now+24h", "2026-03-29T13:00:00+02:00"),
        ("2026-03-29T12:00:00", "now-1d", "2026-03-28T12:00:00+01:00"),
        ("2026-10-24T12:00:00", "tomorrow 02:30", "2026-10-25T02:30:00+02:00"),
        ("2026-10-24T12:00:00", "now+1d", "2026-10-25T12:00:00+01:00"),
        ("2026-10-24T12:00:00", "now+24h", "2026-10-25T11:00:00+01:00"),
        ("2026-10-25T02:50:00", "now+20m", "2026-10-25T02:10:00+01:00"),
        ("2026-10-25T03:10:00", "now-20m", "2026-10-25T02:50:00+01:00"),
        ("2026-10-25T01:00:00", "02:30", "2026-10-25T02:30:00+02:00"),
    ],
)
def test_clocks_that_are_put_forward_and_back(at: str, said: str, expected: str) -> None:
    assert made("date-time", said, moment(at)) == expected


def test_in_the_second_of_two_hours_the_first_has_passed() -> None:
    """Wall times alone would say that 02:50 is still to come."""
    assert made("date-time", "02:50", moment("2026-10-25T02:45:00", fold=1)) == "2026-10-26T02:50:00+01:00"
    assert made("date-time", "02:50", moment("2026-10-25T02:45:00", fold=0)) == "2026-10-25T02:50:00+02:00"


@pytest.mark.parametrize(
    ("at", "said", "expected"),
    [
        ("2028-02-28T12:00:00", "tomorrow", "2028-02-29"),
        ("2027-02-28T12:00:00", "tomorrow", "2027-03-01"),
        ("2028-02-28T12:00:00", "now+2d", "2028-03-01"),
        ("2026-12-31T12:00:00", "tomorrow", "2027-01-01"),
        ("2027-01-01T12:00:00", "yesterday", "2026-12-31"),
        ("2026-04-30T12:00:00", "sat", "2026-05-02"),
        ("2028-02-29T12:00:00", "now-52w", "2027-03-02"),
    ],
)
def test_ends_of_months_and_leap_days(at: str, said: str, expected: str) -> None:
    assert made("date", said, moment(at)) == expected


def test_day_is_that_of_the_board() -> None:
    """In UTC it is still the day before."""
    at = datetime(2026, 11, 30, 20, 0, tzinfo=UTC)
    auckland = ZoneInfo("Pacific/Auckland")
    assert made("date", "today", Moment(at.astimezone(auckland), auckland, "Pacific/Auckland")) == "2026-12-01"


ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "Asia/Kathmandu", "UTC")
MOMENTS = st.builds(
    lambda at, zone: Moment(datetime.fromtimestamp(at, ZoneInfo(zone)), ZoneInfo(zone), zone),
    st.floats(1e9, 4e9),
    st.sampled_from(ZONES),
)


@given(MOMENTS, st.sampled_from(WEEKDAYS))
def test_weekday_is_one_of_the_next_seven_days(when: Moment, day: str) -> None:
    assert when.at is not None
    found = datetime.fromisoformat(made("date", day, when)).date()
    assert WEEKDAYS[found.weekday()] == day
    assert 0 <= (found - when.at.date()).days <= 6
    last = datetime.fromisoformat(made("date", f"last {day}", when)).date()
    assert WEEKDAYS[last.weekday()] == day
    assert 1 <= (when.at.date() - last).days <= 7


@given(MOMENTS, st.sampled_from(WEEKDAYS), st.times())
def test_time_on_a_weekday_is_still_to_come_and_within_a_week(when: Moment, day: str, clock: Any) -> None:
    assert when.at is not None
    found = datetime.fromisoformat(made("date-time", f"{day} {clock:%H:%M}", when))
    ahead = found.timestamp() - when.at.timestamp()
    assert -1 < ahead <= 8 * 86400 + 7200  # Apia left out a whole day, once


@given(MOMENTS, st.times())
def test_time_alone_is_the_next(when: Moment, clock: Any) -> None:
    assert when.at is not None
    found = datetime.fromisoformat(made("date-time", f"{clock:%H:%M}", when))
    assert -1 < found.timestamp() - when.at.timestamp() <= 2 * 86400 + 7200


@given(MOMENTS, st.integers(0, 9999), st.integers(0, 9999), st.integers(0, 9999))
def test_hours_minutes_and_seconds_are_elapsed_time(when: Moment, h: int, m: int, s: int) -> None:
    assert when.at is not None
    span = "".join(f"{n}{unit}" for n, unit in ((h, "h"), (m, "m"), (s, "s")) if n)
    if not span:
        return
    found = datetime.fromisoformat(made("date-time", f"now+{span}", when))
    expected = when.at.replace(microsecond=0) if when.at.microsecond else when.at
    assert found.timestamp() == expected.timestamp() + timedelta(hours=h, minutes=m, seconds=s).total_seconds()


@given(MOMENTS, st.integers(1, 999))
def test_days_keep_the_time_of_day_where_there_is_one(when: Moment, days: int) -> None:
    assert when.at is not None
    found = datetime.fromisoformat(made("date-time", f"now+{days}d", when))
    wanted = when.at.replace(tzinfo=None, microsecond=0, fold=0) + timedelta(days=days)
    ahead = found.replace(tzinfo=None) - wanted
    assert timedelta(0) <= ahead <= timedelta(hours=24)
    if ahead:  # that time of that day does not exist
        placed = wanted.replace(tzinfo=when.zone)
        assert placed.astimezone(UTC).astimezone(when.zone).replace(tzinfo=None) != wanted


@given(st.sampled_from(sorted(FORMS)), st.data(), MOMENTS)
def test_whatever_a_grammar_allows_is_understood(kind: str, data: st.DataObject, when: Moment) -> None:
    """The only exception are days of February that the year does not have."""
    said = data.draw(st.from_regex(re.compile(FORMS[kind].pattern, re.ASCII), fullmatch=True))
    found = made(kind, said, when)
    schema = {"type": "object", "properties": {"at": {"type": "string", "format": kind}}}
    if times.problem(schema, {"at": said}) is not None:
        assert "-02-29" in said
        return
    assert made(kind, found, moment("2030-01-01T00:00:00")) == found
    if kind == "date-time":
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", found)


# -- schemas -----------------------------------------------------------------------------------------------------------

TIME = {"type": "string", "format": "time"}


def spec(**parameters: Any) -> ToolSpec:
    return ToolSpec("set", "Set it.", {"type": "object", "properties": parameters, "required": list(parameters)})


def test_times_are_found_in_lists_objects_and_alternatives() -> None:
    schema = spec(
        list={"type": "array", "items": TIME},
        object={"type": "object", "properties": {"at": TIME, "name": {"type": "string"}}},
        perhaps={"anyOf": [{"type": "null"}, {"type": "string", "format": "date"}]},
        either={"type": ["string", "null"], "format": "date"},
    ).parameters
    said = {"list": ["now", "07:00"], "object": {"at": "now", "name": "now"}, "perhaps": "today", "either": None}
    assert times.resolved(schema, said, moment()) == {
        "list": ["23:40", "07:00"],
        "object": {"at": "23:40", "name": "now"},
        "perhaps": "2026-11-30",
        "either": None,
    }
    assert times.problem(schema, {"list": ["07:00", "late"]}) is not None
    assert times.problem(schema, {"perhaps": "late"}) is None


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"},
        {"type": "string", "format": "time", "enum": ["now", "never"]},
        {"type": "string", "format": "time", "pattern": "now|later"},
        {"type": "string", "format": "uuid"},
        {"$ref": "#/$defs/time"},
        {"type": "string", "pattern": "^[0-2][0-9]:[0-5][0-9]$"},
        {"type": "integer"},
    ],
)
def test_what_takes_no_relative_times_is_left_alone(schema: dict[str, Any]) -> None:
    tool = spec(at=schema)
    assert times.resolved(tool.parameters, {"at": "now"}, moment()) == {"at": "now"}
    assert times.problem(tool.parameters, {"at": "nonsense"}) is None
    for change in (times.described, times.signed, times.bounded):
        assert json.dumps(change(tool).parameters) == json.dumps(tool.parameters)


def test_signature_says_what_may_be_written() -> None:
    every = {f"a{i}": {"type": "string", "format": kind} for i, kind in enumerate(FORMS)}
    shown = compact.signature(times.signed(spec(**every)))
    assert shown == (
        "set(a0: HH:MM|now+20m, a1: YYYY-MM-DD|tomorrow|fri, a2: YYYY-MM-DD HH:MM|now+20m|fri 18:30, "
        "a3: duration 90m): Set it."
    )
    # A client's own tools take what JSON Schema says.
    assert compact.signature(spec(**every)) == "set(a0: time, a1: date, a2: date-time, a3: duration): Set it."


def test_schema_says_what_may_be_written() -> None:
    shown = times.described(spec(at={**TIME, "description": "When it opens."})).parameters["properties"]["at"]
    assert shown == {"type": "string", "description": 'When it opens: HH:MM, or "now+20m"'}


def follows(schema: dict[str, Any], said: str) -> bool:
    tokenizer = LLTokenizer("byte")
    matcher = LLMatcher(tokenizer, f"start: %json {json.dumps(schema)}")
    assert not matcher.is_error(), matcher.get_error()
    tokens = tokenizer.tokenize_str(json.dumps({"at": said}))
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize("kind", sorted(FORMS))
def test_grammar_allows_the_forms_and_nothing_else(kind: str) -> None:
    schema = times.bounded(spec(at={"type": "string", "format": kind})).parameters
    absolute = {"07:00:00Z", "2026-07-01T07:00:00.5-03:00", "P1Y2M"}  # that only other models write
    for each, said, _ in RESOLVED:
        if each == kind and said not in absolute:
            assert follows(schema, said), said
    for each, said in NO_FORMS:
        if each == kind and "-02-29" not in said:
            assert not follows(schema, said), said


# -- prompts -----------------------------------------------------------------------------------------------------------


def tool(**parameters: Any) -> SqlTool:
    return SqlTool(description="d", database="p", sql="SELECT 1", parameters=parameters)


@pytest.mark.parametrize(
    ("parameter", "told"),
    [
        (TIME, True),
        ({"format": "duration"}, True),
        ({"type": "array", "items": {"anyOf": [{"type": "null"}, {"format": "date"}]}}, True),
        ({"pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$"}, False),
        ({"pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"}, False),
        ({"enum": ["north"]}, False),
        ({"type": "string", "description": "a time"}, False),
    ],
)
def test_time_is_told_where_a_tool_takes_times(parameter: dict[str, Any], told: bool) -> None:
    assert times.tells(None, [tool(other={"type": "integer"}), tool(at=parameter)]) is told
    assert times.tells(True, [tool(at=parameter)])
    assert not times.tells(False, [tool(at=parameter)])


def test_line_says_day_time_and_zone() -> None:
    assert moment().line == "Now: Mon 2026-11-30 23:40, Europe/Berlin"
    assert Moment(None, BERLIN, "Europe/Berlin").line == "Now: unknown"


def test_line_stands_in_the_question_and_nowhere_else() -> None:
    asked = (Message("user", "before"), Message("assistant", "yes"), Message("user", "wake me at seven"))
    *before, question = times.with_now(asked, moment())
    assert tuple(before) == asked[:2]
    assert question == Message("user", "Now: Mon 2026-11-30 23:40, Europe/Berlin\nwake me at seven")
