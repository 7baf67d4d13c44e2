"""What clients of other servers send beyond what OpenAI documents. It becomes a request as OpenAI documents it,
samplers that OpenAI does not have, and the names of what has no effect. Pure.

Ignored is only what leaves the answer's meaning as it is. What would change it and cannot be done is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from msgspec import Struct

from edged.transport.http.core.headers import safe
from edged.types import JSON
from edged.wire.dialogue import BadParameter
from edged.wire.sampling import Samplers, read_samplers

UNLIMITED = (-1, -2)  # llama.cpp's words, and Ollama's second one, for no limit of tokens
RANDOM_SEEDS = (-1,)
LIMITS = ("max_tokens", "max_completion_tokens")
# By nature of no effect, whatever their value: who asks, and what a cache of OpenAI's would do.
SILENT = (
    "user",
    "safety_identifier",
    "metadata",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
)
# Documented by OpenAI, and without effect here: the values that ask for what is done anyhow. Others are named.
WITHOUT_EFFECT: dict[str, tuple[JSON, ...]] = {
    "store": (False,),
    "service_tier": ("auto", "default"),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "prediction": (),
}
# Parameters of other servers that change the answer: why they are refused, and what to do instead.
REFUSED = {
    "format": "name the shape in response_format",
    "grammar": "name the shape in response_format",
    "json_schema": "name the shape in response_format",
    "structured_outputs": "name the shape in response_format",
    "guided_json": "name the shape in response_format",
    "guided_regex": "name the shape in response_format",
    "guided_choice": "name the shape in response_format",
    "guided_grammar": "name the shape in response_format",
    "system": "write it as a message of role system",
    "prompt": "write it as a message of role user",
    "input": "write it as a message of role user",
    "images": "the models read text",
    "n_predict": "name the bound in max_tokens",
    "num_predict": "name the bound in max_tokens",
    "max_output_tokens": "name the bound in max_tokens",
    "min_tokens": "an answer ends where the model ends it",
    "ignore_eos": "an answer ends where the model ends it",
    "best_of": "one choice is made",
    "use_beam_search": "one choice is made",
    "echo": "the prompt is not part of the answer",
    "continue_final_message": "an answer that is begun is not continued",
    "stop_token_ids": "name texts in stop",
    "bad_words": "words cannot be forbidden",
    "allowed_token_ids": "tokens cannot be forbidden",
}
HARMLESS_VALUES: dict[str, JSON] = {"best_of": 1, "min_tokens": 0}  # beside false, which asks for none of these
MEANS_SOMETHING = ("model", "messages", "web_search_options")  # of which an empty value is not the same as none

MESSAGE_FIELDS = {
    "role", "content", "name", "tool_calls", "tool_call_id",
    "refusal", "audio", "function_call", "annotations", "parsed",
}  # fmt: skip
CALL_FIELDS = {"id", "type", "function", "custom", "index"}
CALLED_FIELDS = {"name", "arguments", "parsed_arguments"}
TOOL_FIELDS = {"type", "function", "custom"}
FUNCTION_FIELDS = {"name", "description", "parameters", "strict"}
SCHEMA_FIELDS = {"name", "schema", "description", "strict"}
PART_FIELDS = {"type", "text", "refusal", "prompt_cache_breakpoint", "image_url", "input_audio", "file"}
# The switch for what a model thinks. Whether it thinks is its own matter: other ways to ask for that have no effect but
# that what is thought is told, and stay named among what is ignored.
SHOW_REASONING = "include_reasoning"
REASONING_PARTS = ("thinking", "redacted_thinking", "reasoning")  # of an assistant's content


SAMPLERS = {**{name: name for name in Samplers.__struct_fields__}, "repetition_penalty": "repeat_penalty"}


class Read(Struct, frozen=True):
    """body: as OpenAI documents it. ignored: names of what has no effect, each once. reasoning: whether what the model
    thinks is asked for."""

    body: dict[str, JSON]
    samplers: Samplers
    ignored: tuple[str, ...]
    reasoning: bool = False


def read(raw: dict[str, JSON], documented: Collection[str], refused: Mapping[str, str] = REFUSED) -> Read:
    """A request as it came.

    Args:
        documented: the parameters that OpenAI documents.
        refused: as REFUSED.

    Raises:
        BadParameter: it asks for what cannot be done, and would get something else; or a value is of the wrong kind.
    """
    ignored: dict[str, None] = {}
    body: dict[str, JSON] = {}
    samplers: dict[str, JSON] = {}
    for name, value in raw.items():
        if value is None or (name not in MEANS_SOMETHING and value in ("", [], {})) or name in SILENT:
            continue
        if name == SHOW_REASONING and isinstance(value, bool):
            continue
        if name in SAMPLERS:
            samplers[SAMPLERS[name]] = value
        elif name in WITHOUT_EFFECT:
            if value not in WITHOUT_EFFECT[name]:
                ignored[name] = None
        elif name in documented:
            body[name] = value
        elif name in refused and value is not False and value != HARMLESS_VALUES.get(name):
            raise BadParameter(name, f"is not supported: {refused[name]}")
        elif name not in refused:
            ignored[safe(name)] = None
    _limits(body)
    _tool_choice(body)
    if body.get("seed") in RANDOM_SEEDS:
        del body["seed"]
    if not body.get("logprobs") and body.get("top_logprobs") == 0:
        body.pop("top_logprobs", None)
    keep = _Keep(ignored)
    _each(body, "messages", lambda one: _message(one, keep))
    _each(body, "tools", lambda one: _tool(one, keep))
    if isinstance(options := body.get("stream_options"), dict):
        body["stream_options"] = keep(options, {"include_usage", "include_obfuscation"}, "stream_options")
    if isinstance(shape := body.get("response_format"), dict):
        body["response_format"] = _response_format(shape, keep)
    return Read(body, read_samplers(samplers), tuple(ignored), _asks_for_reasoning(raw))


def _asks_for_reasoning(raw: dict[str, JSON]) -> bool:
    """Whether what the model thinks is to be told beside its answer. OpenRouter's and vLLM's switch comes first; else
    who asks a model to think, in the words of whatever server, wants to see it."""
    if isinstance(shown := raw.get(SHOW_REASONING), bool):
        return shown
    reasoning, template = raw.get("reasoning"), raw.get("chat_template_kwargs")
    if isinstance(reasoning, dict):
        if reasoning.get("exclude") is True or reasoning.get("enabled") is False:
            return False
        return reasoning.get("effort") != "none"
    if isinstance(template, dict):
        for name in ("enable_thinking", "thinking"):
            if isinstance(thinks := template.get(name), bool):
                return thinks
    if isinstance(raw.get("think"), bool):
        return raw["think"] is True
    efforts = (raw.get("reasoning_effort"), raw.get("think"))
    return any(isinstance(effort, str) and effort not in ("", "none") for effort in efforts)


def _limits(body: dict[str, JSON]) -> None:
    """Of both names for one bound the smaller counts."""
    for name in LIMITS:
        if body.get(name) in UNLIMITED:
            del body[name]
    one, other = (body.get(name) for name in LIMITS)
    if isinstance(one, int) and isinstance(other, int):
        body["max_tokens"] = min(one, other)
        del body["max_completion_tokens"]


def _tool_choice(body: dict[str, JSON]) -> None:
    """Nothing to choose from: whatever leaves the model free means nothing."""
    chosen = body.get("tool_choice")
    if isinstance(chosen, dict) and set(chosen) == {"type"} and chosen["type"] in ("auto", "none", "required"):
        body["tool_choice"] = chosen = chosen["type"]
    if chosen in ("auto", "none") and not body.get("tools"):
        del body["tool_choice"]


class _Keep:
    """Keeps the known fields of a part of the request, and notes the names of the others."""

    def __init__(self, ignored: dict[str, None]) -> None:
        self._ignored = ignored

    def __call__(self, part: dict[str, JSON], fields: Collection[str], where: str) -> dict[str, JSON]:
        for name, value in part.items():
            if name not in fields and value is not None:
                self.note(f"{where}.{safe(name)}")
        return {name: value for name, value in part.items() if name in fields}

    def note(self, name: str) -> None:
        """It has no effect."""
        self._ignored[name] = None


def _each(part: dict[str, JSON], name: str, change: Callable[[dict[str, JSON]], dict[str, JSON]]) -> None:
    """Change each object in a list. What is of another kind is left to the check that names it."""
    given = part.get(name)
    if isinstance(given, list):
        part[name] = [change(one) if isinstance(one, dict) else one for one in given]


def _message(message: dict[str, JSON], keep: _Keep) -> dict[str, JSON]:
    made = keep(message, MESSAGE_FIELDS, "messages")
    by_model = made.get("role") == "assistant"
    if by_model and isinstance(parts := made.get("content"), list):
        kept = [part for part in parts if not (isinstance(part, dict) and part.get("type") in REASONING_PARTS)]
        if len(kept) < len(parts):
            keep.note("messages.content.thinking")
        made["content"] = kept
    _each(made, "content", lambda part: keep(part, PART_FIELDS, "messages.content"))
    _each(made, "tool_calls", lambda call: _call(call, keep))
    if by_model and made.get("content") is None and made.get("refusal") is None and not made.get("tool_calls"):
        made["content"] = ""  # all it wrote was reasoning
    return made


def _call(call: dict[str, JSON], keep: _Keep) -> dict[str, JSON]:
    made = keep(call, CALL_FIELDS, "messages.tool_calls")
    if isinstance(function := made.get("function"), dict):
        made["function"] = keep(function, CALLED_FIELDS, "messages.tool_calls.function")
    return made


def _tool(tool: dict[str, JSON], keep: _Keep) -> dict[str, JSON]:
    made = keep(tool, TOOL_FIELDS, "tools")
    if isinstance(function := made.get("function"), dict):
        made["function"] = keep(function, FUNCTION_FIELDS, "tools.function")
    return made


def _response_format(shape: dict[str, JSON], keep: _Keep) -> dict[str, JSON]:
    """A schema counts wherever servers look for one, and needs no name."""
    beside: Any = shape.get("schema")
    made = keep(shape, {"type", "json_schema", "schema"}, "response_format")
    made.pop("schema", None)
    named = made.get("json_schema")
    if made.get("type") in ("json_object", "json_schema") and beside is not None and named is None:
        made = {"type": "json_schema", "json_schema": {"name": "answer", "schema": beside}}
    elif isinstance(named, dict):
        made["json_schema"] = {"name": "answer", **keep(named, SCHEMA_FIELDS, "response_format.json_schema")}
    return made
