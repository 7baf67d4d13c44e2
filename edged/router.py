"""Where a request is answered. Pure: (what is asked, what the agent allows) -> the reason of a route, or a refusal."""

from __future__ import annotations

from enum import StrEnum

from edged.errors import BadRequest
from edged.types import Preference


class Reason(StrEnum):
    """Why a route was taken; the same word in the reply, the log and the metrics."""

    LOCAL_OK = "local_ok"  #: nothing speaks against answering on the board
    LOCAL_ASKED = "local_asked"  #: the request or its agent says so


def decide(asked: Preference | None, configured: Preference) -> Reason:
    """The reason for answering here; what the request asks goes before what its agent is configured to.

    Raises:
        BadRequest: the request insists on the cloud and none is configured.
    """
    wanted = asked or configured
    if wanted is Preference.CLOUD:
        raise BadRequest("route: 'cloud' is not available yet, no upstream can be configured; use auto or local")
    return Reason.LOCAL_ASKED if wanted is Preference.LOCAL else Reason.LOCAL_OK
