"""edged's own way of deciding, for a peer: the weights with the adapter merged into them, the prompt of the compact
dialect to the byte, and its grammar as GBNF, which llama.cpp's server keeps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import board
from benchmarks.workload import Call
from edged import config
from edged.agent.dialects import compact
from edged.agent.dialects.chat_template import Dialect
from edged.agent.prompts import Prompts
from edged.agent.styles import specs
from edged.engines.llama import gguf, merged
from edged.models import adapters, catalog
from edged.types import Message, ModelSpec, ToolSpec

BASIC = r"""
string ::= "\"" ([^"\\\x00-\x1f] | "\\" ["\\/bfnrt])* "\""
integer ::= "-"? [0-9]+
number ::= integer ("." [0-9]+)?
boolean ::= "true" | "false"
""".strip()


def weights() -> Path:
    """The file that edged loads once the adapter is merged; made where it is missing.

    Raises:
        SystemExit: the model has no adapter, or the file cannot be made.
    """
    source = catalog.catalog()[board.MODEL]
    adapter = adapters.chosen(adapters.AUTO, source.sha256)
    if not adapter:
        sys.exit(f"{board.MODEL} has no adapter")
    spec = ModelSpec(name="small", path=str(board.model()), context=board.CONTEXT, adapter=adapter)
    if (missing := merged.preparation(spec)) is not None:
        missing.folder.mkdir(exist_ok=True)
        if subprocess.run(missing.command, check=False).returncode:
            sys.exit(f"the adapter of {board.MODEL} cannot be merged")
    return Path(merged.as_loaded(spec).path)


class Prompting:
    """An agent's deciding prompt and its grammar."""

    def __init__(self, folder: Path, agent: str = "house") -> None:
        settings = config.load(str(folder / "edged.toml"))
        pairs = gguf.metadata(board.model())
        template = pairs["tokenizer.chat_template"]
        assert isinstance(template, str)
        spoken = Dialect(template, gguf.special_tokens(board.model(), pairs), compact.NAME)
        self._prompts = Prompts(settings.agents[agent], settings.tools, spoken)
        self.grammar = gbnf(specs({name: settings.tools[name] for name in settings.agents[agent].tools}))

    def prompt(self, text: str) -> str:
        """All of it, up to where the call begins."""
        made = self._prompts.deciding((), (Message("user", text),), ())
        return "".join(segment.text for segment in (*made.prefix, *made.turn))


def gbnf(tools: list[ToolSpec] | tuple[ToolSpec, ...]) -> str:
    """One call or a pseudo-call. The bench asks for one thing at a time; values are choices, numbers or texts."""
    choice = [f"call{number}" for number in range(len(tools))]
    rules = [f"root ::= {' | '.join([*choice, *(_text(f'{name}()') for name in (compact.REPLY, compact.UNABLE))])}"]
    for number, tool in enumerate(tools):
        required = tool.parameters.get("required", [])
        parts = []
        for name, schema in tool.parameters["properties"].items():
            assert name in required, "the tools of the bench have no optional parameters"
            parts.append(f"{_text(name + '=')} {_value(schema)}")
        inner = f" {_text(', ')} ".join(parts)
        rules.append(f"call{number} ::= {_text(tool.name + '(')} {inner} {_text(')')}")
    return "\n".join([*rules, BASIC])


def call(text: str) -> Call | None:
    """The call in what the peer wrote; None where it was cut off."""
    try:
        (made, *_) = compact.parse(text)
    except ValueError:
        return None
    return made.name, made.arguments


def _value(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return "(" + " | ".join(_text(json.dumps(value, ensure_ascii=False)) for value in schema["enum"]) + ")"
    return str(schema["type"])


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
