"""Parameters that a request names and that have no effect: the response names them in a header, the log once for each
client, and they are counted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from aiohttp import web

from edged.transport.http.core import headers

log = logging.getLogger("edged.http")

NAMED = web.RequestKey("ignored", str)  # of a request: the value of its response's header

# Pairs of client and parameter that the log has named; beyond them only the header does. A client that makes up names
# fills neither the memory nor the log.
MAX_NOTED = 1000


class Ignored:
    """What the clients of one surface send in vain.

    Args:
        count: gets how many more there are.
    """

    def __init__(self, count: Callable[[int], None]) -> None:
        self._count = count
        self._noted: set[tuple[str, str]] = set()

    def note(self, request: web.Request, client: str, names: Collection[str]) -> None:
        """These have no effect. Names that the client made up are `headers.safe`."""
        if not names:
            return
        request[NAMED] = headers.names(names)
        self._count(len(names))
        for name in names:
            if (client, name) in self._noted or len(self._noted) >= MAX_NOTED:
                continue
            self._noted.add((client, name))
            log.info("%s sends %s, which has no effect", client, name, extra={"event": "parameter_ignored"})
