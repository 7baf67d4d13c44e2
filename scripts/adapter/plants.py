"""Request sets: small plants with tools, tables and what people ask them. The format is in requests/README.md."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from edged.config import Agent
from edged.config.tools import SqlTool, Tool
from edged.types import JSON, Message, ToolCall, ToolRecord

REQUESTS = Path(__file__).parent / "requests"
TALK = Path(__file__).with_name("talk.json")
REPORTED = Path(__file__).parents[3] / "shared" / "data" / "requests" / "dev"  # where it lies beside the project
TRANSLATED = Path(__file__).parents[1] / "benchmarks" / "requests"  # plants of it in other languages, reported on alike
HELD_OUT = Path(__file__).with_name("held_out")  # never taught: adapters are compared and calibrated on them
DATABASE = "plant"
MOST_ROWS = 20  # of a result that a model is shown; questions are about a handful

Case = Mapping[str, Any]


class Plant(Struct, frozen=True):
    """One plant. tools: as the configuration has them. cases: as the file has them."""

    name: str
    language: str
    system: str
    schema: str
    tools: dict[str, Tool]
    cases: tuple[Case, ...]


def load(folder: Path = REQUESTS) -> list[Plant]:
    """All plants of a folder, by name."""
    return [plant(json.loads(file.read_text(encoding="utf-8"))) for file in sorted(folder.glob("*.json"))]


def reported() -> list[Plant]:
    """All plants that are reported or chosen on, as far as they are here."""
    return [*load(REPORTED), *load(TRANSLATED), *load(HELD_OUT)]


def plant(read: dict[str, Any]) -> Plant:
    """A plant from its file's JSON."""
    tools = {name: _tool(tool) for name, tool in read["tools"].items()}
    return Plant(read["name"], read["language"], read["system"], read["schema"], tools, tuple(read["cases"]))


def agent(plant: Plant, tools: Mapping[str, Tool]) -> Agent:
    """The agent of a plant with some tools."""
    return Agent(model="small", system=plant.system, tools=tuple(tools))


def parameters(tool: Mapping[str, Any]) -> dict[str, dict[str, JSON]]:
    """A tool's parameters as configurations have them."""
    required = tool.get("required", list(tool["parameters"]))
    left_out = {name for name, each in tool["parameters"].items() if name not in required and "default" not in each}
    return {
        name: {**each, "optional": True} if name in left_out else dict(each)
        for name, each in tool["parameters"].items()
    }


def before(case: Case) -> list[tuple[Message, ...]]:
    """The turns before the question."""
    return [(Message("user", turn["user"]), Message("assistant", turn["assistant"])) for turn in case.get("before", ())]


def calls(case: Case) -> tuple[ToolCall, ...]:
    """The right calls."""
    return tuple(ToolCall(call["name"], call["arguments"]) for call in case.get("calls", ()))


class Tables:
    """The tables of a plant, to see what its reading tools find."""

    def __init__(self, plant: Plant) -> None:
        self._plant = plant
        self._database = sqlite3.connect(":memory:")
        self._database.row_factory = sqlite3.Row
        self._database.executescript(plant.schema)

    def results(self, made: tuple[ToolCall, ...]) -> tuple[ToolRecord, ...]:
        """The calls with what they gave. Of a call that writes: that one row was changed; nothing is."""
        return tuple(self._result(call) for call in made)

    def reads(self, made: tuple[ToolCall, ...]) -> bool:
        """Whether all calls only read."""
        return bool(made) and not any(self._plant.tools[call.name].is_write for call in made)

    def _result(self, call: ToolCall) -> ToolRecord:
        tool = self._plant.tools[call.name]
        if tool.is_write:
            return ToolRecord(call.name, call.arguments, {"rows": [], "changes": 1}, True)
        assert isinstance(tool, SqlTool)
        bound = {name: call.arguments.get(name, each.get("default")) for name, each in tool.parameters.items()}
        rows = [dict(row) for row in self._database.execute(tool.sql, bound).fetchmany(MOST_ROWS)]
        return ToolRecord(call.name, call.arguments, {"rows": rows}, True)


def texts(plants: list[Plant]) -> Iterator[str]:
    """Everything that is asked in them."""
    for each in plants:
        yield from (case["text"] for case in each.cases)


def leaked(taught: Iterable[str], reported: Sequence[Plant]) -> list[str]:
    """Texts to train on that stand in a set to report on, too: there must be none."""
    kept = {_plain(text) for text in texts(list(reported))}
    return [text for text in taught if _plain(text) in kept]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _tool(read: Mapping[str, Any]) -> Tool:
    return SqlTool(
        description=read["description"],
        database=DATABASE,
        sql=read["sql"],
        effect=read["effect"],
        parameters=parameters(read),
        say=read.get("say", ""),
    )
