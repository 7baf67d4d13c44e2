"""What requests cost the medium in edged's own file: fsyncs and bytes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from statistics import median

import pytest

from edged.store import outbox
from edged.store.database import Written
from edged.types import Address, Ask, Caller
from edged.wire import request_from_map
from tests.integration.test_pipeline import House
from tests.support.broker import until

KIB = 1024
CHECKPOINT = 3  # KiB of a request's share: its pages are copied into the file once
CALLER = Caller("a/topic", "mqtt", frozenset({"house"}))


async def ask(house: House, text: str) -> None:
    """A request over MQTT, until its delivery is written down."""
    request = request_from_map({"input": text, "agent": "house", "id": text}, agent=None)
    address = Address("a/reply/topic", text.encode())
    accepted = await house.pipeline.accept(Ask(request=request, caller=CALLER, address=address))
    await house.pipeline.result(accepted.rid)


async def cost(house: House, *texts: str) -> Written:
    """Of all these at once."""
    before, sent = house.store.written, len(house.mailbox.got)
    await asyncio.gather(*(ask(house, text) for text in texts))
    await until(lambda: len(house.mailbox.got) == sent + len(texts))
    while await house.store.read(lambda c: outbox.waiting(c, ("mqtt",))):
        await asyncio.sleep(0.01)
    after = house.store.written
    return Written(after.syncs - before.syncs, after.bytes - before.bytes)


@pytest.mark.parametrize(("text", "syncs", "size"), [("hello", 2, 16), ("write", 2, 18)], ids=["answer", "SQL write"])
async def test_request_alone_costs_the_medium_little(text: str, syncs: int, size: int, tmp_path: Path) -> None:
    """It is taken in and it ends; what a tool writes is synced in the tool's own database. Checkpoints are in it, and a
    commit for each delivery, which under load has none of its own."""
    async with House(tmp_path) as house:
        await cost(house, "the first one comes behind the tables")
        begun = house.store.written
        written = [await cost(house, f"{text} {number}") for number in range(300)]
        ended = house.store.written
        assert sorted(one.syncs for one in written)[-10] <= syncs  # a checkpoint has two more
        assert (ended.syncs - begun.syncs) / len(written) <= syncs + 0.1
        assert median(one.bytes for one in written) <= size * KIB  # without a checkpoint
        assert (ended.bytes - begun.bytes) / len(written) <= (size + CHECKPOINT) * KIB


async def test_requests_at_once_share_what_they_cost(tmp_path: Path) -> None:
    """Less than a fifth of an fsync each."""
    async with House(tmp_path, queue={"max_waiting": 1000}) as house:
        written = await cost(house, *(f"hello {number}" for number in range(200)))
        assert written.syncs / 200 < 0.2
        assert written.bytes / 200 <= 16 * KIB
