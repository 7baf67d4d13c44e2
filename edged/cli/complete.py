"""Shell completion: names the running daemon knows. Where none answers at once there is nothing to offer."""

from __future__ import annotations

import contextlib
from typing import Any

import typer

from edged.cli.connection import socket_path
from edged.client import Client, EdgedCallError
from edged.errors import ConfigError

PATIENCE_S = 0.3  # somebody waits with a finger on the Tab key
OFFERED = 20  # requests, newest first: more do not help to choose
ROUTES = ("auto", "local", "cloud")
PRIVACIES = ("device", "any")

Offers = list[tuple[str, str]]


def agents(ctx: typer.Context, incomplete: str) -> Offers:
    """Agents of the daemon."""
    known = (_ask(ctx, "status") or {}).get("agents", {})
    return _beginning(incomplete, [(name, f"model {agent['model']}") for name, agent in known.items()])


def tools(ctx: typer.Context, incomplete: str) -> Offers:
    """Tools of the daemon."""
    return _beginning(incomplete, [(tool["name"], tool["description"]) for tool in _ask(ctx, "tools.list") or ()])


def requests(ctx: typer.Context, incomplete: str) -> Offers:
    """The newest requests, by rid and by their client's id."""
    offers = []
    for row in _ask(ctx, "requests.list", {"limit": OFFERED}) or ():
        about = f"{row['state']}: {row['input'][:40]}"
        offers += [(name, about) for name in (row["id"], row["rid"]) if name]
    return _beginning(incomplete, offers)


def models(incomplete: str) -> Offers:
    """Models of the catalog: those can be pulled whether a daemon runs or not."""
    from edged.models import catalog

    with contextlib.suppress(ConfigError):
        return _beginning(incomplete, [(entry.name, entry.description) for entry in catalog.catalog().values()])
    return []


def aliases(ctx: typer.Context, incomplete: str) -> Offers:
    """Models of the daemon."""
    return _beginning(incomplete, [(name, str(m["state"])) for name, m in (_ask(ctx, "models.list") or {}).items()])


def routes(incomplete: str) -> Offers:
    """The routes a request may ask for."""
    return _beginning(incomplete, [(name, "") for name in ROUTES])


def privacies(incomplete: str) -> Offers:
    """The privacies a request may ask for."""
    return _beginning(incomplete, [(name, "") for name in PRIVACIES])


def states(ctx: typer.Context, incomplete: str) -> Offers:
    """States of requests."""
    from edged.store.lifecycle import State

    return _beginning(incomplete, [(state.value, "") for state in State])


def _beginning(incomplete: str, offers: Offers) -> Offers:
    return [(name, about) for name, about in offers if name.startswith(incomplete)]


def _ask(ctx: typer.Context, method: str, params: dict[str, Any] | None = None) -> Any:
    """What the daemon answers; None where it does not, whatever the reason: a shell has no place for a complaint."""
    with contextlib.suppress(OSError, ConfigError, EdgedCallError):
        where, _ = socket_path(ctx.params.get("socket"), ctx.params.get("config_file"))
        with Client(where, timeout_s=PATIENCE_S) as client:
            return client.call(method, params)
    return None
