"""What a model wrote that follows no grammar of ours, checked before anything of it counts. What is wrong is put in
words that go back to the model."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import msgspec
from msgspec import Struct

from edged.agent import times
from edged.agent.grammars import kept
from edged.agent.prompts import as_messages
from edged.agent.world import NO_VALUES, Values
from edged.errors import EdgedError, ToolFailed
from edged.tools import check
from edged.tools.values import without_nulls
from edged.types import JSON, Chat, Message, RawCall, ToolCall, ToolRecord, ToolSpec

MAX_CORRECTIONS = 2  # wrong answers in a row that go back; a model that does not learn from two would not from ten
OWN_CORRECTIONS = 1  # of a model that follows our grammars: a small one that is wrong twice would be wrong again
MAX_CALLS = 16  # of one answer; more is a model that has lost its way
T = TypeVar("T")


class Unfit(Struct, frozen=True):
    """What is wrong with an answer. why: for people. ask: for the model."""

    why: str
    ask: str


EMPTY = Unfit("the answer was empty", "Your answer was empty. Answer the user.")
NO_JSON = Unfit("the answer is not JSON", "Your answer is not JSON. Answer with the JSON alone.")


class Wrong(Struct, frozen=True):
    """An answer that does not count. messages: what the model said and what is wrong with it, the latter at the end.
    why: the same for people."""

    messages: tuple[Message, ...]
    why: str


async def until_right(
    ask: Callable[[Sequence[Message]], Awaitable[T | Wrong]],
    failure: Callable[[str], EdgedError],
    *,
    most: int = MAX_CORRECTIONS,
) -> T:
    """Ask until an answer counts. What is wrong goes back to the model, at most `most` times.

    Args:
        ask: gets what all wrong answers so far showed, to be put after the question.
        failure: the error where none counts; gets what is wrong with the last one, in words for people.
    """
    corrections: list[Message] = []
    why = ""
    for _ in range(most + 1):
        answer = await ask(corrections)
        if not isinstance(answer, Wrong):
            return answer
        corrections += answer.messages
        why = answer.why
    raise failure(why)


async def checked(
    known: Mapping[str, ToolSpec],
    raw: tuple[RawCall, ...],
    left: int,
    values: Values = NO_VALUES,
    *,
    again: bool = False,
) -> tuple[ToolCall, ...] | Wrong:
    """The calls. Where one of them cannot be made none is: the model will ask again.

    Args:
        left: how many more may be made.
        values: that their parameters may have.
        again: something was wrong with the model's last calls, too.

    Raises:
        NotThere: again, and one has a value that is not there.
    """
    calls = [_parsed(known, call) for call in raw[:MAX_CALLS]]
    problems = [await _problem(known, name, arguments) for name, arguments in calls]
    if not any(problems) and len(raw) <= min(left, MAX_CALLS):
        made = [ToolCall(name, arguments) for name, arguments in calls]
        meant = await values.checked(made, again=again)
        if not isinstance(meant, str):
            return meant
        problems = [meant] * len(calls)
    too_many = f"{len(raw)} calls at once, and {left} more may be made for this request"
    messages: list[Message] = []
    reasons = []
    for (name, arguments), problem in zip(calls, problems, strict=True):
        why = problem or (too_many if len(raw) > min(left, MAX_CALLS) else "not made: another call is wrong")
        shown = ToolRecord(name, arguments if isinstance(arguments, dict) else {}, {"error": why}, False)
        messages += as_messages(shown)
        reasons.append(f"the call of {name} was not made: {why}")
    first = next((i for i, problem in enumerate(problems) if problem), 0)
    return Wrong(tuple(messages), reasons[first])


async def wrong_with(text: str, schema: dict[str, JSON] | None) -> Unfit | None:
    """What is wrong with an answer that is none; None where it is one."""
    if schema is None:
        return None if text.strip() else EMPTY
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return NO_JSON
    if (wrong := await check.problem(schema, value)) is None:
        return None
    told = f"answer does not match the schema: {wrong}"
    return Unfit(f"the {told}", f"Your {told}. Answer with the JSON alone.")


def cut_off(max_tokens: int | None) -> ToolFailed:
    """An answer in a shape ended before the shape did."""
    bound = f"{max_tokens} tokens (max_tokens)" if max_tokens is not None else "the model's context"
    return ToolFailed(f"the answer did not end within {bound}")


def corrected(text: str, problem: Unfit) -> Wrong:
    """Words that are no answer, and what is wrong with them."""
    return Wrong((Message("assistant", text), Message("user", problem.ask)), problem.why)


def keyed(chat: Chat, rid: str) -> Chat:
    """With its key. The same question has the same one, also after a restart: a server that keeps keys answers it
    once."""
    digest = hashlib.sha256(msgspec.json.encode(chat, order="deterministic")).hexdigest()[:16]
    return msgspec.structs.replace(chat, key=f"{rid}:{digest}")


def _parsed(known: Mapping[str, ToolSpec], raw: RawCall) -> tuple[str, JSON]:
    try:
        arguments = msgspec.json.decode(raw.arguments or "{}")
    except (msgspec.DecodeError, RecursionError):
        return raw.name, raw.arguments
    if isinstance(arguments, dict) and raw.name in known:
        arguments = without_nulls(known[raw.name].parameters, arguments)
    return raw.name, arguments


async def _problem(known: Mapping[str, ToolSpec], name: str, arguments: JSON) -> str | None:
    if name not in known:
        return f"there is no tool {name!r}; there are {', '.join(known) or 'none'}"
    if not isinstance(arguments, dict):
        return "the arguments are not a JSON object"
    return times.problem(known[name].parameters, arguments) or await check.problem(
        closed(known[name].parameters), arguments
    )


def closed(parameters: dict[str, JSON]) -> dict[str, JSON]:
    """A tool's parameters: no argument beside those declared, at any depth, unless the schema says so itself."""
    return kept.closed({"additionalProperties": False, **parameters})
