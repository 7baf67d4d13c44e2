"""OpenAI's SDK: chat completions, responses with its accumulator and parser, bare texts, the list of models."""

from __future__ import annotations

import asyncio
from typing import Any

from openai import BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel
from steps import KEY, URL, tried

client: Any = OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}


class Valve(BaseModel):
    """What the model is to answer with."""

    valve: str


def response() -> object:
    made = client.responses.create(model="small", input="say")
    return made.output_text == "one two three" and made.usage.output_tokens_details.reasoning_tokens == 0


def tool() -> object:
    with client.responses.stream(model="small", input="the weather in Oslo?", tools=[WEATHER]) as stream:
        deltas = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
        call = stream.get_final_response().output[0]
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    before = stream.get_final_response().id
    answer = client.responses.create(model="small", input=[result], previous_response_id=before, tools=[WEATHER])
    return "".join(deltas) == call.arguments and answer.output_text == "It is sunny in Oslo."


def shape() -> object:
    return client.responses.parse(model="small", input="as json", text_format=Valve).output_parsed == Valve(
        valve="north"
    )


def kept() -> object:
    made = client.responses.create(model="small", input="say", store=False)
    try:
        client.responses.create(model="small", input="say", previous_response_id=made.id)
    except (NotFoundError, BadRequestError) as error:
        return error.code == "previous_response_not_found"
    return False


def chat() -> object:
    messages: Any = [{"role": "user", "content": "as json"}]
    made = client.chat.completions.parse(model="small", messages=messages, response_format=Valve)
    return made.choices[0].message.parsed == Valve(valve="north")


def chat_stream() -> object:
    messages: Any = [{"role": "user", "content": "the weather in Oslo?"}]
    nested: Any = {"type": "function", "function": {k: v for k, v in WEATHER.items() if k not in ("type", "strict")}}
    with client.chat.completions.stream(model="small", messages=messages, tools=[nested]) as stream:
        final = stream.get_final_completion()
    return final.choices[0].message.tool_calls[0].function.name == "get_weather"


def edgeds() -> object:
    with client.responses.stream(model="office", input="open the north valve") as stream:
        stream.until_done()
    return stream.get_final_response().output_text == "Valve north is now open."


async def main() -> None:
    """One after the other."""
    await tried("Responses: a text", response)
    await tried("Responses, streamed: a tool", tool)
    await tried("Responses: a shape", shape)
    await tried("Responses: what is not kept is unknown", kept)
    await tried("Responses, streamed: an agent of edged", edgeds)
    await tried("chat completions: a shape", chat)
    await tried("chat completions, streamed: a tool", chat_stream)
    await tried(
        "completions: a bare text", lambda: client.completions.create(model="small", prompt="say").choices[0].text
    )
    await tried("models: plain ones first", lambda: next(m.id for m in client.models.list()) == "small")


asyncio.run(main())
