"""What edged says itself, in an answer or instead of one: what it knows and a model could only get wrong. A call that
worked (`say`), one that failed, a read that found nothing, what no tool can do, and a call that may not be meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edged.agent import language
from edged.agent.dialects.chat_template import write_json
from edged.config import Agent
from edged.errors import ToolFailed
from edged.tools.toolbox import Toolbox
from edged.tools.values import complete, sentence
from edged.types import JSON, PastTurn, Request, ToolCall, ToolRecord

MOST_QUOTED = 160  # characters of a request, or of a call, that are said again


class OwnWords:
    """Of one request. Where it asks for a shape there are none: a shape holds no sentences of edged's."""

    def __init__(self, agent: Agent, request: Request, toolbox: Toolbox) -> None:
        self._agent, self._request, self._toolbox = agent, request, toolbox

    @property
    def _shaped(self) -> bool:
        return self._request.response_schema is not None

    @property
    def _language(self) -> str:
        texts = [self._request.messages[-1].content, self._agent.system]
        return language.chosen(self._agent.language, self._request.language, texts)

    def done(self, records: Sequence[ToolRecord]) -> str | None:
        """That these calls worked; None: a model has to word what came of them."""
        sentences: list[str] = []
        for record in records:
            tool = self._toolbox.get(record.name)  # None: the configuration changed after a crash
            if self._shaped or not record.ok or tool is None or not tool.say:
                return None
            arguments = complete(tool.parameters, record.arguments)
            sentences.append(sentence(tool.say, tool.parameters, arguments))
        return " ".join(sentences)

    def nothing(self, records: Sequence[ToolRecord]) -> str | None:
        """The answer where what was read holds nothing; None: there is something to word, or to do about an error. A
        model that is asked to word nothing makes something up."""
        read = [record for record in records if record.ok]
        if not read or not records[-1].ok or self._shaped:
            return None
        sentences = dict[str, None]()  # in order, each once
        for record in read:
            tool = self._toolbox.get(record.name)
            if tool is None or not tool.is_nothing(record.result):
                return None
            template = tool.say_none
            if template is None:
                template = language.NOTHING_FOUND[self._language]
            arguments = complete(tool.parameters, record.arguments)
            sentences[sentence(template, tool.parameters, arguments)] = None
        return " ".join(sentences)

    def failed(self, records: Sequence[ToolRecord]) -> str:
        """What an answer begins with: the calls that failed. A model that words the rest may tell as if they had
        worked."""
        return "" if self._shaped else failed(records, self._language)

    def unable(self) -> str:
        """That no tool can tell or do what was asked. ToolFailed: the request asks for a shape."""
        return self._instead((), self._agent.unable or unable(self._request.messages[-1].content, self._language))

    def asking(self, calls: Sequence[ToolCall], records: Sequence[ToolRecord]) -> str:
        """Whether to make these calls, behind what was done before."""
        done, question = self.done(records) if records else None, self._question(calls, self._language)
        return f"{done} {question}" if done else question

    def is_confirmed(self, calls: Sequence[ToolCall], history: Sequence[PastTurn]) -> bool:
        """Whether just that was asked last, in whatever language, and the answer is a plain yes."""
        *before, last = self._request.messages
        earlier = before or [message for turn in history[-1:] for message in turn.messages]
        if not earlier or earlier[-1].role != "assistant" or not language.is_yes(last.content):
            return False
        return earlier[-1].content.endswith(tuple(self._question(calls, each) for each in language.ASKED))

    def _question(self, calls: Sequence[ToolCall], spoken: str) -> str:
        return language.ASKED[spoken].format(what="; ".join(self._meant(call) for call in calls))

    def _meant(self, call: ToolCall) -> str:
        """A call by what its tool is for, with its values in full: a yes to them has it made."""
        tool, values = self._toolbox.get(call.name), _values(call.arguments)
        does = tool.description.strip().rstrip(".") if tool and tool.description else call.name
        return f"{does} ({values})" if values else does

    def outside(self, records: Sequence[ToolRecord], name: str, value: JSON) -> str:
        """That a parameter does not allow this value, after what was done. Raises as `unable`."""
        return self._instead(records, language.OUTSIDE[self._language].format(name=name, value=write_json(value)))

    def clock_unset(self, records: Sequence[ToolRecord]) -> str:
        """That a time cannot be counted from now, after what was done. Raises as `unable`."""
        return self._instead(records, language.CLOCK_UNSET[self._language])

    def not_there(self, records: Sequence[ToolRecord], name: str, value: JSON) -> str:
        """That a value is none of those there are, after what was done. Raises as `unable`."""
        return self._instead(records, language.NOT_THERE[self._language].format(name=name, value=write_json(value)))

    def _instead(self, records: Sequence[ToolRecord], text: str) -> str:
        if self._shaped:
            raise ToolFailed(text)
        done = self.done(records)
        return f"{done} {text}" if done else text

    def lost(self, records: Sequence[ToolRecord]) -> list[ToolRecord]:
        """Writes that failed, where the answer has a shape and cannot begin with them."""
        failures = _not_made_good(records) if self._shaped else []
        return [record for record in failures if self._toolbox.is_write(record.name)]


def unable(asked: str, spoken: str) -> str:
    """That no tool can tell or do what was asked, in the language of a code."""
    return language.UNABLE[spoken].format(asked=_quoted(" ".join(asked.split())))


def failed(records: Sequence[ToolRecord], spoken: str) -> str:
    """A sentence, and a space behind it, for each call that failed and was not made again with success; in the language
    of a code."""
    failures = _not_made_good(records)
    return "".join(f"{language.failed(spoken, _shown(record), _error(record))} " for record in failures)


def _not_made_good(records: Sequence[ToolRecord]) -> list[ToolRecord]:
    """The calls that failed and were not made again with success. Another call does not make up for one: whether it was
    meant to is not known."""
    worked = [(record.name, record.arguments) for record in records if record.ok]
    return [record for record in records if not record.ok and (record.name, record.arguments) not in worked]


def _shown(record: ToolRecord) -> str:
    """A call, for people."""
    values = _values(record.arguments)
    return f"{record.name} ({_quoted(values)})" if values else record.name


def _values(arguments: Mapping[str, JSON]) -> str:
    given = arguments.items()
    return ", ".join(f"{name}: {value if isinstance(value, str) else write_json(value)}" for name, value in given)


def _quoted(text: str) -> str:
    return text if len(text) <= MOST_QUOTED else f"{text[:MOST_QUOTED].rstrip()}…"


def _error(record: ToolRecord) -> str:
    return str(record.result["error"]).strip().rstrip(".")
