"""The seam of kinds of tools: what a kind is to everybody else.

A kind is two classes: its table in the configuration (`config.tools.Tool`: effect, what may be wrong, whether a call is
repeated after a crash) and its `ToolKind`, which does the calls. The list of kinds is `toolbox.KINDS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Generic, TypeVar

import msgspec
from msgspec import Struct

from edged.config import Config, Tool
from edged.errors import ConfigError, ToolFailed
from edged.interfaces import Publisher
from edged.types import JSON, ToolCall

T = TypeVar("T", bound=Tool)


class KindContext(Struct, frozen=True):
    """What a kind may use.

    publisher: None where no broker is configured.
    changed: to be called, on the event loop, after the kind's `tools` have changed.
    tell: publishes an event, by name and data.
    """

    settings: Config
    publisher: Publisher | None = None
    changed: Callable[[], None] = lambda: None
    tell: Callable[[str, dict[str, JSON]], None] = lambda name, data: None


class Done(Struct, frozen=True):
    """A call that is known to have happened. intent: as `ToolKind.call` got it."""

    step: int
    intent: str
    result: JSON


class Problem(Struct, frozen=True):
    """Something that keeps a tool from working. tool: empty where it is about all tools of a kind. hint: what to do.
    key: of the tool's table, where it is about one."""

    tool: str
    message: str
    hint: str
    key: tuple[str, ...] = ()


class OtherCall(ToolFailed):
    """Under this identity another call was made before; this one was not."""


class ToolKind(ABC, Generic[T]):
    """All tools of one kind that one toolbox has, and the state they need: connections, threads, child processes.

    Nothing is opened before it is needed: a toolbox is also made to check a configuration.

    Args:
        tools: those that the configuration has, as `resolve` left them.
        context: what the kind may use.

    Attributes:
        table: of the configuration.
        works: what `edged doctor` says of tools that have no problem, behind their number; empty: nothing.
        tools: of this kind, by name. May be replaced while the daemon runs; `KindContext.changed` tells of it.
    """

    table: ClassVar[type[Tool]]
    works: ClassVar[str] = ""

    def __init__(self, tools: Mapping[str, T], context: KindContext) -> None:
        self.tools = tools
        self._context = context

    @classmethod
    async def resolve(cls, settings: Config, tools: Mapping[str, T]) -> tuple[Mapping[str, T], list[ConfigError]]:
        """The tools with what the configuration leaves to the kind (descriptions, parameters), and what is wrong with
        those that stay as they were. Runs before a start, a check and a reload."""
        return tools, []

    async def start(self) -> None:
        """A daemon serves from now on with these tools; a toolbox is also made to check a configuration."""

    @abstractmethod
    async def call(self, name: str, arguments: dict[str, JSON], rid: str, step: int, intent: str) -> JSON:
        """Do it.

        Args:
            arguments: with defaults filled in. A parameter that is `optional` and was not given is not among them.
            rid, step: the identity of the call; the same whenever the same step of a request is done again.
            intent: what `recall` gives back, from a kind that recalls.

        Raises:
            ToolFailed: the reason, as the model and the reply get it.
        """

    def keeps_intents(self, name: str) -> bool:
        """Whether the kind keeps the intent of a call in one transaction with its effect. The journal then writes
        neither before the call, and `recall` is how a restarted daemon finds out about both."""
        return False

    async def recall(self, rid: str) -> list[Done]:
        """What is known to have been done for a request or under a client's name for a call. Asked after a crash; of
        what is not in it, `Tool.is_repeatable` says whether it is done again.

        Raises:
            ToolFailed: that cannot be read now. Nothing may be done again then.
        """
        return []

    async def check(self) -> list[Problem]:
        """What keeps tools from working now. No tool is called."""
        return []

    def cautions(self) -> list[Problem]:
        """What keeps no tool from working, and whoever runs edged should know."""
        return []

    def owns(self, pid: int) -> bool:
        """Whether a process is a tool's, or may be. It is then no client of edged's."""
        return False

    async def close(self) -> None:
        """End what the kind has opened or started. A call that still runs has an unknown outcome."""


class _Intent(Struct):
    """An intent as the journal writes it; what is compared of two is the call."""

    call: ToolCall
    logprob: float | None = None


def intent_of(call: ToolCall) -> str:
    """The intent of a call that belongs to no request."""
    return msgspec.json.encode(_Intent(call)).decode()


def check_same_call(kept: str, intent: str) -> None:
    """Raises OtherCall where two intents are not about the same tool with the same arguments."""
    before, now = (msgspec.json.decode(each, type=_Intent).call for each in (kept, intent))
    if msgspec.json.encode(before, order="sorted") != msgspec.json.encode(now, order="sorted"):
        arguments = msgspec.json.encode(before.arguments).decode()
        raise OtherCall(f"another call was made before under this identity: {before.name} with {arguments}")
