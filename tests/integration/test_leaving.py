"""An agent that may use a cloud, and values that never reach it: what crosses the wire has placeholders, and what comes
of the answer has the values."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import cloud as clouds
from tests.support.cloud import Behaviour, ScriptedCloud
from tests.support.cloud_daemon import ESCALATE, ask, cloudy, upstream
from tests.support.daemon import Daemon, Wired, entry
from tests.support.tap import Tap

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="listening on the wire takes root")

MAIL, PHONE, CARD, IBAN = "kanari@post.example", "+43 664 5550199", "4111 1111 1111 1111", "AT61 1904 3002 3457 3201"
NAME, PIN, CODE = 'Kana "Ri" Vogel', 48_151_623, "Xk3canary9Q"
PLANTED = [MAIL, PHONE, CARD, IBAN, NAME, json.dumps(NAME)[1:-1], "Vogel", str(PIN), CODE, "4111111111111111"]
ORDER = "1234567890123456"  # as long as a card's number, and none
CONTROL = "control77Z"
TOOLS = """
[tools.person]
description = "Who somebody is."
database = "plant"
sql = "SELECT name, mail, pin, town FROM people WHERE id = :number"
private = ["name", "PIN"]
parameters.number = { type = "integer" }

[tools.by_pin]
description = "Who has a pin."
database = "plant"
sql = "SELECT town FROM people WHERE pin = :pin"
private = ["pin"]
parameters.pin = { type = "integer", minimum = 0 }

[tools.secret]
description = "The code of the door."
database = "plant"
sql = "SELECT code FROM people WHERE id = 1"
private = true

[tools.note]
private = ["text"]
"""
SCRIPT = entry("door", {"name": "secret", "arguments": {}}, ESCALATE)


@pytest.fixture
async def cloud() -> AsyncIterator[ScriptedCloud]:
    """One that is up all the time."""
    async with ScriptedCloud() as scripted:
        yield scripted


def house(folder: Path, cloud: ScriptedCloud, **agent: Any) -> Daemon:
    """A daemon that knows people; it is not started."""
    settings = {"tools": ["person", "by_pin", "secret", "note", "tank_level"], "route": "cloud", **agent}
    daemon = cloudy(folder, upstream("far", cloud), script=SCRIPT, **settings)
    daemon.drop_in(TOOLS)
    daemon.execute(
        "CREATE TABLE people(id INTEGER PRIMARY KEY, name TEXT, mail TEXT, pin INTEGER, town TEXT, code TEXT)"
    )
    name = NAME.replace("'", "''")
    daemon.execute(f"INSERT INTO people VALUES (1, '{name}', '{MAIL}', {PIN}, 'Linz', '{CODE}')")
    return daemon


def assert_nothing_left(tap: Tap) -> None:
    """The tap heard what may leave, and nothing of what may not."""
    assert CONTROL.encode() in tap.heard
    for value in PLANTED:
        for spelled in (value, json.dumps(value)[1:-1]):
            assert spelled.encode() not in tap.heard, value


def row(body: dict[str, Any]) -> dict[str, Any]:
    """Of the last result in a question."""
    result = next(m["content"] for m in reversed(body["messages"]) if m["role"] == "tool")
    first: dict[str, Any] = json.loads(result)["rows"][0]
    return first


def words(body: dict[str, Any]) -> str:
    """What a client said last."""
    return str(next(m["content"] for m in reversed(body["messages"]) if m["role"] == "user"))


def placeholder(text: str, kind: str) -> str:
    """The first of a kind in a text."""
    match = re.search(rf"\[{kind}_\d+\]", text)
    assert match is not None, text
    return match[0]


async def test_values_stay_and_come_back_through_a_conversation(tmp_path: Path, cloud: ScriptedCloud) -> None:
    """In the question, in results, in arguments that the cloud's model makes of them, in the history of later turns and
    in the answers; tools and clients get the values."""
    cloud.will(
        clouds.calls(("person", {"number": 1})),
        clouds.by(lambda body: clouds.calls(("by_pin", {"pin": row(body)["pin"]}))),
        clouds.by(lambda body: clouds.calls(("note", {"text": f"for {words(body).split('write to ')[1]}"}))),
        clouds.by(
            lambda body: f"{row_of(body, 1)['name']} of {row_of(body, 1)['town']}: [email 1], EMAIL_1, [EMAIL_9]"
        ),
        clouds.by(lambda body: body["messages"][-2]["content"]),  # the last answer, as the cloud is told it
    )
    question = f"{CONTROL}: order {ORDER}, card {CARD}, account {IBAN}, phone {PHONE}, write to {MAIL}"
    with Tap(cloud.port) as tap:
        async with house(tmp_path, cloud) as daemon:
            first = await ask(daemon, question, conversation="k")
            again = await ask(daemon, "and again?", conversation="k")
            assert daemon.rows("diary") == [(f"for {MAIL}",)]
        assert ORDER.encode() in tap.heard
        assert_nothing_left(tap)
    assert first["output"] == f"{NAME} of Linz: {MAIL}, {MAIL}, [EMAIL_9]"
    assert again["output"] == first["output"]
    assert [(call["name"], call["ok"]) for call in first["tool_calls"]] == [
        ("person", True), ("by_pin", True), ("note", True),
    ]  # fmt: skip
    assert first["tool_calls"][0]["result"]["rows"][0]["pin"] == PIN
    assert first["tool_calls"][1]["arguments"] == {"pin": PIN}
    offered = [tool["function"]["name"] for tool in cloud.chats[0].body["tools"]]
    assert offered == ["person", "by_pin", "note", "tank_level"]


def row_of(body: dict[str, Any], number: int) -> dict[str, Any]:
    """The row of a result, counted from 1."""
    results = [m["content"] for m in body["messages"] if m["role"] == "tool"]
    first: dict[str, Any] = json.loads(results[number - 1])["rows"][0]
    return first


async def test_values_come_back_in_a_stream(tmp_path: Path, cloud: ScriptedCloud) -> None:
    """A placeholder in pieces is one; offsets count characters of what the client gets."""
    cloud.will(clouds.stream("Write to [EM", "AIL", "_1", "], the [tank] [", "EMAIL_", "1] is [full"))
    with Tap(cloud.port) as tap:
        async with house(tmp_path, cloud) as daemon, Wired(daemon.socket) as client:
            error, reply = await client.call(1, "agent.ask", {"input": f"{CONTROL} {MAIL}", "stream": True})
            assert error is None
            text = ""
            for _, _, (_, offset, piece) in client.notifications:
                assert offset == len(text)
                text += piece
        assert_nothing_left(tap)
    assert reply["output"] == f"Write to {MAIL}, the [tank] {MAIL} is [full"
    assert text == reply["output"]


async def test_values_of_the_boards_own_attempt_stay_when_it_is_handed_over(
    tmp_path: Path, cloud: ScriptedCloud
) -> None:
    """A tool that is private as a whole: its result is hidden, in later texts too, and nobody there can call it."""
    cloud.will(
        clouds.calls(("secret", {})),
        clouds.by(lambda body: f"The code is {row(body)['code'] if 'rows' in body else '[PRIVATE_1]'}."),
        clouds.by(lambda body: body["messages"][-2]["content"]),
    )
    with Tap(cloud.port) as tap:
        async with house(tmp_path, cloud, route="auto") as daemon:
            first = await ask(daemon, f"{CONTROL} what is the code of the door?", conversation="k")
            again = await ask(daemon, f"{CONTROL} and the code?", conversation="k", route="cloud")
        assert_nothing_left(tap)
    assert first["output"] == again["output"] == f"The code is {CODE}."
    assert [call["name"] for call in first["tool_calls"]] == ["secret"]


async def test_resumed_request_asks_with_the_words_it_asked_with_before(tmp_path: Path, cloud: ScriptedCloud) -> None:
    """After a kill the same question leaves, byte for byte, under the same key."""
    cloud.will(clouds.calls(("person", {"number": 1})), clouds.stalled_header(), clouds.text("[PRIVATE_1] [EMAIL_1]"))
    daemon = house(tmp_path, cloud)
    with Tap(cloud.port) as tap:
        async with daemon:
            async with Wired(daemon.socket) as client:
                client.send([0, 1, "agent.ask", [{"input": f"{CONTROL} {MAIL} {PHONE}", "id": "a"}]])
                await cloud.asked(2)
            await daemon.kill()
            await daemon.start()
            reply = await ask(daemon, f"{CONTROL} {MAIL} {PHONE}", id="a")
        assert_nothing_left(tap)
    assert reply["output"] == f"{NAME} {MAIL}"
    before, after = cloud.chats[1], cloud.chats[2]
    assert before.body == after.body
    assert before.headers["Idempotency-Key"] == after.headers["Idempotency-Key"]


SCHEMA = {
    "type": "object",
    "properties": {"who": {"enum": [MAIL, "nobody"]}, "pin": {"type": "integer"}, "name": {"type": "string"}},
    "required": ["who", "pin", "name"],
}


def shaped(body: dict[str, Any]) -> Behaviour:
    """An answer in the shape that was asked for, from what the cloud knows."""
    who = body["response_format"]["json_schema"]["schema"]["properties"]["who"]["enum"][0]
    known = row(body)
    return clouds.text(json.dumps({"who": who, "pin": known["pin"], "name": known["name"]}))


async def test_values_come_back_in_an_answer_in_a_shape(tmp_path: Path, cloud: ScriptedCloud) -> None:
    """The schema leaves without them; the answer is JSON with quotes escaped and numbers as numbers."""
    cloud.will(clouds.calls(("person", {"number": 1})), clouds.by(shaped))
    with Tap(cloud.port) as tap:
        async with house(tmp_path, cloud) as daemon:
            reply = await ask(daemon, CONTROL, response_schema=SCHEMA, stop=[f"<{MAIL}>"])
        assert_nothing_left(tap)
    assert json.loads(reply["output"]) == {"who": MAIL, "pin": PIN, "name": NAME}
    assert cloud.chats[0].body["stop"] == [f"<{placeholder(str(cloud.chats[0].body['stop']), 'EMAIL')}>"]


async def test_what_goes_back_to_the_clouds_model_has_no_values_either(tmp_path: Path, cloud: ScriptedCloud) -> None:
    """An error names what was wrong, with placeholders."""
    cloud.will(
        clouds.calls(("person", {"number": 1})),
        clouds.by(lambda body: clouds.calls(("tank_level", {"tank": row(body)["name"]}))),
        clouds.by(lambda body: body["messages"][-1]["content"]),
    )
    with Tap(cloud.port) as tap:
        async with house(tmp_path, cloud) as daemon:
            reply = await ask(daemon, CONTROL)
        assert_nothing_left(tap)
    assert "Vogel" in reply["output"]
    assert "is not one of" in reply["output"]


async def test_agent_may_leave_addresses_as_they_are_and_columns_stay_private(
    tmp_path: Path, cloud: ScriptedCloud
) -> None:
    """`mask = false` is about what is found by itself."""
    cloud.will(clouds.calls(("person", {"number": 1})))
    async with house(tmp_path, cloud, mask=False) as daemon:
        await ask(daemon, f"write to {MAIL}")
    assert words(cloud.chats[1].body) == f"write to {MAIL}"
    known = row(cloud.chats[1].body)
    assert (known["mail"], known["town"]) == (MAIL, "Linz")
    assert re.fullmatch(r"\[PRIVATE_\d\]", known["name"])


async def test_explain_says_what_would_be_masked(tmp_path: Path, cloud: ScriptedCloud) -> None:
    """By kind; nothing where nothing may leave."""
    async with house(tmp_path, cloud) as daemon, Wired(daemon.socket) as client:
        question = {"input": f"write to {MAIL}, {PHONE}"}
        _, told = await client.call(1, "route.explain", question)
        _, private = await client.call(2, "route.explain", {**question, "route": "local", "privacy": "device"})
    assert told["masked"] == {"EMAIL": 1, "PHONE": 1}
    assert private["masked"] == {}
    assert cloud.chats == []


async def test_private_name_that_is_no_column_keeps_the_tool_from_working(tmp_path: Path, cloud: ScriptedCloud) -> None:
    """A slip of the pen does not make a value leave."""
    cloud.will(clouds.calls(("person", {"number": 1})))
    daemon = house(tmp_path, cloud)
    daemon.drop_in(TOOLS.replace('"PIN"', '"pinn"'))
    with Tap(cloud.port) as tap:
        async with daemon:
            reply = await ask(daemon, CONTROL)
        assert_nothing_left(tap)
    assert "private names 'pinn'" in reply["tool_calls"][0]["result"]["error"]
