"""A kind of tool that edged does not know: it appends lines to a file, once for each step. A daemon gets it by
EDGED_TEST_MEMBERS. A text that begins with "die before" or "die after" ends the daemon once, as SIGKILL does, before or
after its line is on the medium."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from edged.config import Config, Tool
from edged.config.tools import Around, OnUncertain
from edged.config.values import Mistakes, Strict
from edged.errors import ConfigError, ToolFailed
from edged.tools import toolbox
from edged.tools.kind import Done, Problem, ToolKind
from edged.types import JSON


class Append(Strict, frozen=True):
    """The key `append`."""

    file: str
    line: str = "{text}"


class AppendTool(Tool, frozen=True, kw_only=True):
    """Its table."""

    key = "append"
    is_described_later = True

    append: Append
    description: str = ""
    on_uncertain: OnUncertain = "retry"

    @property
    def is_repeatable(self) -> bool:
        """See Tool."""
        return self.on_uncertain == "retry"

    def mistakes(self, around: Around) -> Mistakes:
        """See Tool."""
        if not self.append.file.startswith("/"):
            yield ("append", "file"), f"{self.append.file!r} is no absolute path"


class AppendKind(ToolKind[AppendTool]):
    """Each line holds what was done for whom, so effect and ledger are one write."""

    table: ClassVar[type[Tool]] = AppendTool
    works: ClassVar[str] = "files take lines"

    @classmethod
    async def resolve(
        cls, settings: Config, tools: Mapping[str, AppendTool]
    ) -> tuple[Mapping[str, AppendTool], list[ConfigError]]:
        """See ToolKind. The file may describe the tool."""
        resolved, problems = {}, []
        for name, tool in tools.items():
            about = Path(tool.append.file).with_suffix(".about")
            if not tool.description and not about.exists():
                problems.append(settings.error(("tools", name, "description"), f"is missing, and there is no {about}"))
                resolved[name] = tool
            else:
                text = tool.description or about.read_text()
                parameters = tool.parameters or {"text": {"type": "string"}}
                resolved[name] = msgspec.structs.replace(tool, description=text, parameters=parameters)
        return resolved, problems

    async def call(self, name: str, arguments: dict[str, Any], rid: str, step: int, intent: str) -> JSON:
        """See ToolKind."""
        if name not in self._context.settings.tools:  # what was found while it ran
            return {"lines": len(self._lines())}
        text = arguments["text"]
        _die(text, "before")
        result = {"length": len(text)}
        line = {"rid": rid, "step": step, "intent": intent, "result": result, "text": text}
        try:
            _append(self.tools[name].append.file, json.dumps(line) + "\n")
        except OSError as error:
            raise ToolFailed(f"{error.filename}: {error.strerror}") from None
        _die(text, "after")
        self._find_more(name)
        return result

    async def recall(self, rid: str) -> list[Done]:
        """See ToolKind."""
        return [Done(line["step"], line["intent"], line["result"]) for line in self._lines() if line["rid"] == rid]

    async def check(self) -> list[Problem]:
        """See ToolKind."""
        folders = {name: Path(tool.append.file).parent for name, tool in self.tools.items()}
        return [Problem(n, f"there is no folder {f}", "make it") for n, f in folders.items() if not f.is_dir()]

    def _lines(self) -> list[dict[str, Any]]:
        files = {Path(tool.append.file) for tool in self.tools.values()}
        return [json.loads(line) for file in files if file.exists() for line in file.read_text().splitlines()]

    def _find_more(self, name: str) -> None:
        """Where a line was written, lines can be counted."""
        if f"{name}_count" not in self.tools:
            count = msgspec.structs.replace(self.tools[name], description="Count the lines.", parameters={})
            self.tools = {**self.tools, f"{name}_count": count}
            self._context.changed()


def _append(path: str, line: str) -> None:
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _die(text: str, when: str) -> None:
    marker = Path(os.environ["EDGED_TEST_MARKER"])
    if text.startswith(f"die {when}") and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


toolbox.add_kind(AppendKind)
