"""What servers of the OpenAI API send, byte for byte as far as it is theirs: streams of the same two answers, and their
errors. None was taken from the wire: each is written from what its `source` documents or does; models' names and ids
are made up. llama-server is also tried for real (test_upstream_real.py), as llama-cpp-python's server is.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

JSON = Any
TEXT = "The tank is half full."  # what every stream says
THOUGHT = "I look at it."  # ... after this, where its server splits thoughts off
CALL = ("set_valve", {"valve": "north", "position": "open"})  # what every stream of a call calls
USAGE = {"prompt_tokens": 21, "completion_tokens": 9, "total_tokens": 30}


class Recorded(NamedTuple):
    """A server's two streams.

    source: what they were made from. base: of its paths. text, calls: the bodies. thought: what it splits off. counted:
    (prompt, completion) tokens, None where it does not count. stop: what the request asked the text to end before.
    """

    source: str
    base: str
    text: bytes
    calls: bytes
    thought: str = ""
    counted: tuple[int, int] | None = (21, 9)
    stop: tuple[str, ...] = ()


class Refused(NamedTuple):
    """A server's error: the status and body, or what it sends after it has begun. means: what the caller gets, by the
    name of its type; words: of it."""

    status: int
    body: bytes
    means: str
    words: str
    stream: bool = False


def data(*values: JSON, end: str = "\n\n", done: bool = True) -> bytes:
    """Events."""
    texts = [value if isinstance(value, str) else "data: " + json.dumps(value) for value in values]
    return "".join(text + end for text in [*texts, *(["data: [DONE]"] if done else [])]).encode()


def chunk(delta: JSON, finish: str | None = None, **more: JSON) -> dict[str, JSON]:
    """One chunk as OpenAI has it."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_790_000_000, "model": "m"}
    return {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


def counted(**more: JSON) -> dict[str, JSON]:
    """The usage by itself."""
    return {**chunk({}), "choices": [], "usage": {**USAGE, **more}}


def tool(arguments: JSON, **more: JSON) -> dict[str, JSON]:
    """A delta with a call."""
    function = {"name": CALL[0], "arguments": arguments}
    return {"tool_calls": [{"type": "function", "function": function, **more}]}


def more_of(arguments: str, index: int | None = 0) -> dict[str, JSON]:
    """A delta with more of its arguments."""
    return {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}


def block(thought: str) -> dict[str, JSON]:
    """One of LiteLLM's blocks."""
    return {"type": "thinking", "thinking": thought, "signature": None}


ARGUMENTS = json.dumps(CALL[1])
ROLE = {"role": "assistant", "content": ""}

SERVERS = {
    "vllm": Recorded(
        "vllm/entrypoints/openai: a thought in `reasoning`, the last delta with the finish, usage null until it comes",
        "/v1",
        data(
            chunk(ROLE, usage=None),
            chunk({"reasoning": "I look "}),
            chunk({"reasoning": "at it."}),
            chunk({"content": "The tank is"}),
            chunk({"content": " half full."}, "stop", stop_reason=None),
            counted(),
        ),
        data(
            chunk(ROLE),
            chunk({"reasoning": THOUGHT}),
            chunk(tool("", id="chatcmpl-tool-1", index=0)),
            chunk(more_of('{"valve": "north", ')),
            chunk(more_of('"position": "open"}'), "stop"),  # a named tool_choice ends like this
            counted(),
        ),
        thought=THOUGHT,
    ),
    "vllm-2025": Recorded(
        "vllm before 0.12: the thought in `reasoning_content`; usage with every chunk (continuous_usage_stats)",
        "/v1",
        data(
            chunk(ROLE, usage={"prompt_tokens": 21, "completion_tokens": 0, "total_tokens": 21}),
            chunk({"reasoning_content": THOUGHT}, usage={**USAGE, "completion_tokens": 5}),
            chunk({"content": TEXT}, usage={**USAGE, "completion_tokens": 9}),
            chunk({"content": ""}, "stop", usage=USAGE),
        ),
        data(
            chunk(ROLE),
            chunk({"reasoning_content": THOUGHT}),
            chunk(tool(ARGUMENTS, id="t", index=0)),
            chunk({}, "tool_calls", usage=USAGE),
        ),
        thought=THOUGHT,
    ),
    "ollama": Recorded(
        "ollama openai/openai.go: role and content in every delta, `reasoning`, a call whole and the finish after it",
        "/v1",
        data(
            chunk({"role": "assistant", "content": "", "reasoning": THOUGHT}),
            *(chunk({"role": "assistant", "content": word}) for word in ("The tank", " is half", " full.")),
            chunk(ROLE, "stop"),
            counted(),
        ),
        data(
            chunk({"role": "assistant", "content": "", "reasoning": THOUGHT}),
            chunk({**ROLE, **tool('{"position":"open","valve":"north"}', id="call_1", index=0)}),
            chunk(ROLE, "tool_calls"),
            counted(),
        ),
        thought=THOUGHT,
    ),
    "ollama-2024": Recorded(
        "ollama before 0.1.40, ollama/ollama#4357: finish_reason is empty to the end, no usage; a call has no index",
        "/v1",
        data(chunk({"role": "assistant", "content": TEXT}, ""), chunk(ROLE, "")),
        data(chunk({**ROLE, **tool(ARGUMENTS, id="call_1")}, ""), chunk(ROLE, "")),
        counted=None,
    ),
    "llama-server": Recorded(
        "llama.cpp tools/server: content null at first, reasoning_content, timings with the usage",
        "/v1",
        data(
            chunk({"role": "assistant", "content": None}),
            chunk({"reasoning_content": THOUGHT}),
            *(chunk({"content": word}) for word in ("The", " tank is half full.")),
            chunk({}, "stop"),
            {**counted(prompt_tokens_details={"cached_tokens": 20}), "timings": {"cache_n": 20, "predicted_ms": 5.1}},
        ),
        data(
            chunk({"role": "assistant", "content": None}),
            chunk({"reasoning_content": THOUGHT}),
            chunk(tool("{", id="abc", index=0)),
            *(chunk(more_of(piece)) for piece in ('"valve":"north"', ',"position":', '"open"}')),
            chunk({}, "tool_calls"),
            counted(),
        ),
        thought=THOUGHT,
    ),
    "mlx_lm.server": Recorded(
        "mlx-lm 0.32.2 mlx_lm/server.py: keepalive comments, role in every delta, the usage as a chat.completion",
        "/v1",
        data(
            ": keepalive 0/21",
            ": keepalive 21/21",
            chunk({"role": "assistant", "reasoning": THOUGHT}),
            chunk({"role": "assistant", "content": TEXT}),
            chunk({"role": "assistant"}, "stop"),
            {**counted(), "object": "chat.completion", "system_fingerprint": "0.32.2"},
        ),
        data(
            ": keepalive 21/21",
            chunk({"role": "assistant", "reasoning": THOUGHT}),
            chunk({"role": "assistant", **tool(ARGUMENTS, id="5b", index=0)}),
            chunk({"role": "assistant"}, "tool_calls"),
            {**counted(), "object": "chat.completion"},
        ),
        thought=THOUGHT,
    ),
    "ovms": Recorded(
        "openvinotoolkit/model_server docs/model_server_rest_api_chat.md: /v3, no id, the stop string is in the stream",
        "/v3",
        data(
            *(
                {"choices": [{"index": 0, "logprobs": None, "finish_reason": finish, "delta": {"content": text}}]}
                for text, finish in (("The tank is half", None), (" full.\nE", None), ("ND", "stop"))
            ),
            {"choices": [], "object": "chat.completion.chunk", "usage": USAGE},
        ),
        data(
            {"choices": [{"index": 0, "finish_reason": None, "delta": tool("", id="x1", index=0)}]},
            {"choices": [{"index": 0, "finish_reason": None, "delta": more_of(ARGUMENTS)}]},
            {"choices": [{"index": 0, "finish_reason": "tool_calls", "delta": {}}]},
            {"choices": [], "usage": USAGE},
        ),
        stop=("\nEND",),
    ),
    "foundry-local-v2": Recorded(
        "foundry-local-sdk 2.2.1 and its web service: CRLF, no usage, a call without index, its arguments an object",
        "/v1",
        data(chunk(ROLE), chunk({"content": TEXT}), chunk({"content": ""}, "stop"), end="\r\n\r\n"),
        data(chunk({**ROLE, **tool(CALL[1], id="call_1")}), chunk({}, "tool_calls"), end="\r\n\r\n"),
        counted=None,
    ),
    "litellm": Recorded(
        "BerriAI/litellm docs reasoning_content.md: thinking_blocks beside it, provider_specific_fields, usage last",
        "/v1",
        data(
            chunk({**ROLE, "provider_specific_fields": None, "thinking_blocks": [block("I look ")]}),
            chunk({"reasoning_content": "at it.", "thinking_blocks": [block("at it.")]}),
            chunk({"content": TEXT}, citations=None),
            chunk({}, "stop"),
            counted(cost=0.00001),
        ),
        data(
            chunk({**ROLE, "reasoning_content": THOUGHT, "function_call": None}),
            chunk({**tool("", id="call_1", index=0), "function_call": None}),
            chunk({**more_of(ARGUMENTS), "role": None, "content": None}),
            chunk({}, "tool_calls"),
            counted(),
        ),
        thought=THOUGHT,
    ),
    "openrouter": Recorded(
        "openrouter.ai docs, streaming and errors: comments, reasoning_details, the usage on a choice",
        "/api/v1",
        data(
            ": OPENROUTER PROCESSING",
            ": OPENROUTER PROCESSING",
            chunk({**ROLE, "reasoning": THOUGHT, "reasoning_details": [{"type": "reasoning.text", "text": THOUGHT}]}),
            chunk({"content": "The tank is half "}),
            ": OPENROUTER PROCESSING",
            chunk({"content": "full."}),
            chunk(ROLE, "stop", native_finish_reason="STOP"),
            chunk(ROLE, usage=USAGE),
        ),
        data(
            ": OPENROUTER PROCESSING",
            chunk({**ROLE, "reasoning_details": [{"type": "reasoning.summary", "summary": THOUGHT}]}),
            chunk({**ROLE, **tool(ARGUMENTS, id="tool_0", index=0)}),
            chunk(ROLE, "tool_calls"),
            chunk(ROLE, usage=USAGE),
        ),
        thought=THOUGHT,
    ),
    "bare": Recorded(
        "the row `all`: no finish, no [DONE] and no usage but at the end, calls without id and index",
        "/v1",
        data(chunk({"content": TEXT}), counted(), done=False),
        data(chunk(tool(CALL[1])), counted(), done=False),
    ),
}


def error(**fields: JSON) -> bytes:
    """An error object as a body."""
    return json.dumps({"error": fields}).encode()


FLAT = {"object": "error", "message": "Internal error", "type": "InternalServerError", "param": None, "code": 500}
BEGUN = chunk({"content": "The tank"})
OPENROUTER = {
    **chunk({"content": ""}, "error"),
    "error": {"code": 502, "message": "Provider disconnected", "metadata": {"provider_name": "x"}},
}
REFUSALS = {
    "vllm-needs-a-flag-for-tools": Refused(
        400,
        error(message='"auto" tool choice requires --enable-auto-tool-choice', type="BadRequestError", code=400),
        "ModelUnavailable",
        "--enable-auto-tool-choice",
    ),
    "vllm-2025-flat": Refused(404, json.dumps({**FLAT, "code": 404}).encode(), "NoLink", "Internal error"),
    "vllm-2025-flat-with-200": Refused(200, json.dumps(FLAT).encode(), "NoLink", "Internal error"),
    "vllm-prompt-too-long": Refused(
        400,
        error(message="max_tokens must be at least 1, got -812.", type="BadRequestError", code=400),
        "ModelUnavailable",
        "got -812",
    ),
    "ollama-unknown-model": Refused(
        404, error(message="model 'x' not found", type="api_error", param=None, code=None), "NoLink", "not found"
    ),
    "llama-server-after-the-start": Refused(
        200,
        data(BEGUN, {"error": {"code": 500, "message": "Invalid input batch", "type": "server_error"}}, done=False),
        "NoLink",
        "Invalid input batch",
        stream=True,
    ),
    "mlx-error-is-a-text": Refused(404, b'{"error": "Repository Not Found"}', "NoLink", "Repository Not Found"),
    "mlx-error-is-a-text-400": Refused(400, b'{"error": "max_tokens"}', "ModelUnavailable", "max_tokens"),
    "ovms-no-such-graph": Refused(
        404, b'{"error":"Mediapipe graph definition with requested name is not found"}', "NoLink", "not found"
    ),
    "foundry-local-not-loaded": Refused(
        500, b"No OpenAIService provider found for modelName: phi-4-mini", "NoLink", "HTTP 500"
    ),
    "litellm-code-is-a-text": Refused(
        401,
        error(message="Authentication Error, Invalid proxy server token", type="auth_error", code="401"),
        "NoLink",
        "Invalid proxy server token",
    ),
    "litellm-after-the-start": Refused(
        200,
        data(BEGUN, {"error": {"message": "litellm.Timeout", "type": None, "param": None, "code": "408"}}, done=False),
        "NoLink",
        "litellm.Timeout",
        stream=True,
    ),
    "openrouter-no-credit": Refused(
        402, error(code=402, message="Insufficient credits"), "NoLink", "Insufficient credits"
    ),
    "openrouter-after-the-start": Refused(200, data(BEGUN, OPENROUTER), "NoLink", "Provider disconnected", stream=True),
    "openrouter-before-the-first-word": Refused(
        200, data(": OPENROUTER PROCESSING", OPENROUTER), "NoLink", "Provider disconnected", stream=True
    ),
    "finish-error-alone": Refused(200, data(BEGUN, chunk({}, "error")), "NoLink", "finish_reason", stream=True),
    "flat-after-the-start": Refused(200, data(BEGUN, FLAT, done=False), "NoLink", "Internal error", stream=True),
    "nothing-but-done": Refused(200, data(), "NoLink", "not an answer", stream=True),
    "cut": Refused(200, data(BEGUN, done=False), "NoLink", "in the middle", stream=True),
}
