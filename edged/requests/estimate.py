"""How long a request that waits will take. Pure.

What requests of an agent needed of late is kept as means, in the units that do not depend on how busy the board is:
tokens of prompts, steps of generations, seconds of everything else. The model's measured speed turns them into time,
and the places in which requests are worked on are played through in the order in which they are taken.

Nothing is guessed: where an agent has not been answered yet, there is no estimate for it, nor for who waits behind it.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from edged.types import Need, Speed

# Weight of the newest request of an agent in its means: about the last ten count. Requests of one agent differ by what
# they ask, so fewer would follow chance; more would still tell of the prompt before a reload.
NEWEST = 0.2
# A request that takes longer than expected is taken to need this much of its expected time still: nothing more is
# known of it, and "at any moment" would be wrong again and again.
OVERTIME = 0.2


class Needs:
    """What requests need, by agent."""

    def __init__(self) -> None:
        self._means: dict[str, Need] = {}

    def of(self, agent: str) -> Need | None:
        """The mean of late; None: it has not answered yet."""
        return self._means.get(agent)

    def learn(self, agent: str, need: Need) -> None:
        """A request has been answered."""
        mean = self._means.get(agent, need)
        self._means[agent] = Need(
            *(_towards(getattr(mean, name), getattr(need, name)) for name in Need.__struct_fields__)
        )


def work_s(need: Need | None, speed: Speed | None, beside: int) -> float | None:
    """Seconds of work on a request.

    Args:
        speed: of the agent's model; None: not measured, then the time such requests took counts as it is.
        beside: how many are worked on at once, this one counted. Their prompts are computed one after the other, and
            each generation pauses meanwhile; their steps are one.
    """
    if need is None:
        return None
    if speed is None:
        return need.work_s
    beside = max(1, beside)
    return beside * need.prompt_tokens / speed.prefill_tokens_s + need.steps * speed.step_s(beside) + need.other_s


def left_s(work: float | None, elapsed_s: float) -> float | None:
    """Seconds that a running request still needs."""
    return None if work is None else max(work - elapsed_s, OVERTIME * work)


def eta_s(
    mine: float | None, running: Sequence[float | None], before: Sequence[float | None], places: int
) -> float | None:
    """Seconds until a waiting request is answered; None where that cannot be told.

    Args:
        mine: seconds of work on it.
        running: seconds the running ones have left.
        before: seconds of work on each that is taken before it, in that order.
        places: how many are worked on at once.
    """
    free_at = sorted(left for left in running if left is not None)
    ahead = [work for work in before if work is not None]
    if mine is None or len(free_at) < len(running) or len(ahead) < len(before):
        return None
    free_at = [0.0] * (places - len(free_at)) + free_at[-places:]
    for work in ahead:
        heapq.heapreplace(free_at, free_at[0] + work)
    return free_at[0] + mine


def _towards(mean: float, value: float) -> float:
    return mean + NEWEST * (value - mean)
