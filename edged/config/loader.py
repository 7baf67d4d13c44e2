"""TOML files into the checked configuration: the file and its drop-ins are read, merged (tables merge, arrays replace),
converted table by table so that an error can name its key, and checked."""

from __future__ import annotations

import os
import re
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edged.config import rules, tools
from edged.config.origins import Origin, error_at
from edged.config.roles import Access, Role
from edged.config.tables import (
    Agent,
    AuditKept,
    Compute,
    Config,
    Database,
    Http,
    Ipc,
    Memory,
    Model,
    Mqtt,
    Node,
    Queue,
    Snapshots,
    Store,
    Upstream,
)
from edged.config.values import NAME, Key, T, Wrong, convert, entries
from edged.errors import ConfigError
from edged.types import JSON

DEFAULT_FILE = Path("/etc/edged/edged.toml")

# Keys of the contract whose part of edged does not exist yet: refused, so that nobody believes them to work.
NOT_YET: Mapping[tuple[str, ...], str] = {
    ("mqtt", "shared_group"): "fleets",
}

# Their defaults ask for nothing, so whoever writes them out is not refused.
ASKS_NOTHING: Mapping[tuple[str, ...], JSON] = {
    ("mqtt", "shared_group"): "",
}

MAX_LEVELS = 32  # of tables in tables: more has no use here, and costs stack in whoever walks through them
BINARY = "payload"  # the one key whose text may hold NUL: a device may want it; names, paths and statements end there


def find(path: str | None) -> Path:
    """The configuration file: as given, else $EDGED_CONFIG, else /etc/edged/edged.toml."""
    return Path(path or os.environ.get("EDGED_CONFIG") or DEFAULT_FILE).absolute()


def load(path: str | None = None) -> Config:
    """Read and check the configuration.

    Raises:
        ConfigError: the first thing that is wrong: file, key, what is allowed.
    """
    main = find(path)
    sources = [main, *sorted((main.parent / "conf.d").glob("*.toml"))]
    merged: dict[str, Any] = {}
    origin: Origin = {}
    for source in sources:
        _merge(merged, _read(source), origin, str(source), ())
    try:
        config = _build(merged, origin, tuple(map(str, sources)))
    except Wrong as wrong:
        raise error_at(origin, str(main), wrong.key, wrong.problem) from None
    for key, problem in rules.mistakes(config):
        raise error_at(origin, str(main), key, problem)
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(str(path), "", "no such file; name one with --config or $EDGED_CONFIG") from None
    except OSError as error:
        raise ConfigError(str(path), "", f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(str(path), "", "is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        raise ConfigError(str(path), "", f"not valid TOML: {error}", line=int(line[1]) if line else None) from None
    except ValueError:  # Python's own bound
        raise ConfigError(str(path), "", "not valid TOML: a number has too many digits") from None
    except RecursionError:
        raise ConfigError(str(path), "", f"is nested deeper than {MAX_LEVELS} levels") from None
    if found := _impossible(table):
        raise ConfigError(str(path), *found)
    return table


def _impossible(table: dict[str, Any]) -> tuple[str, str] | None:
    """(key, problem) of what no key can be: nested without end, or with a NUL in it. No recursion: see the former."""
    rest: list[tuple[tuple[str, ...], Any]] = [((), table)]
    while rest:
        at, value = rest.pop()
        if len(at) > MAX_LEVELS:
            return ".".join(at[:3]), f"is nested deeper than {MAX_LEVELS} levels"
        if isinstance(value, dict):
            rest += [((*at, key), below) for key, below in value.items()]
        elif isinstance(value, list):
            rest += [((*at, f"[{i}]"), below) for i, below in enumerate(value)]
        elif isinstance(value, str) and "\0" in value and BINARY not in at:
            return ".".join(at), "holds a NUL character"
        if at and "\0" in at[-1]:
            return ".".join(at).replace("\0", "\\u0000"), "holds a NUL character"
    return None


def _merge(
    into: dict[str, Any],
    new: dict[str, Any],
    origin: Origin,
    source: str,
    at: tuple[str, ...],
) -> None:
    for key, value in new.items():
        here = (*at, key)
        origin[here] = source
        if isinstance(value, dict):
            if not isinstance(into.get(key), dict):
                into[key] = {}
            _merge(into[key], value, origin, source, here)
        else:
            into[key] = value


def _build(raw: dict[str, Any], origin: Origin, files: tuple[str, ...]) -> Config:
    """The structures of merged tables, each right by itself.

    Raises:
        Wrong: the first thing that is not.
    """
    _refuse_not_yet(raw, ())
    _known_tables(raw)
    return Config(
        node=_node(_one(raw, "node", Node)),
        memory=_one(raw, "memory", Memory),
        compute=_one(raw, "compute", Compute),
        queue=_one(raw, "queue", Queue),
        store=_one(raw, "store", Store),
        snapshots=_one(raw, "snapshots", Snapshots),
        audit=_one(raw, "audit", AuditKept),
        ipc=_one(raw, "ipc", Ipc),
        http=_one(raw, "http", Http),
        mqtt=_one(raw, "mqtt", Mqtt) if "mqtt" in raw else None,
        databases=_many(raw, "databases", Database),
        models=_models(raw),
        upstreams=_many(raw, "upstreams", Upstream),
        agents=_many(raw, "agents", Agent),
        tools=tools.parse(raw.get("tools", {})),
        roles=_many(raw, "roles", Role),
        access=_one(raw, "access", Access) if {"roles", "access"} & set(raw) else None,
        files=files,
        origin=origin,
        group_given="group" in raw.get("ipc", {}),
    )


def _refuse_not_yet(table: dict[str, Any], at: Key) -> None:
    for key, value in list(table.items()):
        here = (*at, key)
        pattern = next((p for p in NOT_YET if _matches(p, here)), None)
        if pattern and pattern in ASKS_NOTHING and value == ASKS_NOTHING[pattern]:
            del table[key]
        elif pattern:
            raise Wrong(here, f"not available yet: {NOT_YET[pattern]} is not built; take the key out")
        elif isinstance(value, dict):
            _refuse_not_yet(value, here)


def _matches(pattern: Key, key: Key) -> bool:
    return len(pattern) == len(key) and all(p in ("*", k) for p, k in zip(pattern, key, strict=True))


def _known_tables(raw: dict[str, Any]) -> None:
    known = {f.name for f in msgspec.structs.fields(Config)} - {"files", "origin", "group_given"}
    for key, value in raw.items():
        if key not in known:
            raise Wrong((key,), f"unknown table; allowed are {', '.join(sorted(known))}")
        if not isinstance(value, dict):
            raise Wrong((key,), f"is a table: write [{key}]")


def _one(raw: dict[str, Any], name: str, kind: type[T]) -> T:
    return convert(raw.get(name, {}), kind, (name,))


def _many(raw: dict[str, Any], name: str, kind: type[T]) -> dict[str, T]:
    return {key: convert(value, kind, (name, key)) for key, value in entries(name, raw.get(name, {}))}


def _node(node: Node) -> Node:
    """With what it leaves out: the host's name, and the folders that systemd passes."""
    ident = node.id or socket.gethostname()
    if not NAME.fullmatch(ident):
        raise Wrong(("node", "id"), f"{ident!r} is not one MQTT topic level of letters, digits, `_`, `-`, `.`")
    state = node.state_dir or os.environ.get("STATE_DIRECTORY", "").split(":")[0] or "/var/lib/edged"
    runtime = node.runtime_dir or os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0] or "/run/edged"
    models = node.models_dir or f"{state}/models"
    paths = {"state_dir": state, "runtime_dir": runtime, "models_dir": models}
    for key, path in paths.items():
        if not Path(path).is_absolute():
            raise Wrong(("node", key), f"{path!r} is not an absolute path")
    return Node(id=ident, **paths)


def _models(raw: dict[str, Any]) -> dict[str, Model]:
    """Where variants are listed, the first of them is the source."""
    models = _many(raw, "models", Model)
    for name, model in models.items():
        table = raw["models"][name]
        if "variants" not in table:
            continue
        at = ("models", name, "variants")
        if not model.variants:
            raise Wrong(at, "is empty: list the sources, best first, or write `source` instead")
        if len(set(model.variants)) != len(model.variants):
            raise Wrong(at, "names a source twice")
        if "source" in table and model.source != model.variants[0]:
            problem = f"is not the first of `variants`, {model.variants[0]!r}: leave it out, or write that"
            raise Wrong(("models", name, "source"), problem)
        models[name] = msgspec.structs.replace(model, source=model.variants[0])
    return models
