"""Who answers: an ordered chain of minds. Each of them answers, passes on, or declines with a reason, for which the
router decides again. A new mind is a file here and a line in the list."""

from __future__ import annotations

from edged.agent.minds.base import Mind
from edged.agent.minds.cloud import CloudMind
from edged.agent.minds.local import LocalMind
from edged.agent.minds.server import ServerMind

MINDS: list[type[Mind]] = [LocalMind, ServerMind, CloudMind]
