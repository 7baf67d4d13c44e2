"""Single values of requests to Ollama's API: names, times, options. Pure.

https://github.com/ollama/ollama/blob/main/docs/api.md, and api/types.go where that says more.
"""

from __future__ import annotations

import math
import re
from typing import Any

from msgspec import Struct

from edged.errors import BadRequest
from edged.transport.http.core.headers import safe
from edged.types import JSON
from edged.wire import BOUNDS, MAX_TOKENS, stops
from edged.wire.dialogue import BadParameter

LATEST = "latest"  # the one tag there is, in Ollama's words for versions
UNIT_S = {"ns": 1e-9, "us": 1e-6, "\u00b5s": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|\u00b5s|ms|s|m|h)")  # of what Go calls a duration
EFFORTS = ("low", "medium", "high", "max")

# The options that Ollama knows, by the types that its errors name (api/types.go, Options).
TYPES: dict[str, str] = {
    **dict.fromkeys(
        (
            "num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "seed", "num_predict", "top_k",
            "repeat_last_n", "draft_num_predict",
        ),
        "integer",
    ),
    **dict.fromkeys(
        (
            "top_p", "min_p", "typical_p", "temperature", "repeat_penalty", "presence_penalty", "frequency_penalty",
        ),
        "float32",
    ),
    "use_mmap": "boolean",
    "stop": "array",
}  # fmt: skip
SAMPLERS = ("top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty")
HONOURED = {"temperature", "top_p", "seed", "num_predict", "stop", *SAMPLERS}


class Options(Struct, frozen=True, kw_only=True):
    """What has an effect. max_tokens: None: as many as there may be. ignored: names of what has none."""

    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    samplers: dict[str, float] = {}
    ignored: tuple[str, ...] = ()


def bare_name(given: str) -> str:
    """A name without its tag `latest`; another tag stays, and so is unknown."""
    name, colon, tag = given.strip().rpartition(":")
    return name if colon and tag.lower() == LATEST else given.strip()


def tagged(name: str) -> str:
    """A name as lists have it."""
    return f"{name}:{LATEST}"


def model(body: dict[str, JSON]) -> str:
    """What the request names, as `model` or, as older clients do, as `name`. Raises BadRequest."""
    for key in ("model", "name"):
        if (given := body.get(key)) is not None and not isinstance(given, str):
            raise BadParameter(key, "is a text")
        if given:
            return given
    raise BadRequest("model is required")


def flag(body: dict[str, JSON], key: str, *, default: bool) -> bool:
    """A switch; null is the default."""
    given = body.get(key)
    if given is None:
        return default
    if not isinstance(given, bool):
        raise BadParameter(key, "is true or false")
    return given


def text(body: dict[str, JSON], key: str) -> str:
    """A text; null is the empty one."""
    given = body.get(key)
    if given is None:
        return ""
    if not isinstance(given, str):
        raise BadParameter(key, "is a text")
    return given


def texts(body: dict[str, JSON], key: str) -> list[Any]:
    """A list; null is the empty one."""
    given = body.get(key)
    if given is None:
        return []
    if not isinstance(given, list):
        raise BadParameter(key, "is a list")
    return given


def keep_alive(body: dict[str, JSON]) -> float | None:
    """Seconds that a model is wished to stay after its answer; 0: it may go; infinite: for ever; None: nothing is
    said."""
    given = body.get("keep_alive")
    if given is None or given == "":
        return None
    if isinstance(given, int | float) and not isinstance(given, bool):
        return float(given) if given >= 0 else math.inf
    seconds = _duration_s(given) if isinstance(given, str) else None
    if seconds is None:
        raise BadParameter("keep_alive", f'{given!r} is no time; write seconds as a number, or "5m", "1h30m", "-1s"')
    return seconds if seconds >= 0 else math.inf


def _duration_s(given: str) -> float | None:
    """Go's time.ParseDuration; None: it is none."""
    sign, rest = (-1, given[1:]) if given.startswith("-") else (1, given.removeprefix("+"))
    if rest == "0":
        return 0.0
    parts = PART.findall(rest)
    if not parts or "".join(map("".join, parts)) != rest:
        return None
    return sign * sum(float(number) * UNIT_S[unit] for number, unit in parts)


def think(body: dict[str, JSON]) -> bool | None:
    """Whether the model is to think; None: as it does by itself."""
    given = body.get("think")
    if given is None or isinstance(given, bool):
        return given
    if given in EFFORTS:
        return True
    raise BadParameter("think", f"is true, false, {', '.join(EFFORTS)}")


def shape(body: dict[str, JSON]) -> dict[str, JSON] | None:
    """The schema that `format` means; None: any text."""
    given = body.get("format")
    if given is None or given == "":
        return None
    if given == "json":
        return {"type": "object"}
    if not isinstance(given, dict):
        raise BadParameter("format", 'is "json" or a JSON Schema')
    return given


def options(body: dict[str, JSON]) -> Options:
    """The options. What is unknown, or has no effect here, is ignored by name."""
    given = body.get("options")
    if given is None:
        return Options()
    if not isinstance(given, dict):
        raise BadParameter("options", "is an object")
    known = {name: _typed(name, value) for name, value in given.items() if value is not None}
    for name in ("temperature", "top_p"):
        low, high = BOUNDS[name]
        if name in known and not low <= known[name] <= high:
            raise BadParameter(f"options.{name}", f"{known[name]} is outside {low} to {high}")
    seed, limit = known.get("seed"), known.get("num_predict", 0)
    if seed is not None and seed > BOUNDS["seed"][1]:
        raise BadParameter("options.seed", f"{seed} is outside 0 to {BOUNDS['seed'][1]}; less than 0 is by chance")
    return Options(
        temperature=known.get("temperature"),
        top_p=known.get("top_p"),
        seed=None if seed is None or seed < 0 else seed,
        max_tokens=min(limit, MAX_TOKENS) if limit > 0 else None,  # -1 and -2 are Ollama's words for no limit
        stop=stops(known.get("stop")),
        samplers={name: known[name] for name in SAMPLERS if name in known},
        ignored=tuple(f"options.{safe(name)}" for name in known if name not in HONOURED),
    )


def _typed(name: str, value: JSON) -> Any:
    """An option's value as its type has it. Raises BadRequest in Ollama's words."""
    kind = TYPES.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    match kind:
        case "integer" if is_number:
            return int(value)
        case "float32" if is_number:
            return float(value)
        case "boolean" if isinstance(value, bool):
            return value
        case "array" if isinstance(value, str):  # Open WebUI and n8n send one
            return [value] if value else []
        case "array" if isinstance(value, list) and all(isinstance(each, str) for each in value):
            return [each for each in value if each]
        case None:
            return value
    raise BadRequest(f'option "{name}" must be of type {kind}')
