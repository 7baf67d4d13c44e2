"""Models and agents as Foundry Local's catalogue has them. Pure.

The SDK (0.5.1) wants every field; what edged does not know of a model is empty. A name is id and alias in one, without
a version: edged has one of each.
"""

from __future__ import annotations

from edged.api.library import Title
from edged.types import JSON

MIB = 2**20
VERSION = "1"
# Engines choose a provider themselves; the SDK takes the name of any.
RUNTIME = {"deviceType": "CPU", "executionProvider": "CPUExecutionProvider"}


def entry(title: Title) -> dict[str, JSON]:
    """One entry of the list."""
    card = title.card
    embeds = card.facts.embeds and not title.is_agent
    return {
        "name": title.name,
        "displayName": title.name,
        "alias": title.name,
        "modelType": "agent" if title.is_agent else card.facts.format.upper() or "server",
        "providerType": "edged",
        "publisher": "edged",
        "uri": f"edged://{title.name}",
        "version": VERSION,
        "promptTemplate": None,
        "task": "embeddings" if embeds else "chat-completion",
        "runtime": RUNTIME,
        "fileSizeMb": round(card.bytes / MIB),
        "modelSettings": {"parameters": []},
        "supportsToolCalling": not embeds and not title.is_agent,  # an agent has its own
        "license": card.licence,
        "licenseDescription": "",
        "parentModelUri": "",
        "maxOutputTokens": card.context,
    }


def percent(done: int, total: int | None) -> float | None:
    """How far a file is; None where nobody knows its size."""
    return None if not total else min(100.0, 100.0 * done / total)
