"""[roles] and [access] of the configuration: what a role allows, and who has which. `access` decides by them.

A topic filter is MQTT's: levels between `/`, `+` for one level, `#` at the end for all that follow. Of several that
match a topic the most specific counts: compared from the left, a level's own name before `+` before `#`.
"""

from __future__ import annotations

import grp
import pwd
import re
from collections.abc import Callable, Collection, Mapping
from typing import Annotated

from msgspec import Meta, field

from edged.config.values import Key, Mistakes, Strict
from edged.types import Priority, Rate

EVERY = "*"  # in a role's list: all there are
IDS = re.compile(r"[0-9]{1,10}")
MAX_ID = 2**32 - 2  # uid_t and gid_t; the last one means "none" to the kernel
MAX_FILTER_BYTES = 65_535  # MQTT's length field has 16 bits
OPEN_WAYS = ("ollama", "wyoming", "foundry")  # ways in without authentication: keys of [access] with one role each


class Role(Strict, frozen=True):
    """What anyone who has the role may use; "*" in a list is all there are.

    agents: agents that may be asked.
    tools: tools that may be called, by hand and by an agent on the caller's behalf.
    models: models that may be used without an agent, for completions and embeddings.
    priority: the highest priority that a request may have; a request that names none gets it.
    requests_per_minute: requests that each client may send in a minute. Default: no bound.
    burst: requests of a client that may come at once. Default: as many as in a minute.
    manage: whether models may be loaded, unloaded and updated, other clients' requests seen and ended, and the audit
        log read.
    """

    agents: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    priority: Priority = Priority.INTERACTIVE
    requests_per_minute: Annotated[float, Meta(ge=0.01, le=1_000_000)] | None = None
    burst: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    manage: bool = False

    @property
    def rate(self) -> Rate | None:
        """How much a client of this role may ask; None: no bound."""
        if self.requests_per_minute is None:
            return None
        return Rate(self.requests_per_minute, self.burst or max(1, round(self.requests_per_minute)))


class Access(Strict, frozen=True):
    """Who has which role. Without this table and [roles] anyone who may open the sockets may use everything.

    unix_uid: roles by user, a number or a name.
    unix_group: roles by group, a number or a name.
    mqtt: roles by topic filter of the request's topic; of several that match, the most specific counts.
    api_key: roles by the names of the API keys.
    default: role of anyone whom nothing else matches; "" is none.
    ollama: role of anyone who comes by `[http] ollama`, which wants no key. Needed where that is set.
    wyoming: role of anyone who comes by `[wyoming]`, which knows no keys. Needed where that table is.
    foundry: the same of `[http] foundry`.
    """

    unix_uid: dict[str, str] = field(default_factory=dict)
    unix_group: dict[str, str] = field(default_factory=dict)
    mqtt: dict[str, str] = field(default_factory=dict)
    api_key: dict[str, str] = field(default_factory=dict)
    default: str = ""
    ollama: str = ""
    wyoming: str = ""
    foundry: str = ""

    @property
    def open_ways(self) -> dict[str, str]:
        """Roles by the ways in that have no authentication; "" where none is named."""
        return {way: getattr(self, way) for way in OPEN_WAYS}


def mistakes(
    roles: Mapping[str, Role],
    access: Access,
    *,
    agents: Collection[str],
    tools: Collection[str],
    models: Collection[str],
    has_keys: bool,
) -> Mistakes:
    """(key, what is wrong and what is allowed) of both tables."""
    for name, role in roles.items():
        at = ("roles", name)
        for key, named, known in (("agents", role.agents, agents), ("tools", role.tools, tools)):
            yield from _unknown((*at, key), named, known, key)
        yield from _unknown((*at, "models"), role.models, models, "models")
        if role.burst is not None and role.requests_per_minute is None:
            yield (*at, "burst"), "is how many may come at once of requests_per_minute: write that, too"
    yield from _roles_named(roles, access)
    for table, kind, by_name in (("unix_uid", "user", _uid_of), ("unix_group", "group", _gid_of)):
        yield from _ids(("access", table), getattr(access, table), kind, by_name)
    for pattern in access.mqtt:
        if problem := filter_problem(pattern):
            yield ("access", "mqtt", pattern), problem
    if access.api_key and not has_keys:
        yield ("access", "api_key"), "there are no keys: name http.api_keys_file"


def users(access: Access) -> dict[int, str]:
    """Roles by uid; of a checked table."""
    return {_number(uid, _uid_of): role for uid, role in access.unix_uid.items()}


def groups(access: Access) -> dict[int, str]:
    """Roles by gid, in the order of the file; of a checked table."""
    return {_number(gid, _gid_of): role for gid, role in access.unix_group.items()}


def filter_problem(pattern: str) -> str | None:
    """Why a text is no topic filter; None where it is one."""
    if not pattern or "\0" in pattern or len(pattern.encode(errors="surrogatepass")) > MAX_FILTER_BYTES:
        return f"a topic filter has 1 to {MAX_FILTER_BYTES} bytes and no NUL"
    *before, last = pattern.split("/")
    if any("#" in level for level in before) or ("#" in last and last != "#"):
        return "`#` stands alone, as the last level of a topic filter"
    if any("+" in level and level != "+" for level in (*before, last)):
        return "`+` stands for a whole level of a topic filter"
    return None


def matches(pattern: str, topic: str) -> bool:
    """Whether a topic filter has a topic (MQTT 5, 4.7). Wildcards in front do not match topics that begin with $."""
    if topic.startswith("$") and pattern[:1] in ("+", "#"):
        return False
    wanted, levels = pattern.split("/"), topic.split("/")
    if wanted[-1] == "#":  # also the level above it
        wanted.pop()
        levels = levels[: len(wanted)]
    return len(wanted) == len(levels) and all(w in ("+", level) for w, level in zip(wanted, levels, strict=True))


def most_specific(patterns: Collection[str], topic: str) -> str | None:
    """Of the topic filters that match, the one that counts; None where none does."""
    found = [pattern for pattern in patterns if matches(pattern, topic)]
    return min(found, key=_specificity, default=None)


def _specificity(pattern: str) -> tuple[int, ...]:
    """Smaller is more specific: level by level, a name before `+` before `#`."""
    return tuple({"+": 1, "#": 2}.get(level, 0) for level in pattern.split("/"))


def _unknown(at: Key, named: Collection[str], known: Collection[str], what: str) -> Mistakes:
    for i, name in enumerate(named):
        if name != EVERY and name not in known:
            yield (
                (*at, f"[{i}]"),
                f'no {what.removesuffix("s")} {name!r}; defined are {", ".join(known) or "none"}, and "*" is all',
            )


def _roles_named(roles: Mapping[str, Role], access: Access) -> Mistakes:
    known = ", ".join(roles) or "none: write a [roles.NAME] table"
    for table in ("unix_uid", "unix_group", "mqtt", "api_key"):
        for who, role in getattr(access, table).items():
            if role and role not in roles:
                yield ("access", table, who), f'no role {role!r}; defined are {known}, and "" is none'
    for key, role in {"default": access.default, **access.open_ways}.items():
        if role and role not in roles:
            yield ("access", key), f'no role {role!r}; defined are {known}, and "" is none'


def _ids(at: Key, named: Collection[str], kind: str, by_name: Callable[[str], int]) -> Mistakes:
    seen: dict[int, str] = {}
    for who in named:
        try:
            number = _number(who, by_name)
        except (KeyError, ValueError):
            yield (*at, who), f"there is no {kind} {who!r} on this board; a number or a name is allowed"
            continue
        if number > MAX_ID:
            yield (*at, who), f"a {kind}'s number is at most {MAX_ID}"
        elif (before := seen.setdefault(number, who)) != who:  # by number and by name: which role would count?
            yield (*at, who), f"is {before!r}, which is named already: name one of them"


def _number(who: str, by_name: Callable[[str], int]) -> int:
    return int(who) if IDS.fullmatch(who) else by_name(who)


def _uid_of(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def _gid_of(name: str) -> int:
    return grp.getgrnam(name).gr_gid
