"""All upstreams: which of them can be used now, what they have cost, and a completion from one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping

from edged.config import Upstream
from edged.errors import NoLink
from edged.interfaces import Ledger
from edged.router import UpstreamFacts
from edged.types import JSON, Chat, ChatAnswer

OnText = Callable[[str], None]


class Cloud:
    """Owns the upstreams' link states. `run` is its task.

    Args:
        ledger: keeps what was spent, through restarts.
        tell: gets (event name, data): link_up, link_down.
        changed: called whenever an upstream that could not be used can be now, or has room again.
    """

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        ledger: Ledger,
        *,
        tell: Callable[[str, dict[str, JSON]], None] = lambda name, data: None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._upstreams, self._ledger, self._tell, self._changed = upstreams, ledger, tell, changed

    async def run(self) -> None:
        """Probe what is down or unknown, and now and then what is up; until cancelled."""
        await asyncio.get_running_loop().create_future()

    async def stop(self) -> None:
        """Close the connections."""

    def facts(self, names: Collection[str]) -> tuple[UpstreamFacts, ...]:
        """What is known of these upstreams now, in the given order."""
        return tuple(UpstreamFacts(name, up=False) for name in names)

    def room(self, names: Collection[str]) -> int:
        """How many more requests these upstreams would take now."""
        return 0

    def retry_after_s(self, names: Collection[str]) -> float | None:
        """When one of these upstreams may be usable again, in seconds; None where that cannot be told."""
        return None

    async def chat(self, name: str, chat: Chat, on_text: OnText | None = None) -> ChatAnswer:
        """One completion. The caller has just seen room in `facts`.

        Args:
            on_text: gets the pieces of the text as they come.

        Raises:
            NoLink: the upstream cannot be used now, for whatever reason; its state knows already.
            OverBudget: today's tokens are spent.
            ModelUnavailable: it refuses this request, and would again.
        """
        raise NoLink(f"upstream {name!r} is not built")

    def status(self) -> dict[str, JSON]:
        """The links as `edged status` shows them, by upstream."""
        return {}
