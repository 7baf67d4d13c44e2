"""Responses: the object with its output, in each of its states. Pure.

Ids of items are made of the response's and their place, so that a stream and the stored response have the same ones.

https://platform.openai.com/docs/api-reference/responses/object
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from edged.completions.calls import WrittenCall
from edged.completions.request import ModelAnswer
from edged.transport.http.openai import reply as chats
from edged.transport.http.responses.items import Item
from edged.types import JSON, Fault, Finish, TokenLogprob

Response = dict[str, Any]

PENDING = "in_progress"
CUT = {"reason": "max_output_tokens"}


def begun(id: str, created: float, echo: dict[str, JSON]) -> Response:
    """A response that is under way. echo: what it says of how it was asked for."""
    return {
        "id": id,
        "object": "response",
        "created_at": int(created),
        "status": PENDING,
        "error": None,
        "incomplete_details": None,
        "output": [],
        "usage": None,
        **echo,
    }


def of_model(response: Response, answer: ModelAnswer, *, logprobs: bool, reasoning: bool) -> Response:
    """The response that a plain model's answer makes. reasoning: what it thought is told."""
    id, cut = _bare(response), answer.finish is Finish.LENGTH
    output: list[Item] = [thought(id, answer.reasoning)] if reasoning and answer.reasoning else []
    if answer.text or not answer.calls:
        tokens = answer.logprobs if logprobs else ()
        status = "incomplete" if cut and not answer.calls else "completed"
        output.append(message(id, answer.text, status=status, logprobs=tokens))
    output += [called(id, place, call) for place, call in enumerate(answer.calls)]
    made = ended(response, "incomplete" if cut else "completed", output, chats.model_usage(answer))
    return {**made, **({"edged": {"variant": answer.variant}} if answer.variant else {})}


def of_agent(response: Response, reply: dict[str, JSON]) -> Response:
    """The response that an agent's reply makes (CONTRACT section 3), of whatever status."""
    ours = {"edged": chats.ours(reply)}
    if reply["status"] == "done":
        cut = chats.agent_finish(reply) == "length"
        status = "incomplete" if cut else "completed"
        output = [message(_bare(response), reply["output"] or "", status=status)]
        return {**ended(response, status, output, chats.agent_usage(reply)), **ours}
    if reply["status"] == "cancelled":
        return {**cancelled(response), **ours}
    failure = reply["error"] or {"code": "internal", "message": "there is no answer"}
    return {**failed(response, failure["code"], failure["message"]), **ours}


def ended(response: Response, status: str, output: Sequence[Item], usage: JSON) -> Response:
    """With its output. usage: in chat completions' shape."""
    return {
        **response,
        "status": status,
        "incomplete_details": CUT if status == "incomplete" else None,
        "output": [*output],
        "usage": _usage(usage),
        "completed_at": int(time.time()) if status == "completed" else None,
    }


def failed(response: Response, code: str, message: str) -> Response:
    """Without an answer."""
    return {**response, "status": "failed", "error": {"code": code, "message": message}}


def cancelled(response: Response) -> Response:
    """Ended by its client."""
    return {**response, "status": "cancelled"}


def failure(response: Response, error: Fault, code: str | None) -> Response:
    """As `failed`. code: OpenAI's own word, where it has one."""
    return failed(response, code or error.code, error.message)


# -- items -------------------------------------------------------------------------------------------------------------


def thought(id: str, text: str) -> Item:
    """What was thought. id: without its beginning, as of all items here."""
    return {"id": f"rs_{id}", "type": "reasoning", "summary": [{"type": "summary_text", "text": text}]}


def message(id: str, text: str, *, status: str = "completed", logprobs: Sequence[TokenLogprob] = ()) -> Item:
    """What was said."""
    return {
        "id": f"msg_{id}",
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": [part(text, logprobs)],
    }


def part(text: str, logprobs: Sequence[TokenLogprob] = ()) -> Item:
    """The one part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs_of(logprobs)}


def called(id: str, place: int, call: WrittenCall) -> Item:
    """A call, as far as it was written."""
    status = "completed" if call.whole else "incomplete"
    return {**call_head(id, place, call.name), "status": status, "arguments": call.arguments}


def call_head(id: str, place: int, name: str) -> Item:
    """A call that is being written. place: among the calls."""
    return {
        "id": f"fc_{id}_{place}",
        "type": "function_call",
        "status": PENDING,
        "call_id": f"call_{id}_{place}",
        "name": name,
        "arguments": "",
    }


def logprobs_of(tokens: Sequence[TokenLogprob]) -> list[JSON]:
    """Log-probabilities of a text."""
    listed: list[JSON] = chats.logprobs_content(tokens)["content"]
    return listed


def bare(id: str) -> str:
    """An id without its beginning."""
    return id.partition("_")[2]


def _bare(response: Response) -> str:
    return bare(response["id"])


def _usage(chat: JSON) -> JSON:
    cached = chat["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": chat["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": chat["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},  # thoughts are counted as the rest of the answer
        "total_tokens": chat["total_tokens"],
    }
