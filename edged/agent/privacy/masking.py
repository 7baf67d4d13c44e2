"""What a question looks like on its way to an upstream: private values are placeholders there, and come back as values.
Pure.

| part of the question | what happens to it |
|---|---|
| the agent's system text, tools' names and descriptions, schemas | the operator's own words: as they are |
| values a private parameter may have (`enum`, `const`, `default`, `examples`) | placeholders |
| a client's messages, earlier turns, stop strings | placeholders for what is found in them, and for private values |
| rows that a private parameter may have (`values_sql`) | likewise, wherever they stand |
| arguments and results of calls | those under a private name are placeholders, the rest is text like any other |
| a tool that is private as a whole | is not offered; nothing of what its calls were given or gave leaves |
| a tool that the configuration has no more | likewise: what was private is not known any more |
| a client's response_schema | as its messages, names of properties included |
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from edged.agent.dialects.chat_template import write_json
from edged.agent.privacy.vault import Vault, in_json
from edged.config import Private, Tool
from edged.tools import check
from edged.types import JSON, Chat, ChatAnswer, Message, RawCall, ToolCall, ToolSpec

VALUES = ("enum", "const", "default", "examples")  # words of JSON Schema with values in them
FORMS = ("pattern", "format", "minLength", "maxLength")  # that a placeholder does not have
# What strict upstreams hold an answer to, and a placeholder is not.
FORMATS = {"email", "idn-email", "ipv4", "ipv6", "phone"}
CUT = "What you wrote does not fit. Use only the tools that there are, and follow the schema."
WHOLLY = True  # instead of names: all of it


class Masking:
    """For one question: `mask` once, then `restore`.

    Args:
        tools: all that are configured.
        detects: the agent's `mask`.
        secrets: values that are private wherever they stand in a message.
    """

    def __init__(self, tools: Mapping[str, Tool], *, detects: bool = True, secrets: Sequence[JSON] = ()) -> None:
        self._tools = tools
        self._secrets = [(str(value), value) for value in secrets]
        self.vault = Vault(detects=detects)

    def mask(self, chat: Chat, system: Sequence[Message] = (), corrections: Sequence[Message] = ()) -> Chat:
        """The question as it leaves.

        Args:
            system: goes in front of its messages, as it is.
            corrections: go after them. Errors in these are edged's own words.
        """
        every = (*system, *chat.messages, *corrections)
        self.vault.avoid(_texts(every, chat))
        specs = tuple(self._spec(spec) for spec in chat.tools)
        self._masked(chat.messages, corrections)
        masked = self._masked(chat.messages, corrections)  # now all private values are known, whichever text tells them
        schema = None if chat.response_schema is None else self._schema(chat.response_schema)
        stop = tuple(self.vault.mask(text) for text in chat.stop)
        return replace(chat, messages=(*system, *masked), tools=specs, response_schema=schema, stop=stop)

    def restore(self, answer: ChatAnswer, *, shaped: bool) -> ChatAnswer:
        """An answer with the values in it. shaped: its text is JSON."""
        text = self.vault.restore(answer.text, in_json if shaped else str)
        return replace(answer, text=text, calls=tuple(self._call(call) for call in answer.calls))

    def typed(self, text: str) -> str | None:
        """An answer in JSON where a text that is a placeholder has become the value itself: a number has no quotes.
        None: nothing of it would be different."""
        try:
            value = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            return None
        typed = self.vault.restored(value)
        return write_json(typed) if typed != self.vault.restored(value, typed=False) else None

    def _masked(self, messages: Sequence[Message], corrections: Sequence[Message]) -> list[Message]:
        return [*self._dialogue(messages), *self._dialogue(corrections, ours=True)]

    def _dialogue(self, messages: Sequence[Message], *, ours: bool = False) -> Iterator[Message]:
        """ours: results are errors that edged itself has worded."""
        made: deque[str] = deque()
        for message in messages:
            for text, value in self._secrets:
                if text in message.content and re.search(rf"(?<!\w){re.escape(text)}(?!\w)", message.content):
                    self.vault.hide(value)
            if ours and message.role != "assistant" and len(message.content) > check.MAX_PROBLEM:
                # the error was cut, and half a value at its end would not be known for one
                message = Message(message.role, write_json({"error": CUT}) if message.role == "tool" else CUT)
            if message.role == "tool":
                name = made.popleft() if made else ""
                names: Private = () if ours else self._private(name)
                yield replace(message, content=self._result(message.content, names))
                continue
            made.extend(call.name for call in message.tool_calls)
            calls = tuple(
                ToolCall(call.name, self._data(call.arguments, self._private(call.name))) for call in message.tool_calls
            )
            yield replace(message, content=self.vault.mask(message.content), tool_calls=calls)

    def _private(self, name: str) -> Private:
        tool = self._tools.get(name)
        return WHOLLY if tool is None else tool.private

    def _result(self, content: str, names: Private) -> str:
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            return self.vault.hide(content) if names is WHOLLY else self.vault.mask(content)
        return write_json(self._data(value, names))

    def _data(self, value: JSON, names: Private, path: tuple[str, ...] = ()) -> JSON:
        """JSON whose private parts, and whatever is found in the others, are placeholders."""
        if isinstance(value, dict):
            made = {}
            for key, below in value.items():
                here = (*path, key.casefold())
                if is_private(names, here):
                    made[self.vault.mask(key)] = self._hidden(below)
                else:  # names of columns and parameters are no values
                    made[key if names is WHOLLY else self.vault.mask(key)] = self._data(below, names, here)
            return made
        if isinstance(value, list):
            return [self._data(one, names, path) for one in value]
        if names is WHOLLY:
            return self._hidden(value)
        return self._leaf(value)

    def _leaf(self, value: JSON) -> JSON:
        if isinstance(value, str):
            return self.vault.mask(value)
        if isinstance(value, bool) or value is None:
            return value
        return self.vault.number(value)

    def _hidden(self, value: JSON) -> JSON:
        """All of it, down to the names in an object: they may be anything."""
        if isinstance(value, dict):
            return {self.vault.hide(key): self._hidden(below) for key, below in value.items()}
        if isinstance(value, list):
            return [self._hidden(one) for one in value]
        return value if value is None else self.vault.hide(value)

    def _spec(self, spec: ToolSpec) -> ToolSpec:
        """A tool whose private parameters take placeholders."""
        names = self._private(spec.name)
        properties = dict(spec.parameters.get("properties", {}))
        for name, schema in properties.items():
            if is_private(names, (name.casefold(),)):
                properties[name] = self._parameter(schema)
        return replace(spec, parameters={**spec.parameters, "properties": properties})

    def _parameter(self, schema: JSON) -> JSON:
        kept = {key: value for key, value in schema.items() if key not in FORMS}
        for word in VALUES:
            if word in kept:
                kept[word] = self._hidden(kept[word])
        if isinstance(kind := kept.get("type"), str) and kind not in ("string", "array", "object"):
            kept["type"] = [kind, "string"]
        return kept

    def _schema(self, value: JSON) -> JSON:
        """A client's schema, names of properties included: they come back with the answer."""
        if isinstance(value, list):
            return [self._schema(one) for one in value]
        if not isinstance(value, dict):
            return self._leaf(value)
        kept = {self.vault.mask(key): self._schema(below) for key, below in value.items()}
        if isinstance(pattern := value.get("pattern"), str) and kept["pattern"] != pattern:
            del kept["pattern"]  # a placeholder is no part of a pattern; the answer is held to the true one here
        if isinstance(form := value.get("format"), str) and form in FORMATS:
            del kept["format"]
        return kept

    def _call(self, call: RawCall) -> RawCall:
        """A call with the values in its arguments."""
        try:
            arguments = msgspec.json.decode(call.arguments or "{}")
        except (msgspec.DecodeError, RecursionError):
            return replace(call, arguments=self.vault.restore(call.arguments, in_json))
        if isinstance(arguments, dict):
            tool = self._tools.get(call.name)
            parameters = tool.parameters if tool else {}
            arguments = {
                self.vault.restore(name): self.vault.restored(
                    value, typed=parameters.get(name, {}).get("type") != "string"
                )
                for name, value in arguments.items()
            }
        return replace(call, arguments=write_json(arguments))


def is_private(names: Private, path: tuple[str, ...]) -> bool:
    """Whether what stands at a path of casefolded keys is named. A name is a key at any depth, or, with dots, keys one
    below the other. Capitals do not count: SQL knows none in its names. Where a whole tool is private nothing is named.
    """
    for name in () if isinstance(names, bool) else names:
        keys = tuple(name.casefold().split("."))
        if path[-len(keys) :] == keys or path[-1] == name.casefold():
            return True
    return False


def _texts(messages: Sequence[Message], chat: Chat) -> Iterator[str]:
    """Everything that may hold what looks like a placeholder."""
    for message in messages:
        yield message.content
        yield from (write_json(call.arguments) for call in message.tool_calls)
    for spec in chat.tools:
        yield spec.description
        yield write_json(spec.parameters)
    yield from chat.stop
    if chat.response_schema is not None:
        yield write_json(chat.response_schema)
