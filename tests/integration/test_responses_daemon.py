"""Responses at the real daemon: over a restart and a kill, of two keys, with acts that are done once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai

from tests.support.broker import free_port
from tests.support.daemon import SCRIPT, Daemon, entry, note

MINE, OTHER = "sk-mine-0123456789abcdef", "sk-other-0123456789abcdef"
START_S = 20.0
MORE = "".join(
    (
        entry("what did I say", text="You said it."),
        entry("slow note", note("slow"), text="one two three four", token_s=0.2),
    )
)


@asynccontextmanager
async def board(folder: Path) -> AsyncIterator[tuple[Daemon, Any]]:
    """A daemon with two keys, and what makes a client of it."""
    port = free_port()
    (folder / "keys").write_text(f"mine:{MINE}\nother:{OTHER}\n")
    listen = f'[http]\nlisten = ["unix:http.sock", "127.0.0.1:{port}"]\napi_keys_file = "{folder}/keys"\n'
    made: list[openai.AsyncOpenAI] = []

    def client(key: str = MINE) -> openai.AsyncOpenAI:
        made.append(openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0, timeout=60))
        return made[-1]

    async with Daemon(folder, config=listen, script=MORE + SCRIPT) as daemon:
        yield daemon, client
        for each in made:
            await each.close()


async def until_done(client: openai.AsyncOpenAI, id: str) -> Any:
    async with asyncio.timeout(START_S):
        while (found := await client.responses.retrieve(id)).status in ("queued", "in_progress"):
            await asyncio.sleep(0.05)
    return found


async def test_responses_of_agents_and_models_are_known_after_a_restart_and_to_their_key_only(tmp_path: Path) -> None:
    """Dialogues go on from both; what was not to be kept is not there."""
    async with board(tmp_path) as (daemon, client):
        mine = client()
        acted = await mine.responses.create(model="house", input="open the north valve")
        assert (acted.status, acted.output_text) == ("completed", "Valve north is now open.")
        second = await mine.responses.create(model="house", input="what did I say?", previous_response_id=acted.id)
        plain = await mine.responses.create(model="small", input="tell a story", previous_response_id=second.id)
        unkept = await mine.responses.create(model="house", input="tell a story", store=False)
        assert await daemon.stop() == 0
        await daemon.start()
        for made in (acted, second, plain):
            assert (await mine.responses.retrieve(made.id)).output_text == made.output_text
        third = await mine.responses.create(model="house", input="what did I say?", previous_response_id=plain.id)
        assert third.output_text == "You said it."
        assert daemon.rows("valve_commands") == [("north", "open")]
        for id in (unkept.id, "resp_x"):
            try:
                await mine.responses.create(model="house", input="x", previous_response_id=id)
            except openai.BadRequestError as error:
                assert error.code == "previous_response_not_found"
            else:
                raise AssertionError(id)
        other = client(OTHER)
        for use in (other.responses.retrieve, other.responses.delete, other.responses.cancel):
            try:
                await use(acted.id)
            except openai.NotFoundError:
                continue
            raise AssertionError(use)


async def test_agents_response_is_finished_after_a_kill_and_its_act_is_done_once(tmp_path: Path) -> None:
    """Under the id that its stream began with, and later ones go on from it."""
    async with board(tmp_path) as (daemon, client):
        mine = client()
        stream = await mine.responses.create(model="house", input="slow note", stream=True)
        first = await anext(stream)
        assert first.type == "response.created"
        assert daemon.rows("diary") == [("slow",)]
        await daemon.kill()
        await daemon.start()
        found = await until_done(mine, first.response.id)
        assert (found.status, found.output_text) == ("completed", "one two three four")
        assert daemon.rows("diary") == [("slow",)]
        again = await mine.responses.create(
            model="house", input="what did I say?", previous_response_id=first.response.id
        )
        assert again.output_text == "You said it."


async def test_same_key_is_the_same_response_also_when_it_was_deleted(tmp_path: Path) -> None:
    """Without a key what was asked goes with the response."""
    async with board(tmp_path) as (daemon, client):
        mine = client()
        key = {"Idempotency-Key": "once"}
        made = [await mine.responses.create(model="house", input="note 1;", extra_headers=key) for _ in range(2)]
        assert made[0].id == made[1].id
        await mine.responses.delete(made[0].id)
        await mine.responses.create(model="house", input="note 1;", extra_headers=key)
        assert daemon.rows("diary") == [("n1",)]
        free = await mine.responses.create(model="house", input="note 2;")
        assert len(daemon.states()) == 2
        await mine.responses.delete(free.id)
        assert len(daemon.states()) == 1


async def test_agents_response_is_cancelled_and_says_so(tmp_path: Path) -> None:
    """Also after a restart."""
    async with board(tmp_path) as (daemon, client):
        mine = client()
        stream = await mine.responses.create(model="house", input="never ends", stream=True)
        first = await anext(stream)
        assert first.type == "response.created"
        assert (await mine.responses.cancel(first.response.id)).status == "cancelled"
        assert [event async for event in stream][-1].type == "response.failed"
        await daemon.stop()
        await daemon.start()
        assert (await mine.responses.retrieve(first.response.id)).status == "cancelled"
