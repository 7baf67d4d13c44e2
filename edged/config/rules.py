"""What can be wrong in tables that have the right keys and types, alone or beside one another."""

from __future__ import annotations

import grp
import os
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import psutil

from edged.config import mcp, roles, tools
from edged.config.settings import Config, parse_listener
from edged.config.tables import Agent, Model
from edged.config.values import Key, Mistakes, range_mistakes, size_mistakes
from edged.host import loopback, zones
from edged.types import Preference, Privacy

# Keys of a model behind a server on this board. Those that only such a one has, and those that it may have.
SERVER_KEYS = ("base_url", "model", "api_key_file", "timeout_s")
SERVED_MAY = {"engine", "context", "preload", *SERVER_KEYS}


def mistakes(config: Config) -> Mistakes:
    """All that is wrong, table by table."""
    for rule in (
        _scalars,
        _http,
        _mqtt,
        _homeassistant,
        _wyoming,
        _upstreams,
        _models,
        _agents,
        _tools,
        _mcp,
        _access,
        _open_ways,
    ):
        yield from rule(config)


def _scalars(config: Config) -> Mistakes:
    yield from size_mistakes(("memory", "reserve"), config.memory.reserve)
    yield from size_mistakes(("store", "max_bytes"), config.store.max_bytes)
    yield from size_mistakes(("snapshots", "max_bytes"), str(config.snapshots.max_bytes))
    if not config.memory.budget.strip().endswith("%"):
        yield from size_mistakes(("memory", "budget"), config.memory.budget)
    if config.node.timezone:
        try:
            zones.named(config.node.timezone)
        except ValueError as error:
            do = 'write an IANA name, as "Europe/Berlin"' if zones.known() else "install its zones (package tzdata)"
            yield ("node", "timezone"), f"{error}; {do}"
    threads, usable = config.compute.threads, psutil.cpu_count() or 1
    if threads != "auto" and threads > usable:
        yield ("compute", "threads"), f'{threads}: "auto", or 1 to {usable} on this board, is allowed'
    if config.is_given("ipc", "group") and config.ipc.group:
        try:
            grp.getgrnam(config.ipc.group)
        except KeyError:
            yield ("ipc", "group"), f"there is no group {config.ipc.group!r} on this board"


def _http(config: Config) -> Mistakes:
    for i, text in enumerate(config.http.listen):
        at = ("http", "listen", f"[{i}]")
        try:
            listener = parse_listener(text, Path(config.node.runtime_dir))
        except ValueError:
            yield at, f'{text!r}; write "unix:http.sock" or "127.0.0.1:8377"'
            continue
        if isinstance(listener, tuple) and not config.http.api_keys_file:
            yield at, f"{text!r} is open to the network: name http.api_keys_file"
        if text in config.http.listen[:i]:
            yield at, f"names a listener twice: {text!r}"


def _mqtt(config: Config) -> Mistakes:
    mqtt = config.mqtt
    if mqtt is None:
        return
    url = _url(mqtt.url)
    beyond = url.path not in ("", "/") or url.query or url.fragment
    if "@" in mqtt.url:
        yield ("mqtt", "url"), "holds no user; use mqtt.username and mqtt.password_file"
    elif url.scheme not in ("mqtt", "mqtts") or not url.hostname or beyond or not _has_port(url):
        yield ("mqtt", "url"), f"{mqtt.url!r}; write mqtt://HOST[:PORT], or mqtts:// for TLS"
    if mqtt.password_file and not mqtt.username:
        yield ("mqtt", "password_file"), "needs mqtt.username"
    if bool(mqtt.cert_file) != bool(mqtt.key_file):
        yield ("mqtt", "cert_file"), "cert_file and key_file go together"
    for key in ("ca_file", "cert_file", "key_file"):
        if getattr(mqtt, key) and url.scheme != "mqtts":
            yield ("mqtt", key), "is for TLS: write mqtts:// in mqtt.url"
        if getattr(mqtt, key) and not os.access(getattr(mqtt, key), os.R_OK):
            yield ("mqtt", key), f"{getattr(mqtt, key)!r} cannot be read"


def _homeassistant(config: Config) -> Mistakes:
    home = config.homeassistant
    if home is None:
        return
    if home.discovery and config.mqtt is None:
        yield ("homeassistant", "discovery"), "goes over MQTT: write an [mqtt] table"
    for key in ("answers", "control"):
        if getattr(home, key) and not home.discovery:
            yield ("homeassistant", key), "means nothing without discovery = true"
    for i, agent in enumerate(home.answers):
        if agent not in config.agents:
            known = ", ".join(config.agents) or "none"
            yield ("homeassistant", "answers", f"[{i}]"), f"no agent {agent!r}; defined are {known}"
    if home.control and not _may_manage(config, f"edged/{config.node.id}/control/reload"):
        write = f'mqtt = {{ "edged/{config.node.id}/control/+" = "ROLE" }}'
        problem = "anybody at the broker could press the buttons: in [access], name a role with manage = true"
        yield ("homeassistant", "control"), f"{problem}, as {write}"


def _may_manage(config: Config, topic: str) -> bool:
    """Whether a role that was meant for it manages by a topic."""
    if config.access is None:
        return False
    pattern = roles.most_specific(config.access.mqtt, topic)
    role = config.roles.get(config.access.mqtt[pattern]) if pattern is not None else None
    return role is not None and role.manage


def _wyoming(config: Config) -> Mistakes:
    """Where it listens is looked at with all ways in without authentication."""
    if config.wyoming is None:
        return
    known = ", ".join(config.agents) or "none: write an [agents.NAME] table"
    if config.wyoming.agent and config.wyoming.agent not in config.agents:
        yield ("wyoming", "agent"), f"no agent {config.wyoming.agent!r}; defined are {known}"
    elif not config.wyoming.agent and len(config.agents) != 1:
        yield ("wyoming", "agent"), f"is required, the agent that answers; defined are {known}"


def _upstreams(config: Config) -> Mistakes:
    for name, upstream in config.upstreams.items():
        at = ("upstreams", name, "base_url")
        url = _url(upstream.base_url)
        if url.username or url.password or (not url.hostname and "@" in upstream.base_url):
            yield at, f"holds a secret; use upstreams.{name}.api_key_file"
        elif url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment:
            yield at, f"{upstream.base_url!r}; write https://HOST[:PORT]/v1"
        elif not _has_port(url):
            yield at, f"{upstream.base_url!r} has no valid port"


def _models(config: Config) -> Mistakes:
    for name, model in config.models.items():
        given = config.origins.keys_of(("models", name))
        if model.is_served:
            yield from _served(("models", name), model, given)
            continue
        for key in SERVER_KEYS:
            if key in given:
                yield ("models", name, key), 'is for a model in a server: write engine = "openai" too'
        if model.min_context is not None:
            yield from range_mistakes(("models", name, "min_context"), model.min_context, 256, model.context)


def _served(at: Key, model: Model, given: set[str]) -> Mistakes:
    for key in sorted(given - SERVED_MAY):
        allowed = ", ".join(sorted(SERVED_MAY))
        yield (*at, key), f'means nothing with engine = "openai": a server runs it; allowed are {allowed}'
    for key, what in (("base_url", "http://127.0.0.1:PORT/v1"), ("model", "the name the server knows it by")):
        if not getattr(model, key):
            yield (*at, key), f'is required with engine = "openai": write {what}'
    try:
        loopback.parse(model.base_url)
    except ValueError as error:
        yield (*at, "base_url"), str(error)


def _agents(config: Config) -> Mistakes:
    for name, agent in config.agents.items():
        at = ("agents", name)
        if name in config.models:
            yield at, "a model has this name too; agents and models share one namespace"
        if agent.model not in config.models:
            known = ", ".join(config.models) or "none: write a [models.NAME] table"
            yield (*at, "model"), f"no model {agent.model!r}; defined are {known}"
            continue
        for i, tool in enumerate(agent.tools):
            if not config.is_tool(tool):
                known = ", ".join(config.tools) or "none"
                yield (*at, "tools", f"[{i}]"), f"no tool {tool!r}; defined are {known}"
        if agent.upstream and agent.upstream not in config.upstreams:
            known = ", ".join(config.upstreams) or "none: write an [upstreams.NAME] table"
            yield (*at, "upstream"), f"no upstream {agent.upstream!r}; defined are {known}"
        if agent.route is Preference.CLOUD and agent.privacy is Privacy.DEVICE:
            yield (*at, "route"), 'nothing of this agent may leave the board: write privacy = "any" too'
        if agent.route is Preference.CLOUD and not config.upstreams:
            yield (*at, "route"), "there is no cloud: write an [upstreams.NAME] table"
        if agent.min_confidence not in ("auto", 0) and config.models[agent.model].is_served:
            problem = f"model {agent.model!r} runs in a server, which does not tell how sure of a call it is"
            yield (*at, "min_confidence"), f"{problem}; leave it out, or name another model"
        yield from _learns(config, at, agent)
        yield from range_mistakes((*at, "max_tokens"), agent.max_tokens, 1, config.models[agent.model].context - 1)


def _learns(config: Config, at: Key, agent: Agent) -> Mistakes:
    if agent.learn is True and agent.privacy is Privacy.DEVICE:
        why = "nothing of this agent may leave the board, so there is nothing to learn from"
        yield (*at, "learn"), f'{why}: write learn = "local", or privacy = "any"'
    if agent.learn and config.models[agent.model].is_served:
        problem = f"model {agent.model!r} runs in a server, which is shown no examples"
        yield (*at, "learn"), f"{problem}; leave it out, or name another model"
    if agent.learn and agent.min_confidence == 0:
        yield (*at, "learn"), "no call is unsure with min_confidence = 0: leave one of them out"


def _tools(config: Config) -> Mistakes:
    modes = {name: database.mode for name, database in config.databases.items()}
    around = tools.Around(databases=modes, has_broker=config.mqtt is not None, servers=config.mcp)
    for name, tool in config.tools.items():
        yield from tools.mistakes(name, tool, around)


def _mcp(config: Config) -> Mistakes:
    yield from mcp.mistakes(config.mcp, {name: config.origins.keys_of(("mcp", name)) for name in config.mcp})


def _access(config: Config) -> Mistakes:
    if config.access is None:
        return
    of_servers = [name for role in config.roles.values() for name in role.tools if config.is_tool(name)]
    yield from roles.mistakes(
        config.roles,
        config.access,
        agents=config.agents,
        tools=tuple(dict.fromkeys([*config.tools, *of_servers])),
        models=config.models,
        has_keys=config.http.api_keys_file is not None,
    )


def _open_ways(config: Config) -> Mistakes:
    """A way in without authentication is for this board alone, and acts with a role that was meant for it."""
    for name, (at, text) in config.open_ways.items():
        try:
            listener = parse_listener(text, Path(config.node.runtime_dir))
        except ValueError:
            yield at, f'{text!r}; write "127.0.0.1:PORT"'
            continue
        if not isinstance(listener, tuple) or not loopback.is_here(listener[0]):
            yield at, f"{text!r}: whoever comes by it shows no key, so it listens on loopback only: 127.0.0.1 or [::1]"
        elif text in config.http.listen:
            yield at, f"names a listener twice: {text!r} is in http.listen"
        elif (other := next(way for way, (_, taken) in config.open_ways.items() if taken == text)) != name:
            yield at, f"names a listener twice: {text!r} is that of {other}"
        if config.access is not None and not config.access.open_ways[name]:
            yield at, f"whoever comes by it shows no key: name the role that they get in access.{name}"
    for name, role in config.access.open_ways.items() if config.access is not None else ():
        if role and name not in config.open_ways:
            yield ("access", name), "nobody comes this way: it is not configured"


def _url(text: str) -> SplitResult:
    """The parts of a URL; of a text that is none, parts of nothing."""
    try:
        return urlsplit(text)
    except ValueError:  # an IPv6 address without its closing bracket
        return urlsplit("")


def _has_port(url: SplitResult) -> bool:
    """Whether the port is a number a port may be, or not given."""
    try:
        return url.port is None or url.port > 0
    except ValueError:
        return False
