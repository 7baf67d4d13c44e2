"""Requests that the board hands to a cloud: why, with what, and what comes of it. The daemon is real, so are the tools'
database and the cloud's HTTP; only the models follow scripts."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import cloud as clouds
from tests.support.broker import until
from tests.support.cloud import ScriptedCloud
from tests.support.cloud_daemon import ask, cloudy, refused, upstream
from tests.support.daemon import Wired
from tests.support.timing import assert_adds_up


@pytest.fixture
async def cloud() -> AsyncIterator[ScriptedCloud]:
    """A cloud that answers "ok" to everything, until it is told otherwise."""
    async with ScriptedCloud() as scripted:
        yield scripted


def said(cloud: ScriptedCloud, number: int = -1) -> list[dict[str, Any]]:
    """The messages that the cloud was sent."""
    messages: list[dict[str, Any]] = cloud.chats[number].body["messages"]
    return messages


async def test_request_that_the_model_escalates_is_answered_by_the_cloud(tmp_path: Path, cloud: ScriptedCloud) -> None:
    """The reply says who answered and why; the cloud got the agent's system text, the question and the tools."""
    cloud.will(clouds.text("A long plan."))
    async with cloudy(tmp_path, upstream("far", cloud)) as daemon:
        reply = await ask(daemon, "this is too hard for you")
    assert (reply["status"], reply["output"], reply["degraded"]) == ("done", "A long plan.", False)
    assert reply["route"] == {
        "where": "cloud", "model": "large", "reason": "escalated", "confidence": None, "score": None, "upstream": "far",
    }  # fmt: skip
    assert reply["usage"]["completion_tokens"] > 7  # the board's own tokens are counted too
    assert reply["timing"]["prefill_ms"] > 0
    assert_adds_up(reply["timing"])
    assert [(m["role"], m["content"]) for m in said(cloud)] == [
        ("system", "You run a greenhouse."),
        ("user", "this is too hard for you"),
    ]
    assert [tool["function"]["name"] for tool in cloud.chats[0].body["tools"]] == ["tank_level", "set_valve", "note"]


NOTHING_READ = "SELECT max(level) AS level FROM tank_levels WHERE level > 100 AND :tank"


@pytest.mark.parametrize(
    ("say_none", "agent", "fields", "answer"),
    [
        ("", {}, {}, "Nothing was found."),
        ("", {}, {"language": "de-AT"}, "Es wurde nichts gefunden."),
        ("", {"language": "de"}, {}, "Es wurde nichts gefunden."),
        ('say_none = "No level of the {tank} tank."', {"language": "de"}, {}, "No level of the south tank."),
    ],
)
async def test_what_holds_nothing_is_not_worded_by_a_cloud(
    tmp_path: Path, cloud: ScriptedCloud, say_none: str, agent: dict[str, Any], fields: dict[str, Any], answer: str
) -> None:
    """Nor is a cloud paid for it: it was asked for the call only."""
    cloud.will(clouds.calls(("tank_level", {"tank": "south"})), clouds.text("It is 55 percent full."))
    tool = f"[tools.tank_level]\nsql = {json.dumps(NOTHING_READ)}\n{say_none}\n"
    async with cloudy(tmp_path, upstream("far", cloud), tool, **agent) as daemon:
        reply = await ask(daemon, "too hard: how full is it?", **fields)
    assert (reply["status"], reply["output"], len(cloud.chats)) == ("done", answer, 1)
    assert reply["route"]["where"] == "cloud"


async def test_cloud_works_with_the_boards_tools_under_the_same_journal(tmp_path: Path, cloud: ScriptedCloud) -> None:
    """Two calls at once, then an answer that knows their results; each is done once and shown in the reply."""
    cloud.will(
        clouds.calls(("tank_level", {"tank": "south"}), ("set_valve", {"valve": "north", "position": "open"})),
        clouds.by(lambda body: f"The level is {json.loads(body['messages'][-3]['content'])['rows'][0]['level']}."),
    )
    async with cloudy(tmp_path, upstream("far", cloud)) as daemon:
        reply = await ask(daemon, "too hard: look at the tank and open the valve")
        assert reply["output"] == "The level is 41.0."
        assert [(c["name"], c["ok"]) for c in reply["tool_calls"]] == [("tank_level", True), ("set_valve", True)]
        assert daemon.rows("valve_commands") == [("north", "open")]
    roles = [message["role"] for message in said(cloud)]
    assert roles == ["system", "user", "assistant", "tool", "assistant", "tool"]
    assert said(cloud)[3]["tool_call_id"] == said(cloud)[2]["tool_calls"][0]["id"]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (("set_valve", {"valve": "west", "position": "open"}), "'west' is not one of"),
        (("set_valve", {"valve": "north"}), "'position' is a required property"),
        (("set_valve", {"valve": "north", "position": "open", "speed": 3}), "'speed' was unexpected"),
        (("explode", {}), "there is no tool 'explode'"),
    ],
)
async def test_call_that_fits_no_schema_is_not_made_and_goes_back(
    tmp_path: Path, cloud: ScriptedCloud, wrong: tuple[str, dict[str, Any]], told: str
) -> None:
    """No grammar reaches there: what it writes is checked, and none of an answer's calls is made if one is wrong."""
    right = ("set_valve", {"valve": "south", "position": "closed"})
    cloud.will(clouds.calls(right, wrong), clouds.calls(right), clouds.text("South is closed."))
    async with cloudy(tmp_path, upstream("far", cloud)) as daemon:
        reply = await ask(daemon, "too hard")
        assert (reply["status"], reply["output"]) == ("done", "South is closed.")
        assert daemon.rows("valve_commands") == [("south", "closed")]
    results = [message["content"] for message in said(cloud, 1) if message["role"] == "tool"]
    assert "another call is wrong" in results[0]
    assert told in results[1]


async def test_cloud_that_does_not_learn_ends_the_request_and_does_nothing(
    tmp_path: Path, cloud: ScriptedCloud
) -> None:
    """After two corrections it is over, with the reason."""
    cloud.otherwise = clouds.calls(("set_valve", {"valve": "west", "position": "open"}))
    async with cloudy(tmp_path, upstream("far", cloud)) as daemon:
        reply = await ask(daemon, "too hard")
        assert (reply["status"], reply["error"]["code"]) == ("failed", "tool_failed")
        assert "'west' is not one of" in reply["error"]["message"]
        assert len(cloud.chats) == 3
        assert daemon.rows("valve_commands") == []


async def test_call_that_the_callers_role_does_not_allow_is_not_made(tmp_path: Path, cloud: ScriptedCloud) -> None:
    """Whoever decides: and nothing else of the same decision is."""
    valve = ("set_valve", {"valve": "north", "position": "open"})
    cloud.will(clouds.calls(("tank_level", {"tank": "south"}), valve), clouds.text("Opened."))
    daemon = cloudy(tmp_path, upstream("far", cloud))
    daemon.drop_in('[roles.viewer]\nagents = ["house"]\ntools = ["tank_level"]\n')
    daemon.drop_in(f'[access]\nunix_uid = {{ "{os.getuid()}" = "viewer" }}\n', "60.toml")
    async with daemon:
        reply = await ask(daemon, "too hard: look at the tank and open the valve")
        assert (reply["status"], reply["error"]["code"]) == ("failed", "forbidden")
        assert (reply["tool_calls"], daemon.rows("valve_commands")) == ([], [])


async def test_write_the_board_is_unsure_of_is_not_made_there(tmp_path: Path, cloud: ScriptedCloud) -> None:
    """Below min_confidence nothing happens before the cloud has decided."""
    cloud.will(clouds.calls(("set_valve", {"valve": "south", "position": "open"})), clouds.text("South it is."))
    async with cloudy(tmp_path, upstream("far", cloud), min_confidence=0.5) as daemon:
        reply = await ask(daemon, "unsure which valve")
        assert (reply["route"]["where"], reply["route"]["reason"]) == ("cloud", "unsure")
        assert daemon.rows("valve_commands") == [("south", "open")]
        sure = await ask(daemon, "open the north valve")
        assert (sure["route"]["where"], sure["route"]["score"]) == ("local", 1.0)


async def test_unsure_write_that_may_not_leave_is_asked_about_and_not_made(
    tmp_path: Path, cloud: ScriptedCloud
) -> None:
    """Nobody is there to decide it better, so it is not done at all. An answer in a shape holds no question."""
    shape = {"type": "object", "properties": {"done": {"type": "boolean"}}}
    async with cloudy(tmp_path, upstream("far", cloud), min_confidence=0.5) as daemon:
        reply = await ask(daemon, "unsure which valve", privacy="device")
        assert (reply["status"], reply["outcome"], reply["tool_calls"]) == ("done", "asked", [])
        assert reply["output"] == "Do you want me to do this: Open or close one valve (valve: north, position: open)?"
        assert reply["route"]["score"] == pytest.approx(0.3)
        shaped = await ask(daemon, "unsure which valve", privacy="device", response_schema=shape)
        assert (shaped["status"], shaped["error"]["code"]) == ("failed", "tool_failed")
        assert "score 0.30 is below min_confidence 0.50" in shaped["error"]["message"]
        assert daemon.rows("valve_commands") == []
    assert cloud.chats == []


async def test_what_the_board_did_before_it_gave_up_is_told_and_not_done_again(
    tmp_path: Path, cloud: ScriptedCloud
) -> None:
    """The cloud goes on from there."""
    cloud.will(clouds.text("It is noted."))
    async with cloudy(tmp_path, upstream("far", cloud)) as daemon:
        reply = await ask(daemon, "note and escalate")
        assert [c["name"] for c in reply["tool_calls"]] == ["note"]
        assert daemon.rows("diary") == [("from the board",)]
    assert [message["role"] for message in said(cloud)] == ["system", "user", "assistant", "tool"]


async def test_tool_that_fails_on_the_board_goes_to_the_cloud_with_its_error(
    tmp_path: Path, cloud: ScriptedCloud
) -> None:
    """A larger model may find another way; the failed calls are part of what it is told."""
    cloud.will(clouds.calls(("note", {"text": "instead"})), clouds.text("Written into the diary instead."))
    async with cloudy(tmp_path, upstream("far", cloud)) as daemon:
        daemon.execute("DROP TABLE valve_commands")
        reply = await ask(daemon, "open the north valve")
        assert (reply["status"], reply["route"]["reason"]) == ("done", "local_failed")
        assert [(c["name"], c["ok"]) for c in reply["tool_calls"]] == [("set_valve", False), ("note", True)]
        assert daemon.rows("diary") == [("instead",)]
    assert "no such table" in said(cloud, 0)[3]["content"]


async def test_empty_answer_of_the_board_goes_to_the_cloud(tmp_path: Path, cloud: ScriptedCloud) -> None:
    """Silence is no answer where somebody else can speak; where nobody may, it stays one."""
    cloud.will(clouds.text("Words."))
    async with cloudy(tmp_path, upstream("far", cloud)) as daemon:
        assert (await ask(daemon, "says nothing"))["route"]["reason"] == "local_failed"
        assert (await ask(daemon, "says nothing", privacy="device"))["output"] == ""


async def test_prompt_too_long_for_the_board_goes_straight_to_the_cloud(tmp_path: Path, cloud: ScriptedCloud) -> None:
    """By its length alone, before any model is asked."""
    async with cloudy(tmp_path, upstream("far", cloud)) as daemon:
        reply = await ask(daemon, "x" * 50_000)
        assert (reply["output"], reply["route"]["reason"]) == ("ok", "context")


async def test_request_for_the_cloud_goes_there_and_one_for_the_board_does_not(
    tmp_path: Path, cloud: ScriptedCloud
) -> None:
    """The wish of the request; insisting on the board means its own refusal, too."""
    async with cloudy(tmp_path, upstream("far", cloud)) as daemon:
        assert (await ask(daemon, "hello", route="cloud"))["route"]["reason"] == "cloud_asked"
        assert (await ask(daemon, "hello", route="local"))["route"]["reason"] == "local_asked"
        hard = await ask(daemon, "too hard", route="local")
        assert (hard["output"], hard["route"]["where"]) == ("said on the board", "local")
        error = await refused(daemon, "hello", route="cloud", privacy="device")
        assert error["code"] == "bad_request"
    assert len(cloud.chats) == 1


async def test_answer_in_a_shape_is_checked_and_asked_for_again(tmp_path: Path, cloud: ScriptedCloud) -> None:
    """What does not match the schema never reaches the client as an answer."""
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}, "required": ["n"]}
    cloud.will(clouds.text("n is five"), clouds.text('{"n": 0}'), clouds.text('{"n": 5}'))
    async with cloudy(tmp_path, upstream("far", cloud)) as daemon:
        reply = await ask(daemon, "too hard", response_schema=schema)
        assert (reply["status"], json.loads(reply["output"])) == ("done", {"n": 5})
    assert "not JSON" in said(cloud, 1)[-1]["content"]
    assert "less than the minimum" in said(cloud, 2)[-1]["content"]


async def test_shape_meant_for_the_cloud_is_tried_before_the_board_answers_in_it(
    tmp_path: Path, cloud: ScriptedCloud
) -> None:
    """A pattern that the engine's thread would compile for years is refused when the board has to answer after all."""
    cloud.otherwise = clouds.text('{"a": 1}')
    years = {"allOf": [{"type": "string", "pattern": f"(a|b)*{i}(x|y){{12}}"} for i in range(40)]}
    shape = {"type": "object", "properties": {"a": {"type": "integer"}, "b": years}}
    async with cloudy(tmp_path, upstream("far", cloud), route="cloud", when_offline="local") as daemon:
        there = await ask(daemon, "count", response_schema=shape)
        assert (there["status"], there["route"]["where"], there["output"]) == ("done", "cloud", '{"a": 1}')
        await cloud.stop()
        here = await ask(daemon, "count", response_schema=shape)
        assert (here["status"], here["route"]["where"]) == ("failed", "local")
        assert here["error"]["code"] == "bad_request"
        assert "its patterns take too long" in here["error"]["message"]


async def test_streamed_answer_of_the_cloud_comes_in_pieces(tmp_path: Path, cloud: ScriptedCloud) -> None:
    """As they come, with their offsets; together they are the output."""
    cloud.will(clouds.text("one two three four"))
    async with cloudy(tmp_path, upstream("far", cloud)) as daemon, Wired(daemon.socket) as client:
        _, reply = await client.call(4, "agent.ask", {"input": "too hard", "stream": True})
        pieces = [params for _, method, params in client.notifications if method == "agent.delta"]
    assert "".join(text for _, _, text in pieces) == reply["output"] == "one two three four"
    assert len(pieces) == 4
    assert [offset for _, offset, _ in pieces] == [0, 4, 8, 14]


async def test_thought_that_no_tag_opens_is_taken_back(tmp_path: Path, cloud: ScriptedCloud) -> None:
    """Its pieces were sent before the tag that closes it came: the answer begins anew, without them."""
    cloud.will(clouds.text("The user asks. </think> It is full."))
    async with cloudy(tmp_path, upstream("far", cloud)) as daemon, Wired(daemon.socket) as client:
        _, reply = await client.call(4, "agent.ask", {"input": "too hard", "stream": True})
        pieces = [params for _, method, params in client.notifications if method == "agent.delta"]
    whole = ""
    for _, offset, text in pieces:
        whole = whole[:offset] + text
    assert whole == reply["output"] == "It is full."


async def test_second_upstream_answers_where_the_first_cannot(tmp_path: Path, cloud: ScriptedCloud) -> None:
    """In the order of the file: one that lacks the model, one that refuses this request, one that is not there."""
    async with ScriptedCloud() as first:
        first.will(clouds.wrong_model(), clouds.status(400, "I do not like it"))
        async with cloudy(tmp_path, upstream("first", first), upstream("second", cloud)) as daemon:
            reply = await ask(daemon, "too hard")
            assert (reply["output"], reply["route"]["upstream"]) == ("ok", "second")
            assert len(first.chats) == 1
            await first.stop()
            assert (await ask(daemon, "too hard"))["route"]["upstream"] == "second"


async def test_request_that_every_upstream_refuses_fails_with_their_words(tmp_path: Path, cloud: ScriptedCloud) -> None:
    """It would be refused again, so it does not wait."""
    cloud.otherwise = clouds.status(400, "this content is not for me")
    async with cloudy(tmp_path, upstream("far", cloud)) as daemon:
        reply = await ask(daemon, "too hard")
        assert (reply["status"], reply["error"]["code"]) == ("failed", "model_unavailable")
        assert "this content is not for me" in reply["error"]["message"]


async def test_spent_budget_is_told_at_once_with_when_to_ask_again(tmp_path: Path, cloud: ScriptedCloud) -> None:
    """Through a restart; what the board can do it goes on doing."""
    cloud.otherwise = clouds.text("dear", usage={"prompt_tokens": 60, "completion_tokens": 50})
    daemon = cloudy(tmp_path, upstream("far", cloud, daily_token_budget=100))
    async with daemon:
        assert (await ask(daemon, "too hard"))["output"] == "dear"
        for _ in range(2):
            reply = await ask(daemon, "too hard")
            assert (reply["status"], reply["error"]["code"]) == ("refused", "over_budget")
            assert 0 < reply["error"]["retry_after_s"] <= 86400
            assert (await ask(daemon, "open the north valve"))["status"] == "done"
            await daemon.stop()
            await daemon.start()
    assert len(cloud.chats) == 1


async def test_spent_budget_leaves_the_board_where_the_agent_says_so(tmp_path: Path, cloud: ScriptedCloud) -> None:
    """A weaker answer, marked as one."""
    cloud.otherwise = clouds.text("dear", usage={"prompt_tokens": 60, "completion_tokens": 50})
    settings = upstream("far", cloud, daily_token_budget=100)
    async with cloudy(tmp_path, settings, when_offline="local") as daemon:
        await ask(daemon, "too hard")
        reply = await ask(daemon, "too hard")
        assert (reply["output"], reply["degraded"]) == ("said on the board", True)
        assert reply["route"]["reason"] == "over_budget"


FAULTS = {
    "401": (clouds.status(401, "bad key"), "no_link", "401"),
    "403": (clouds.status(403, "not yours"), "no_link", "403"),
    "404 wrong model": (clouds.wrong_model(), "no_link", "404"),
    "429 with Retry-After": (clouds.status(429, "slow down", retry_after="30"), "no_link", "429"),
    "500": (clouds.status(500), "no_link", "500"),
    "503": (clouds.status(503), "no_link", "503"),
    "no first byte": (clouds.stalled_header(), "no_link", "not a byte"),
    "stalled body": (clouds.stalled_body(), "no_link", "not a byte"),
    "cut body": (clouds.cut(), "no_link", "cut"),
    "invalid JSON": (clouds.invalid_json(), "no_link", "no JSON"),
    "login page": (clouds.html_page(), "no_link", "HTML page"),
    "redirect": (clouds.redirect(), "no_link", "302"),
    "400": (clouds.status(400, "too long"), "model_unavailable", "too long"),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_fault_of_the_cloud_is_a_typed_refusal_and_the_next_good_answer_counts(
    tmp_path: Path, cloud: ScriptedCloud, fault: str, stream: bool
) -> None:
    """Whatever the cloud does: a reply with its reason in time, nothing done, and the board goes on."""
    behaviour, code, words = FAULTS[fault]
    cloud.otherwise = behaviour
    async with cloudy(tmp_path, upstream("far", cloud), when_offline="fail") as daemon:
        reply = await ask(daemon, "too hard", stream=stream)
        assert reply["error"]["code"] == code
        assert reply["output"] is None
        async with Wired(daemon.socket) as client:
            _, status = await client.call(1, "status")
        assert words in f"{reply['error']['message']} {status['link']['far']['reason']}"
        assert (await ask(daemon, "open the north valve"))["status"] == "done"


async def test_upstream_that_asks_for_a_pause_is_left_alone_until_then(tmp_path: Path, cloud: ScriptedCloud) -> None:
    """429 with Retry-After: what needs it waits, and is answered right afterwards."""
    cloud.will(clouds.status(429, "slow down", retry_after="1"))
    async with cloudy(tmp_path, upstream("far", cloud)) as daemon:
        reply = await ask(daemon, "too hard")
        assert (reply["status"], reply["output"]) == ("done", "ok")
        assert reply["timing"]["total_ms"] >= 1000
    assert len(cloud.chats) == 2


async def test_same_question_has_the_same_idempotency_key(tmp_path: Path, cloud: ScriptedCloud) -> None:
    """Asked again after a fault it is known; another question has another key."""
    cloud.will(clouds.status(500), clouds.calls(("note", {"text": "x"})), clouds.text("noted"))
    async with cloudy(tmp_path, upstream("far", cloud)) as daemon:
        assert (await ask(daemon, "too hard"))["output"] == "noted"
    keys = [chat.headers["Idempotency-Key"] for chat in cloud.chats]
    assert keys[0] == keys[1] != keys[2]


async def test_private_turn_of_a_conversation_is_never_shown_to_the_cloud(tmp_path: Path, cloud: ScriptedCloud) -> None:
    """A later request of the same conversation may leave; what was private before stays."""
    async with cloudy(tmp_path, upstream("far", cloud)) as daemon:
        await ask(daemon, "my secret is 4711", conversation="k", privacy="device")
        await ask(daemon, "hello there", conversation="k")
        reply = await ask(daemon, "too hard", conversation="k")
        assert reply["route"]["where"] == "cloud"
    assert [m["content"] for m in said(cloud) if m["role"] == "user"] == ["hello there", "too hard"]
    assert "4711" not in json.dumps(cloud.chats[0].body)


async def test_explain_says_where_a_request_would_go_and_does_nothing(tmp_path: Path, cloud: ScriptedCloud) -> None:
    """The rules at once, and with `decide` what the board's model would choose."""
    async with cloudy(tmp_path, upstream("far", cloud), min_confidence=0.5) as daemon, Wired(daemon.socket) as client:

        async def explained(text: str, **fields: Any) -> dict[str, Any]:
            error, told = await client.call(1, "route.explain", {"input": text, **fields})
            assert error is None, error
            assert isinstance(told, dict)
            return told

        plain = await explained("open the north valve")
        assert (plain["go"], plain["reason"], plain["upstreams"][0]["name"]) == ("local", "local_ok", "far")
        asked = await explained("hello", route="cloud")
        assert (asked["go"], asked["upstream"]) == ("cloud", "far")
        unsure = await explained("unsure which valve", decide=True)
        assert (unsure["go"], unsure["reason"]) == ("cloud", "unsure")
        assert unsure["call"]["name"] == "set_valve"
        assert (unsure["call"]["confidence"], unsure["call"]["score"]) == (None, pytest.approx(0.3))
        private = await explained("unsure which valve", decide=True, privacy="device")
        assert (private["go"], private["reason"], private["error"]) == ("local", "unsure", None)
        assert daemon.rows("valve_commands") == []
        assert daemon.states() == []
    assert cloud.chats == []


async def test_status_shows_the_link(tmp_path: Path, cloud: ScriptedCloud) -> None:
    """Up after the first probe, down with its reason after the cloud went away."""
    async with cloudy(tmp_path, upstream("far", cloud), when_offline="fail") as daemon, Wired(daemon.socket) as client:

        async def link() -> dict[str, Any]:
            _, status = await client.call(1, "status")
            found: dict[str, Any] = status["link"]["far"]
            return found

        await cloud.until(lambda: cloud.probes > 0)
        await until(lambda: "upstream far answers" in daemon.text())
        assert (await link())["state"] == "up"
        await cloud.stop()
        await ask(daemon, "too hard")
        down = await link()
        assert down["state"] == "down"
        assert "127.0.0.1" in down["reason"]
