"""PUBACKs leave in receive order, on their own connection only."""

from __future__ import annotations

import itertools

import pytest

from edged.transport.mqtt.acks import Acks


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_acks_leave_in_receive_order_whatever_order_the_work_ends_in(order: tuple[int, ...]) -> None:
    """And each as early as that allows."""
    sent: list[int] = []
    acks = Acks(sent.append)
    receipts = [acks.expect(mid) for mid in (7, 3, 9, 4)]
    for index in order:
        acks.settle(receipts[index])
        settled = [receipt.settled for receipt in receipts]
        assert sent == [7, 3, 9, 4][: ([*settled, False]).index(False)]
    assert sent == [7, 3, 9, 4]
    assert len(acks) == 0


def test_nothing_is_sent_once_the_connection_is_gone() -> None:
    """The packet id may belong to another packet on the next one."""
    sent: list[int] = []
    acks = Acks(sent.append)
    first, second = acks.expect(1), acks.expect(2)
    acks.settle(second)
    acks.drop()
    acks.settle(first)
    assert sent == []


def test_packet_id_can_be_used_again_after_its_ack() -> None:
    """Brokers do it at once."""
    sent: list[int] = []
    acks = Acks(sent.append)
    acks.settle(acks.expect(1))
    acks.settle(acks.expect(1))
    assert sent == [1, 1]
