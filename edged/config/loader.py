"""TOML files into the checked configuration: the file and its drop-ins are read, merged (tables merge, arrays replace),
converted table by table so that an error can name its key, and checked."""

from __future__ import annotations

import os
import re
import socket
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from edged.config import rules, tools
from edged.config.convert import convert, entries
from edged.config.origins import Origins
from edged.config.settings import NAMED, SINGLE, Config
from edged.config.tables import Model, Node
from edged.config.values import NAME, Key, Wrong
from edged.errors import ConfigError

DEFAULT_FILE = Path("/etc/edged/edged.toml")

MAX_LEVELS = 32  # of tables in tables: more has no use here, and costs stack in every function that walks through them
BINARY = "payload"  # the one key whose text may hold NUL: a device may want it; names, paths and statements end there


def find(path: str | None) -> Path:
    """The configuration file: as given, else $EDGED_CONFIG, else /etc/edged/edged.toml."""
    return Path(path or os.environ.get("EDGED_CONFIG") or DEFAULT_FILE).absolute()


def load(path: str | None = None) -> Config:
    """Read and check the configuration.

    Raises:
        ConfigError: the first thing that is wrong: file, line, key, what is allowed; `others` has the rest, where the
            first did not hide it.
    """
    files = [find(path)]
    files += sorted((files[0].parent / "conf.d").glob("*.toml"))
    origins = Origins(str(files[0]))
    merged: dict[str, Any] = {}
    for file in files:
        text = _text(file)
        table = _parse(file, text)
        origins.add(str(file), text, table)
        for at, value in _all_in(table):
            if "\0" in at[-1] or (isinstance(value, str) and "\0" in value and BINARY not in at):
                raise origins.error(at, "holds a NUL character")
        _merge(merged, table)
    try:
        config = build(merged, origins, tuple(map(str, files)))
    except Wrong as wrong:
        raise origins.error(wrong.key, wrong.problem) from None
    if errors := [origins.error(key, problem) for key, problem in rules.mistakes(config)]:
        errors[0].others = tuple(errors[1:])
        raise errors[0]
    return config


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")  # some editors put a byte order mark in front
    except FileNotFoundError:
        raise ConfigError(str(file), "", "no such file; name one with --config or $EDGED_CONFIG") from None
    except OSError as error:
        raise ConfigError(str(file), "", f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(str(file), "", "is not UTF-8 text") from None


def _parse(file: Path, text: str) -> dict[str, Any]:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        raise ConfigError(str(file), "", f"not valid TOML: {error}", line=int(line[1]) if line else None) from None
    except ValueError:  # Python's own bound
        raise ConfigError(str(file), "", "not valid TOML: a number has too many digits") from None
    except RecursionError:
        raise ConfigError(str(file), "", f"is nested deeper than {MAX_LEVELS} levels") from None
    for at, _ in _all_in(table):
        if len(at) > MAX_LEVELS:
            raise ConfigError(str(file), ".".join(at[:3]), f"is nested deeper than {MAX_LEVELS} levels")
    return table


def _all_in(table: dict[str, Any]) -> Iterator[tuple[Key, Any]]:
    """Everything in a table, at any depth. No recursion: the depth is not checked yet."""
    rest: list[tuple[Key, Any]] = [((), table)]
    while rest:
        at, value = rest.pop()
        if at:
            yield at, value
        if isinstance(value, dict):
            rest += [((*at, key), below) for key, below in value.items()]
        elif isinstance(value, list):
            rest += [((*at, f"[{i}]"), below) for i, below in enumerate(value)]


def _merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict):
            if not isinstance(into.get(key), dict):
                into[key] = {}
            _merge(into[key], value)
        else:
            into[key] = value


def build(raw: dict[str, Any], origins: Origins, files: tuple[str, ...]) -> Config:
    """The structures of merged tables, each right by itself.

    Raises:
        Wrong: the first thing that is not.
    """
    _known_tables(raw)
    optional = {name: name in raw for name in ("mqtt", "homeassistant", "wyoming")}
    optional["access"] = not {"roles", "access"}.isdisjoint(raw)
    single = {
        name: convert(raw.get(name, {}), kind, (name,)) for name, kind in SINGLE.items() if optional.get(name, True)
    }
    named = {
        name: {
            key: convert(table, kind, (name, key))
            for key, table in entries(name, raw.get(name, {}), kind.__struct_encode_fields__)
        }
        for name, kind in NAMED.items()
    }
    config = Config(
        **single,  # type: ignore[arg-type]  # tests/unit/config/test_settings compares both with Config's fields
        **named,  # type: ignore[arg-type]
        tools=tools.parse(raw.get("tools", {})),
        files=files,
        origins=origins,
    )
    return msgspec.structs.replace(config, node=_node(config.node), models=_models(config))


def _known_tables(raw: dict[str, Any]) -> None:
    known = sorted({*SINGLE, *NAMED, "tools"})
    for key, value in raw.items():
        if key not in known:
            raise Wrong((key,), f"unknown table; allowed are {', '.join(known)}")
        if not isinstance(value, dict):
            raise Wrong((key,), f"is a table: write [{key}]")


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
        if not Path(path).is_absolute():  # the service manager's may be anything
            raise Wrong(("node", key), f"{path!r} is not an absolute path")
    return msgspec.structs.replace(node, id=ident, **paths)


def _models(config: Config) -> dict[str, Model]:
    """The models. Where variants are listed, the first of them is the source."""
    models = dict(config.models)
    for name, model in config.models.items():
        if not model.variants:
            continue
        if len(set(model.variants)) != len(model.variants):
            raise Wrong(("models", name, "variants"), "names a source twice")
        if config.is_given("models", name, "source") and model.source != model.variants[0]:
            problem = f"is not the first of `variants`, {model.variants[0]!r}: leave it out, or write that"
            raise Wrong(("models", name, "source"), problem)
        models[name] = msgspec.structs.replace(model, source=model.variants[0])
    return models
