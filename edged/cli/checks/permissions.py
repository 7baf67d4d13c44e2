"""Who may do what: whether roles decide, and whether every API key has one."""

from __future__ import annotations

from collections.abc import Iterator

from edged import config
from edged.config import Config, roles
from edged.daemon.checks.finding import Finding, ok, warn
from edged.errors import ConfigError


def look(settings: Config) -> Iterator[Finding]:
    """All of it."""
    access = settings.access
    if access is None:
        yield ok("access", "no roles: whoever may connect may do everything")
        return
    default = f"role {access.default}" if access.default else "nothing"
    yield ok("access", f"{len(settings.roles)} roles; whoever [access] does not name may do: {default}")
    unnamed = set(settings.roles) - {
        access.default,
        *access.open_ways.values(),
        *(role for who in (access.unix_uid, access.unix_group, access.mqtt, access.api_key) for role in who.values()),
    }
    if unnamed:
        yield warn("access", f"nobody has role {', '.join(sorted(unnamed))}", "name who has it in [access]")
    topics = _topics(settings)
    if settings.mqtt and (idle := [p for p in access.mqtt if not any(roles.matches(p, topic) for topic in topics)]):
        do = f"what is listened to is {', '.join(topics)}"
        yield warn("access", f"nothing that is asked over MQTT matches {', '.join(idle)}", do)
    if settings.http.api_keys_file is None:
        return
    try:
        # Names alone: the keys themselves are the daemon's to judge.
        lines = config.secret(settings.http.api_keys_file).splitlines()
    except ConfigError as error:
        yield warn("access", f"the API keys cannot be read: {error}", "run: sudo edged doctor")
        return
    names = {line.partition(":")[0].strip() for line in lines if ":" in line and not line.lstrip().startswith("#")}
    if without := set(access.api_key) - names:
        told = f"[access] api_key names {', '.join(sorted(without))}, and {settings.http.api_keys_file} has no such key"
        yield warn("access", told, "add the key, or take the entry out")
    if not access.default and (without := names - set(access.api_key)):
        yield warn("access", f"{len(without)} API keys have no role", "name them in [access] api_key, or take them out")


def _topics(settings: Config) -> list[str]:
    """Where this node is asked, and told to cancel."""
    base = f"edged/{settings.node.id}"
    return [*(f"{base}/agents/{agent}/request" for agent in settings.agents), f"{base}/requests/ID/cancel"]
