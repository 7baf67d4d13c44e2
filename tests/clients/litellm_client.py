"""LiteLLM: chat completions with all that its users send, responses, bare texts and the list of models."""

from __future__ import annotations

import asyncio
from typing import Any

import litellm
from steps import KEY, URL, tried

TO: dict[str, Any] = {"model": "openai/small", "api_base": f"{URL}/v1", "api_key": KEY}
HISTORY = [
    {"role": "user", "content": "hi", "cache_control": {"type": "ephemeral"}},
    {
        "role": "assistant",
        "content": "Hello.",
        "reasoning_content": "They say hi.",
        "thinking_blocks": [{"type": "thinking", "thinking": "They say hi.", "signature": "x"}],
        "provider_specific_fields": {"a": 1},
    },
    {"role": "user", "content": "say"},
]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def history() -> bool:
    return bool(litellm.completion(messages=HISTORY, **TO).choices[0].message.content == "one two three")


def streamed() -> bool:
    chunks = list(litellm.completion(messages=HISTORY, stream=True, **TO))
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "one two three"


def tool_loop() -> bool:
    messages: list[Any] = [{"role": "user", "content": "the weather in Oslo?"}]
    message = litellm.completion(messages=messages, tools=[WEATHER], **TO).choices[0].message
    messages += [message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}]
    answer = litellm.completion(messages=messages, tools=[WEATHER], **TO).choices[0].message.content
    return bool(answer == "It is sunny in Oslo.")


def others() -> bool:
    more = {"top_k": 40, "min_p": 0.1, "repetition_penalty": 1.1, "user": "me", "seed": 1, "logit_bias": {}}
    return bool(litellm.completion(messages=HISTORY, **more, **TO).choices[0].message.content == "one two three")


def responses() -> bool:
    first = litellm.responses(input="say", **TO)
    second = litellm.responses(input="say", previous_response_id=first.id, **TO)
    return bool(second.output[0].content[0].text == "one two three")


def text() -> bool:
    made = litellm.text_completion(prompt="say", **{**TO, "model": "text-completion-openai/small"})
    return bool(made.choices[0].text == "one two three")


def refused() -> bool:
    try:
        litellm.completion(messages=HISTORY, n=2, **TO)
    except litellm.BadRequestError as error:
        return "n: " in str(error)
    return False


def edgeds() -> bool:
    made = litellm.completion(
        messages=[{"role": "user", "content": "open the north valve"}], **{**TO, "model": "openai/office"}
    )
    return bool(made.choices[0].message.content == "Valve north is now open.")


async def main() -> None:
    """One after the other."""
    litellm.suppress_debug_info = True
    await tried("chat completions: history of other servers", history)
    await tried("chat completions, streamed: the same", streamed)
    await tried("chat completions: a tool", tool_loop)
    await tried("chat completions: parameters of other servers", others)
    await tried("chat completions: what cannot be done is refused by name", refused)
    await tried("chat completions: an agent of edged", edgeds)
    await tried("Responses: going on from one", responses)
    await tried("completions: a bare text", text)


asyncio.run(main())
