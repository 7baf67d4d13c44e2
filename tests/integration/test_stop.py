"""Stop means stop: a request that is cancelled, late or abandoned ends within a step of the real model, wherever it is,
and the memory it had is there for the next one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from edged.client import AsyncClient
from edged.engines.llama.sizes import BATCH_TOKENS
from tests.support.broker import Mosquitto
from tests.support.daemon import BASE, START_S, Customer, Wired
from tests.support.real_model import ENDLESS, Board, real
from tests.support.timing import assert_adds_up

pytestmark = [pytest.mark.model, pytest.mark.broker, pytest.mark.asyncio(loop_scope="module")]

ENDLESS_ASK: dict[str, Any] = {"input": "Write.", "agent": "talk", "response_schema": ENDLESS, "stream": True}
WHOLE_STEPS = 80  # that the answer to it takes, one token each
MOST = 200  # tokens with which two requests leave no room for a third
SOON_STEPS = 60  # nothing that was stopped after its first words has come so far


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mosquitto]:
    """A broker for all tests of this file."""
    async with Mosquitto(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def board(tmp_path_factory: pytest.TempPathFactory, broker: Mosquitto) -> AsyncIterator[Board]:
    """A daemon for all tests of this file; its agents were asked once, so their prefixes are there."""
    daemon = real(tmp_path_factory.mktemp("daemon"), broker=broker.port)
    async with daemon, AsyncClient(daemon.socket) as client:
        for agent in ("talk", "reader"):
            await client.ask("Hi.", agent=agent, max_tokens=1)
        yield Board(daemon, client)
        await client.close()
        assert await daemon.stop() == 0
        assert "Traceback" not in daemon.text()


def http(board: Board) -> aiohttp.ClientSession:
    """A client on the HTTP socket."""
    path = board.daemon.folder / "run" / "http.sock"
    return aiohttp.ClientSession("http://edged", connector=aiohttp.UnixConnector(str(path)))


# -- clients: each asks something without an end, and its block begins when the first words have come ------------------


@asynccontextmanager
async def over_unix(board: Board, **fields: Any) -> AsyncIterator[None]:
    """The connection is closed behind the block."""
    async with Wired(board.daemon.socket) as client:
        client.send([0, 1, "agent.ask", [{**ENDLESS_ASK, **fields}]])
        async with asyncio.timeout(START_S):
            while not client.notifications:
                assert await client.read()
        yield


@asynccontextmanager
async def over_http(board: Board, **fields: Any) -> AsyncIterator[None]:
    """Server-sent events; the connection is cut behind the block."""
    body = {name: value for name, value in {**ENDLESS_ASK, **fields}.items() if name != "agent"}
    async with http(board) as session, session.post("/v1/agents/talk/requests", json=body) as response:
        assert response.status == 200
        await response.content.readuntil(b"event: delta")
        yield
        response.close()


@asynccontextmanager
async def over_openai(board: Board, **fields: Any) -> AsyncIterator[None]:
    """The OpenAI API, with an agent as the model."""
    shape = {"type": "json_schema", "json_schema": {"name": "text", "schema": ENDLESS, "strict": True}}
    messages = [{"role": "user", "content": "Write."}]
    body = {"model": "talk", "messages": messages, "response_format": shape, "stream": True, **fields}
    async with http(board) as session, session.post("/v1/chat/completions", json=body) as response:
        assert response.status == 200
        await response.content.readuntil(b'"content":"')
        yield
        response.close()


Client = Callable[..., AbstractAsyncContextManager[None]]


async def check_freed(board: Board, before: dict[str, Any], *, most_steps: int) -> None:
    """The engine is as it was, and did little meanwhile."""
    after = await board.until(**{name: before[name] for name in ("running", "waiting", "cells_used")})
    assert after["decode_steps"] - before["decode_steps"] < most_steps


# -- cancel ------------------------------------------------------------------------------------------------------------


async def test_cancel_over_the_socket_ends_the_sequence_at_once(board: Board) -> None:
    """When the cancel is answered the engine is at rest already: nothing is waited for."""
    before = await board.engine()
    async with over_unix(board, id="u"):
        assert (await board.engine())["running"] == 1
        reply = await board.client.call("request.cancel", {"name": "u"})
        after = await board.engine()
    assert (reply["status"], reply["error"]["code"]) == ("cancelled", "cancelled")
    assert_adds_up(reply["timing"])
    assert reply["timing"]["decode_ms"] > 0
    assert [after[name] for name in ("running", "waiting")] == [0, 0]
    await check_freed(board, before, most_steps=SOON_STEPS)


async def test_cancel_over_http_ends_the_sequence_at_once(board: Board) -> None:
    """DELETE; whoever listens to the stream is told."""
    before = await board.engine()
    body = {**ENDLESS_ASK, "id": "h"}
    del body["agent"]
    async with http(board) as session, session.post("/v1/agents/talk/requests", json=body) as response:
        await response.content.readuntil(b"event: delta")
        async with session.delete("/v1/requests/h") as deleted:
            assert (deleted.status, (await deleted.json())["status"]) == (200, "cancelled")
        after = await board.engine()
        assert b'"status":"cancelled"' in await response.content.read()
    assert [after[name] for name in ("running", "waiting")] == [0, 0]
    await check_freed(board, before, most_steps=SOON_STEPS)


async def test_cancel_over_mqtt_ends_the_sequence(board: Board, broker: Mosquitto) -> None:
    """The cancel topic."""
    before = await board.engine()
    async with Customer(broker.port, client_id="stopper") as customer:
        await customer.online()
        await customer.subscribe("stopper/reply")
        await customer.subscribe("stopper/reply/delta")
        body = {name: value for name, value in ENDLESS_ASK.items() if name != "agent"}
        await customer.publish(
            f"{BASE}/agents/talk/request", json.dumps({**body, "id": "m"}), ResponseTopic="stopper/reply"
        )
        await customer.next(lambda message: message.topic == "stopper/reply/delta")
        await customer.publish(f"{BASE}/requests/m/cancel", "")
        reply = json.loads((await customer.next(lambda message: message.topic == "stopper/reply")).payload)
        assert (reply["id"], reply["status"]) == ("m", "cancelled")
    await check_freed(board, before, most_steps=SOON_STEPS)


async def test_deadline_ends_the_sequence_amid_its_words(board: Board) -> None:
    """Nobody has to ask for it."""
    before = await board.engine()
    reply = await board.client.ask(**ENDLESS_ASK, deadline_s=0.2)
    after = await board.engine()
    assert (reply["status"], reply["error"]["code"]) == ("expired", "expired")
    assert [after[name] for name in ("running", "waiting")] == [0, 0]
    await check_freed(board, before, most_steps=WHOLE_STEPS)


# -- who goes away -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", [over_unix, over_http, over_openai])
async def test_client_that_goes_away_ends_the_sequence_of_a_request_without_an_id(board: Board, client: Client) -> None:
    """Nobody could ever get its answer."""
    before = await board.engine()
    gone = len(await board.client.call("requests.list", {"state": "cancelled"}))
    async with client(board):
        assert (await board.engine())["running"] == 1
    await check_freed(board, before, most_steps=SOON_STEPS)
    async with asyncio.timeout(START_S):  # the engine is free before the store is written
        while len(await board.client.call("requests.list", {"state": "cancelled"})) == gone:
            pass


@pytest.mark.parametrize("client", [over_unix, over_http])
async def test_client_that_goes_away_leaves_a_request_with_an_id_going_on(board: Board, client: Client) -> None:
    """It is answered, and whoever asks for it by its id gets the answer."""
    id = f"on-{client.__name__}"
    async with client(board, id=id):
        pass
    async with AsyncClient(board.daemon.socket) as other:
        reply = await other.ask(**ENDLESS_ASK, id=id)
    assert (reply["status"], reply["usage"]["completion_tokens"]) == ("failed", WHOLE_STEPS)
    assert "did not end within" in reply["error"]["message"]


# -- wherever it is ----------------------------------------------------------------------------------------------------

PAGE = "word " * 1900
PAGE_STEPS = 1900 // BATCH_TOKENS  # of its prompt, at the least


async def test_cancel_while_the_prompt_is_computed_computes_no_more_of_it(board: Board) -> None:
    """A chunk of it is a step."""
    before = await board.engine("long")
    async with AsyncClient(board.daemon.socket) as other:
        asked = asyncio.create_task(other.ask(PAGE, agent="reader", id="page"))
        await board.until("long", running=1)
        reply = await board.client.call("request.cancel", {"name": "page"})
        after = await board.engine("long")
        assert (reply["status"], (await asked)["status"]) == ("cancelled", "cancelled")
    assert_adds_up(reply["timing"])
    assert reply["timing"]["first_token_ms"] == 0
    assert [after[name] - before[name] for name in ("running", "waiting", "cells_used")] == [0, 0, 0]
    assert after["decode_steps"] - before["decode_steps"] < PAGE_STEPS
    assert (await board.client.ask("Hi.", agent="reader", max_tokens=1))["status"] == "done"


async def test_cancel_while_it_waits_in_the_engine_leaves_the_others_alone(board: Board) -> None:
    """It had nothing yet, and takes nothing."""
    before = await board.engine()
    async with over_unix(board, id="one", max_tokens=MOST), over_unix(board, id="two", max_tokens=MOST):
        async with AsyncClient(board.daemon.socket) as other:
            asked = asyncio.create_task(other.ask(**ENDLESS_ASK, id="three", max_tokens=MOST))
            async with asyncio.timeout(START_S):
                while (now := await board.engine())["running"] + now["waiting"] < 3:
                    pass
            reply = await board.client.call("request.cancel", {"name": "three"})
            after = await board.engine()
            assert (reply["status"], (await asked)["status"]) == ("cancelled", "cancelled")
        assert after["running"] + after["waiting"] == 2
        for name in ("one", "two"):
            assert (await board.client.call("request.get", {"name": name}))["status"] == "running"
            await board.client.call("request.cancel", {"name": name})
    await check_freed(board, before, most_steps=2 * MOST)


async def test_memory_of_what_was_stopped_is_all_there_for_the_next(board: Board) -> None:
    """More of it than the model has, were it lost; then requests that need all of it at once."""
    before = await board.engine()
    for number in range(3):
        async with over_unix(board, id=f"lost-{number}", max_tokens=MOST):
            await board.client.call("request.cancel", {"name": f"lost-{number}"})
        async with over_http(board, max_tokens=MOST):
            pass
        await board.until(running=0)
    await check_freed(board, before, most_steps=6 * SOON_STEPS)
    await board.fill()


async def test_cancel_while_the_model_is_loaded_computes_nothing_and_leaves_a_usable_model(board: Board) -> None:
    """The load goes on: whoever comes next has it."""
    async with AsyncClient(board.daemon.socket) as other, asyncio.timeout(START_S):
        while (reply := await _cancelled_amid_its_load(board, other)) is None:
            pass
    assert reply["status"] == "cancelled"
    assert_adds_up(reply["timing"])
    await board.client.call("models.load", {"name": "small"})
    assert (await board.client.call("models.list"))["small"]["in_use"] == 0
    engine = await board.engine()
    assert [engine[name] for name in ("running", "waiting", "cells_used", "prompt_tokens")] == [0, 0, 0, 0]
    await board.fill()


async def _cancelled_amid_its_load(board: Board, other: AsyncClient) -> dict[str, Any] | None:
    """Its reply; None: the model, which takes a third of a second, was loaded before it could be seen."""
    assert (await board.client.call("models.unload", {"name": "small"}))["unloaded"]
    asked = asyncio.create_task(other.ask("Hi.", agent="talk"))
    state = ""
    while state not in ("loading", "ready"):
        state = (await board.client.call("models.list"))["small"]["state"]
    [request] = await board.client.call("requests.list", {"limit": 1})
    reply: dict[str, Any] = await board.client.call("request.cancel", {"name": request["rid"]})
    await asked
    return reply if state == "loading" else None


# -- time --------------------------------------------------------------------------------------------------------------


async def test_times_of_a_real_answer_add_up_and_hardly_any_is_unaccounted(board: Board) -> None:
    """Its prompt and its words are what took the time."""
    reply = await board.client.ask("How do you do? Tell me all about it.", agent="talk", max_tokens=30)
    timing = reply["timing"]
    assert reply["status"] == "done"
    assert_adds_up(timing)
    assert timing["load_ms"] < 1
    assert timing["prefill_ms"] > 0
    assert timing["decode_ms"] > timing["prefill_ms"] / 2
    assert timing["other_ms"] < 0.1 * timing["total_ms"] + 20  # of a busy machine; else it is some two
