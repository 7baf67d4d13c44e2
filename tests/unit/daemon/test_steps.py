"""A list of steps: started in order, stopped in reverse, whatever one of them does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from edged.daemon.steps import Step, Steps


class Log:
    """What the steps did."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def step(self, name: str, *, start: Exception | None = None, stop: Exception | None = None) -> Step:
        """One that says what it does, and raises what it is told to."""
        return Step(name=name, start=self._act(f"+{name}", start), stop=self._act(f"-{name}", stop))

    def _act(self, said: str, error: Exception | None) -> Callable[[], Awaitable[None]]:
        async def act() -> None:
            self.done.append(said)
            if error is not None:
                raise error

        return act


async def test_what_is_started_last_is_stopped_first() -> None:
    """And once only."""
    log = Log()
    steps = Steps([log.step("a"), log.step("b")])
    await steps.start()
    await steps.stop()
    await steps.stop()
    assert log.done == ["+a", "+b", "-b", "-a"]
    assert steps.failed == steps.hung == []


async def test_step_that_fails_at_the_start_stops_those_before_it() -> None:
    """And what there is of itself; those behind it were never started."""
    log = Log()
    steps = Steps([log.step("a"), log.step("b", start=ValueError("b")), log.step("c")])
    with pytest.raises(ValueError, match="b"):
        await steps.start()
    await steps.stop()
    assert log.done == ["+a", "+b", "-b", "-a"]


async def test_step_that_fails_at_the_stop_keeps_no_other_from_stopping(caplog: pytest.LogCaptureFixture) -> None:
    """It is named."""
    log = Log()
    steps = Steps([log.step("a"), log.step("b", stop=ValueError("stuck")), log.step("c")])
    await steps.start()
    await steps.stop()
    assert log.done == ["+a", "+b", "+c", "-c", "-b", "-a"]
    assert (steps.failed, steps.hung) == (["b"], [])
    assert [record.step for record in caplog.records] == ["b"]  # type: ignore[attr-defined]


async def test_step_that_hangs_is_left_behind() -> None:
    """After as long as it was given, also where it does not even let itself be cancelled."""
    log, given_up = Log(), asyncio.Event()

    async def hang() -> None:
        while not given_up.is_set():
            try:
                await given_up.wait()
            except asyncio.CancelledError:
                continue

    steps = Steps([log.step("a"), Step(name="b", stop=hang, within_s=0.05), log.step("c")])
    await steps.start()
    await steps.stop()
    assert log.done == ["+a", "+c", "-c", "-a"]
    assert steps.failed == steps.hung == ["b"]
    given_up.set()


async def test_task_of_a_step_is_cancelled_before_its_stop_and_its_death_is_told() -> None:
    """A task that is watched does not end by itself: whatever it ends of is the daemon's end."""
    log = Log()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            log.done.append("ended")

    async def die() -> None:
        raise KeyError("lost")

    steps = Steps([Step(name="a", run=work, stop=log._act("-a", None)), Step(name="b", run=die)])
    await steps.start()
    with pytest.raises(KeyError, match="lost"):
        await steps.death()
    await steps.stop()
    assert log.done == ["ended", "-a"]


@pytest.mark.parametrize("cancelled", [True, False])
async def test_task_that_just_ends_has_died_too(cancelled: bool) -> None:
    """As of a bug, or because something cancelled it."""

    async def work() -> None:
        if cancelled:
            raise asyncio.CancelledError

    steps = Steps([Step(name="a", run=work)])
    await steps.start()
    with pytest.raises(RuntimeError, match="without being asked to"):
        await steps.death()
    await steps.stop()
