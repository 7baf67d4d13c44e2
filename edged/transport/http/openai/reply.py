"""Answers and errors in OpenAI's shapes. Pure.

https://platform.openai.com/docs/api-reference/chat/object and .../chat/streaming
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

from msgspec import Struct

from edged.completions.calls import CallPiece, WrittenCall
from edged.completions.request import ModelAnswer
from edged.transport.http.core.errors import STATUS_OF
from edged.types import JSON, Fault, Finish, TokenLogprob

CHUNK = "chat.completion.chunk"
# What of an agent's reply has no place in OpenAI's shapes; it stands beside them.
OURS = ("rid", "status", "route", "tool_calls", "timing", "degraded")


class Head(Struct, frozen=True):
    """What an answer and all its chunks begin with. model: as the client named it."""

    id: str
    created: int
    model: str

    def fields(self, kind: str) -> dict[str, JSON]:
        """As JSON."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def head(model: str) -> Head:
    """Of a new answer."""
    return Head(f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), model)


def of_model(head: Head, answer: ModelAnswer, *, logprobs: bool, reasoning: bool = False) -> JSON:
    """A chat.completion of a plain model. reasoning: what it thought is asked for; clients of llama.cpp, vLLM and
    DeepSeek read it under this name."""
    message: dict[str, JSON] = {
        "role": "assistant",
        "content": answer.text if answer.text or not answer.calls else None,
        "refusal": None,
    }
    if reasoning and answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.calls:
        message["tool_calls"] = calls(answer.calls)
    choice = {
        "index": 0,
        "message": message,
        "logprobs": logprobs_content(answer.logprobs) if logprobs else None,
        "finish_reason": finish_reason(answer),
    }
    return {**head.fields("chat.completion"), "choices": [choice], "usage": model_usage(answer), **of_variant(answer)}


def of_variant(answer: ModelAnswer) -> dict[str, JSON]:
    """Which variant of the model answered, in OpenAI's field for what a model runs on; none where it has only one."""
    return {"system_fingerprint": answer.variant} if answer.variant else {}


def of_agent(head: Head, reply: dict[str, JSON]) -> JSON:
    """A chat.completion of an agent, from its reply (CONTRACT section 3)."""
    message = {"role": "assistant", "content": reply["output"], "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": agent_finish(reply)}
    usage = agent_usage(reply)
    return {**head.fields("chat.completion"), "choices": [choice], "usage": usage, "edged": ours(reply)}


def agent_finish(reply: dict[str, JSON]) -> str:
    """Why an agent's answer ended; replies that an earlier edged stored do not say."""
    return reply.get("finish") or "stop"


def chunk(
    head: Head,
    delta: dict[str, JSON],
    *,
    finish_reason: str | None = None,
    logprobs: JSON = None,
) -> dict[str, JSON]:
    """A chat.completion.chunk with one choice."""
    choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
    return {**head.fields(CHUNK), "choices": [choice]}


def finish_reason(answer: ModelAnswer) -> str:
    """Why the answer ended."""
    if answer.finish is Finish.LENGTH:
        return "length"
    return "tool_calls" if answer.calls else "stop"


def calls(made: Sequence[WrittenCall]) -> list[JSON]:
    """Calls with ids of ours."""
    return [_call(call.name, call.arguments) for call in made]


def call_piece(piece: CallPiece) -> JSON:
    """More of a call, as it stands in the delta of a chunk; the first of it has id and name."""
    if piece.name is not None:
        return {"index": piece.index, **_call(piece.name, piece.arguments)}
    return {"index": piece.index, "function": {"arguments": piece.arguments}}


def logprobs_content(tokens: Sequence[TokenLogprob]) -> JSON:
    """Log-probabilities of the content."""
    content = [
        {**_token(t.text, t.data, t.logprob), "top_logprobs": [_token(*likely) for likely in t.top]} for t in tokens
    ]
    return {"content": content, "refusal": None}


def model_usage(answer: ModelAnswer) -> JSON:
    """Tokens of a plain model's completion."""
    return _usage(answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens)


def agent_usage(reply: dict[str, JSON]) -> JSON:
    """Tokens of all of an agent's generations."""
    usage = reply["usage"]
    return _usage(usage["prompt_tokens"], usage["completion_tokens"], usage["cached_tokens"])


def ours(reply: dict[str, JSON]) -> JSON:
    """What edged adds to OpenAI's shape: how to find the request again, what was done, where the time went."""
    return {name: reply[name] for name in OURS}


def model(name: str, created: int, kind: str, context: int) -> JSON:
    """What can be named as `model`. meta, architecture: where clients of llama.cpp's server look for the context and
    for what can be read; edged: whether it is an agent or a plain model."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "edged",
        "meta": {"n_ctx": context},
        "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
        "edged": {"kind": kind},
    }


def props(context: int, *, takes_tools: bool) -> JSON:
    """Where clients of llama.cpp's server look for what a model can do."""
    return {
        "default_generation_settings": {"n_ctx": context},
        "modalities": {"vision": False, "audio": False},
        "chat_template_caps": {"supports_tools": takes_tools},
    }


# OpenAI's `type`, by status; other 4xx are invalid_request_error, everything else server_error
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def error(
    fault: Fault, *, status: int | None = None, param: str | None = None, code: str | None = None
) -> dict[str, JSON]:
    """A failure.

    Args:
        status: of the response, where it is not what the code stands for.
        code: OpenAI's own word for it, where clients look for one.
    """
    kind = _type(STATUS_OF[fault.code] if status is None else status, fault.code)
    return {"error": {"message": fault.message, "type": kind, "param": param, "code": code or fault.code}}


def _type(status: int, code: str) -> str:
    if status in TYPES:
        return TYPES[status]
    if code == "busy":
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


def _call(name: str, arguments: str) -> dict[str, JSON]:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def _token(text: str, data: bytes, logprob: float) -> dict[str, JSON]:
    return {"token": text, "bytes": list(data), "logprob": logprob}


def _usage(prompt: int, completion: int, cached: int) -> JSON:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
