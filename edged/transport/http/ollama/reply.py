"""Answers, lists and errors in Ollama's shapes. Pure but for the clock.

https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from msgspec import Struct

from edged.api.library import Loaded, Title
from edged.completions.calls import WrittenCall
from edged.completions.request import ModelAnswer
from edged.transport.http.ollama.values import tagged
from edged.types import JSON, Finish, TokenLogprob

VERSION = (
    "0.33.0-edged"  # of Ollama's API that is spoken; clients compare the numbers, and cut off what follows the dash
)
FOR_EVER_S = 100 * 365 * 86400  # until a model leaves that does not: clients want a date
NS_PER_MS = 1_000_000

# A model's own template is none of Go's. Clients look whether one speaks of gaps.
TEMPLATE, GAP_TEMPLATE = "{{ .Prompt }}", "{{ .Prompt }}{{ .Suffix }}"

# What of an agent's reply has no place in Ollama's shapes; it stands beside them, as on the OpenAI API.
OURS = ("rid", "status", "route", "tool_calls", "timing", "degraded")


class Spent(Struct, frozen=True, kw_only=True):
    """What an answer took: tokens, and milliseconds."""

    prompt_tokens: int = 0
    tokens: int = 0
    total_ms: float = 0.0
    load_ms: float = 0.0
    prompt_ms: float = 0.0
    answer_ms: float = 0.0

    def fields(self) -> dict[str, JSON]:
        """As Ollama names them, times in nanoseconds; clients divide by them, so none that counts is 0."""
        return {
            "total_duration": _ns(self.total_ms),
            "load_duration": _ns(self.load_ms),
            "prompt_eval_count": self.prompt_tokens,
            "prompt_eval_duration": _ns(self.prompt_ms),
            "eval_count": self.tokens,
            "eval_duration": _ns(self.answer_ms),
        }


def spent_by_model(answer: ModelAnswer, total_ms: float) -> Spent:
    """By a plain model."""
    return Spent(
        prompt_tokens=answer.prompt_tokens,
        tokens=answer.completion_tokens,
        total_ms=total_ms,
        load_ms=answer.load_ms,
        prompt_ms=answer.prompt_ms,
        answer_ms=answer.answer_ms,
    )


def spent_by_agent(reply: dict[str, JSON]) -> Spent:
    """By all generations of an agent, from its reply."""
    usage, timing = reply["usage"], reply["timing"]
    return Spent(
        prompt_tokens=usage["prompt_tokens"],
        tokens=usage["completion_tokens"],
        total_ms=timing["total_ms"],
        load_ms=timing["load_ms"],
        prompt_ms=timing["prefill_ms"],
        answer_ms=timing["decode_ms"],
    )


class Shape:
    """The documents of one answer.

    Args:
        model: as the client named it.
        generates: of /api/generate, whose text stands at the top; else of /api/chat, where it is a message.
    """

    def __init__(self, model: str, *, generates: bool) -> None:
        self._model, self._generates = model, generates

    def part(
        self,
        text: str = "",
        *,
        thoughts: str = "",
        calls: Sequence[WrittenCall] = (),
        logprobs: Sequence[TokenLogprob] | None = None,
        end: dict[str, JSON] | None = None,
    ) -> dict[str, JSON]:
        """More of the answer, or all of it.

        Args:
            end: fields of the last document; None: it is not the last one.
        """
        said: dict[str, JSON] = {"thinking": thoughts} if thoughts else {}
        if calls:
            said["tool_calls"] = [_call(i, call) for i, call in enumerate(calls)]
        head = {"model": self._model, "created_at": now()}
        made = {**head, **self._said(text, said), "done": end is not None, **(end or {})}
        if logprobs is not None:
            made["logprobs"] = [_logprob(token) for token in logprobs]
        return made

    def _said(self, text: str, more: dict[str, JSON]) -> dict[str, JSON]:
        if self._generates:
            return {"response": text, **more}
        return {"message": {"role": "assistant", "content": text, **more}}


def ended(finish: str, spent: Spent) -> dict[str, JSON]:
    """Fields of an answer's last document. finish: stop or length; calls end with `stop` here."""
    return {"done_reason": finish, **spent.fields()}


def finish(answer: ModelAnswer) -> str:
    """Why a plain model's answer ended."""
    return "length" if answer.finish is Finish.LENGTH else "stop"


def whole(calls: Sequence[WrittenCall]) -> list[WrittenCall]:
    """Calls that can be handed out: arguments are objects here, and what was cut off is none."""
    return [call for call in calls if call.whole]


def ours(reply: dict[str, JSON]) -> dict[str, JSON]:
    """What edged adds to an agent's answer."""
    return {"edged": {name: reply[name] for name in OURS}}


def embedded(model: str, vectors: Sequence[Sequence[float]], tokens: int, total_ms: float) -> JSON:
    """The answer of /api/embed. tokens: of the texts."""
    return {
        "model": model,
        "embeddings": vectors,
        "total_duration": _ns(total_ms),
        "load_duration": 0,
        "prompt_eval_count": tokens,
    }


# -- lists -------------------------------------------------------------------------------------------------------------


def listed(title: Title) -> dict[str, JSON]:
    """An entry of /api/tags."""
    return {
        "name": tagged(title.name),
        "model": tagged(title.name),
        "modified_at": _at(title.card.modified),
        "size": title.card.bytes,
        "digest": title.digest,
        "details": details(title),
        "capabilities": capabilities(title),
    }


def running(loaded: Loaded) -> dict[str, JSON]:
    """An entry of /api/ps. Nothing of a model is in another memory than the board's."""
    entry = listed(loaded.title)
    del entry["modified_at"]
    until = time.time() + FOR_EVER_S if loaded.until is None else loaded.until
    return {
        **entry,
        "size": loaded.bytes,
        "expires_at": _at(until),
        "size_vram": 0,
        "context_length": loaded.context,
    }


def shown(title: Title) -> JSON:
    """The answer of /api/show."""
    card = title.card
    architecture = _family(title)
    about: dict[str, JSON] = {
        "general.architecture": architecture,
        f"{architecture}.context_length": card.facts.context or card.context,
    }
    parameters = f"num_ctx {card.context}\ntemperature 0"
    return {
        "modelfile": f"FROM {tagged(title.name)}",
        "parameters": parameters,
        "template": GAP_TEMPLATE if card.facts.fills_gaps and not title.is_agent else TEMPLATE,
        "license": card.licence,
        "details": details(title),
        "model_info": about,
        "capabilities": capabilities(title),
        "modified_at": _at(card.modified),
    }


def details(title: Title) -> JSON:
    """What a model is."""
    facts, family = title.card.facts, _family(title)
    return {
        "parent_model": tagged(title.card.name) if title.is_agent else "",
        "format": facts.format,
        "family": family,
        "families": [family],
        "parameter_size": facts.parameters,
        "quantization_level": facts.quantization,
    }


def capabilities(title: Title) -> list[str]:
    """What can be asked of it, in Ollama's words. An agent has its own tools, so clients that look send it none."""
    card = title.card
    if title.is_agent:
        return ["completion"]
    if card.facts.embeds:
        return ["embedding"]
    more = {"thinking": card.facts.thinks, "insert": card.facts.fills_gaps}
    return ["completion", "tools", *(name for name, has in more.items() if has)]


def _family(title: Title) -> str:
    card = title.card
    return card.facts.architecture or card.family or ("openai" if card.served else "unknown")


# -- small things ------------------------------------------------------------------------------------------------------


def now() -> str:
    """The time of day, as RFC 3339 has it."""
    return _at(time.time())


def _at(wall: float) -> str:
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _ns(ms: float) -> int:
    return max(1, round(ms * NS_PER_MS))


def _call(index: int, call: WrittenCall) -> JSON:
    function = {"index": index, "name": call.name, "arguments": call.value()}
    return {"id": f"call_{secrets.token_hex(4)}", "function": function}


def _logprob(token: TokenLogprob) -> JSON:
    likely = [{"token": text, "logprob": logprob, "bytes": list(data)} for text, data, logprob in token.top]
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.data), "top_logprobs": likely}
