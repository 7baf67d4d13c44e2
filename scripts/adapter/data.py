"""Packs to train on: a fixed prefix and the turns that follow it, as tokens. Made by edged's own prompts, so that what
is taught is, to the byte, what is asked later.

    python -m adapter.data --model MODEL.gguf --epochs 3 OUT      the same seed makes the same bytes

A pack is a line of JSON: {"prefix": [tokens], "turns": [[tokens of the turn], [tokens of the answer]], ...}. The turns
of a pack stand beside each other behind one prefix, and see only it and themselves.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

from msgspec import Struct, structs

from adapter.plants import REQUESTS, TALK, Case, Plant, Tables, agent, before, calls, leaked, load, reported, texts
from adapter.vary import noisy, relative, varied
from edged.agent import times
from edged.agent.dialects import compact
from edged.agent.dialects.chat_template import Dialect
from edged.agent.prompts import Prompt, Prompts
from edged.agent.styles import specs
from edged.agent.times import Moment
from edged.config.tools import Tool
from edged.engines.llama.count import vocabulary_only
from edged.engines.llama.kind import LlamaKind
from edged.engines.llama.prompt import Tokenizer, encode, encode_prompt
from edged.engines.llama.sequence import common_length
from edged.types import Message, Segment

NEWEST = Path(__file__).with_name("newest.txt")
PACK = 26  # turns behind one prefix: the prefix is a third of the tokens then, and a pack fits 1,500 tokens
ANSWERS = 14  # worded from data, of each plant in an epoch: beside the calls, which are harder to learn
TALKS = 3  # of the untaught model's own, of each plant in an epoch: what it says to small talk stays as it was
RESULTS = 0.15  # of the reads of a pack come again with their result, after which there is nothing to do but reply
DROPPED, MIXED, RENAMED, ALONE = 0.3, 0.25, 0.2, 0.25  # of the packs: see `_tools`, and without `escalate`
VARIED = 0.55  # of the requests: with other values
TIMED = 0.25  # of the packs of plants with times: these may be relative, and the model is told what time it is
RELATIVE = 0.6  # of the requests in them that name a time of day
ZONES = ("Europe/Berlin", "America/New_York", "Asia/Tokyo", "Europe/Madrid", "UTC")
END = "<|im_end|>"  # what the models end a message with; all that can be taught here are ChatML models


class Turn(Struct, frozen=True):
    """A prompt and what follows it. cut: more would follow."""

    prompt: Prompt
    target: str
    cut: bool = False


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--requests", type=Path, default=REQUESTS)
    parser.add_argument("--without", default="", help="plants to leave out, as a regular expression of their names")
    parser.add_argument("--newest", type=int, default=1, help="how often the plants of newest.txt come in an epoch")
    parser.add_argument("--others", type=float, default=1.0, help="the share of all other packs that comes")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    plants = [
        each for each in load(options.requests) if not (options.without and re.search(options.without, each.name))
    ]
    newest = set(NEWEST.read_text(encoding="utf-8").split())
    newer = [each for each in plants if each.name in newest]
    older = [each for each in plants if each.name not in newest]
    template = LlamaKind().chat_template(options.model)
    spoken = Dialect(template.source, template.tokens, compact.NAME)
    said = json.loads(TALK.read_text(encoding="utf-8")) if TALK.exists() else []
    if leaks := leaked([*texts(plants), *(each["text"] for each in said)], reported()):
        sys.exit(f"these are reported on, and cannot be taught: {leaks}")
    with vocabulary_only(options.model) as vocabulary, options.out.open("w", encoding="utf-8") as out:
        for epoch in range(options.epochs):
            rng = Random(f"{options.seed}.{epoch}")  # noqa: S311 - no secret hangs on it
            packs = [*epoch_of(older, spoken, said, rng, foreign=plants)]
            packs = rng.sample(packs, round(len(packs) * options.others))
            for _ in range(options.newest):
                packs += epoch_of(newer, spoken, (), rng, foreign=plants)
            rng.shuffle(packs)
            for pack in packs:
                out.write(json.dumps(_tokens(pack, vocabulary), separators=(",", ":")) + "\n")


def epoch_of(
    plants: Sequence[Plant],
    spoken: Dialect,
    said: Sequence[Mapping[str, Any]],
    rng: Random,
    *,
    foreign: Sequence[Plant],
) -> Iterator[list[Turn]]:
    """All packs of an epoch, shuffled.

    Args:
        foreign: plants whose tools may stand among those of others.
    """
    packs: list[list[Turn]] = []
    for plant in plants:
        cases = list(plant.cases)
        rng.shuffle(cases)
        parts = [cases[start : start + PACK] for start in range(0, len(cases), PACK)]
        packs += [_decisions(plant, part, foreign, spoken, rng) for part in parts]
        packs.append(_answers(plant, cases, spoken, rng))
    by_system: dict[str, list[Mapping[str, Any]]] = {}
    for each in said:
        by_system.setdefault(each["system"], []).append(each)
    for system, talks in by_system.items():
        chosen = rng.sample(talks, min(len(talks), TALKS if system else PACK))
        packs.append([_talk(system, each, spoken) for each in chosen])
    rng.shuffle(packs)
    return (pack for pack in packs if pack)


def _decisions(
    plant: Plant, cases: Sequence[Case], plants: Sequence[Plant], spoken: Dialect, rng: Random
) -> list[Turn]:
    tools = _tools(plant, plants, rng)
    now = _moment(rng) if _has_times(plant) and rng.random() < TIMED else None
    if now:
        tools = {name: _relative_times(tool) for name, tool in tools.items()}
    names = _names(tools, rng)
    escalates = rng.random() >= ALONE
    shown = {names[name]: tool for name, tool in tools.items()}
    prompts = Prompts(agent(plant, shown), shown, spoken, escalates=escalates)
    declared = {spec.name: spec for spec in specs(shown)}
    tables, turns = Tables(plant), list[Turn]()
    for case in cases:
        if rng.random() < VARIED:
            case = varied(case, plant, rng)
        if now and rng.random() < RELATIVE:
            case = relative(case, plant, rng)
        made = calls(case)
        known = all(call.name in tools for call in made)
        if not known and case.get("accept"):  # another way may still be there
            continue
        text, history = noisy(case["text"], rng), before(case)
        asked: tuple[Message, ...] = (Message("user", text),)
        if now:
            asked = times.with_now(asked, now)
        written = tuple(call.__class__(names[call.name], call.arguments) for call in made if known)
        target = (
            "\n".join(compact.write(call, declared[call.name]) for call in written) or f"{_pseudo(case, escalates)}()"
        )
        turns.append(Turn(prompts.deciding(history, asked, ()), target))
        if written and tables.reads(made) and rng.random() < RESULTS:
            results = tables.results(made)
            records = [each.__class__(names[each.name], each.arguments, each.result, True) for each in results]
            turns.append(Turn(prompts.deciding(history, asked, records), f"{compact.REPLY}()"))
    return turns


def _moment(rng: Random) -> Moment:
    zone = rng.choice(ZONES)
    at = datetime(2026, 1, 1, tzinfo=ZoneInfo(zone)) + timedelta(minutes=rng.randrange(525_600))
    return Moment(at, ZoneInfo(zone), zone)


def _has_times(plant: Plant) -> bool:
    return any(_is_time(each) for tool in plant.tools.values() for each in tool.parameters.values())


def _is_time(parameter: Mapping[str, Any]) -> bool:
    return "[0-5]" in str(parameter.get("pattern", "")) and ":" in parameter["pattern"]


def _relative_times(tool: Tool) -> Tool:
    """The tool with `format` time in place of a pattern of HH:MM."""
    kept = ("description", "optional", "default")
    parameters = {
        name: {"type": "string", "format": "time", **{key: each[key] for key in kept if key in each}}
        if _is_time(each)
        else each
        for name, each in tool.parameters.items()
    }
    return structs.replace(tool, parameters=parameters)


def _pseudo(case: Case, escalates: bool) -> str:
    if case["kind"] == "talk":
        return compact.REPLY
    if case["kind"] == "hard":
        return compact.ESCALATE if escalates else compact.REPLY
    return compact.UNABLE


def _tools(plant: Plant, plants: Sequence[Plant], rng: Random) -> dict[str, Tool]:
    """The plant's tools in any order, some left out, or some of other plants among them."""
    names = list(plant.tools)
    rng.shuffle(names)
    if rng.random() < DROPPED:
        names = names[: -rng.randint(1, 2)]
    tools = {name: plant.tools[name] for name in names}
    if rng.random() < MIXED:
        # of another language and kind of plant: what these can do is never what is asked here
        others = rng.choice([each for each in plants if each.name.split("_")[0] != plant.name.split("_")[0]])
        foreign = rng.sample(sorted(others.tools), rng.randint(1, 4))
        for name in foreign:
            if not any(_alike(name, own) for own in plant.tools):
                tools[name] = others.tools[name]
        order = list(tools)
        rng.shuffle(order)
        tools = {name: tools[name] for name in order}
    return tools


def _alike(one: str, other: str) -> bool:
    """Whether names of tools share a word that means something: then a request may mean both."""
    dull = {"get", "set", "the", "a", "of", "list"}
    return bool((set(one.split("_")) - dull) & (set(other.split("_")) - dull))


def _names(tools: Mapping[str, Tool], rng: Random) -> dict[str, str]:
    """What the tools are called this time: as their author did, or in another manner of writing."""
    if rng.random() >= RENAMED:
        return {name: name for name in tools}
    manner = rng.choice(("camel", "dotted", "dashed"))
    space = rng.choice(("board", "plant", "local", "srv"))

    def renamed(name: str) -> str:
        if manner == "camel":
            first, *rest = name.split("_")
            return first + "".join(word.capitalize() for word in rest)
        return f"{space}.{name}" if manner == "dotted" else name.replace("_", "-")

    return {name: renamed(name) for name in tools}


def _answers(plant: Plant, cases: Sequence[Case], spoken: Dialect, rng: Random) -> list[Turn]:
    """Answers worded from what reading tools found."""
    prompts = Prompts(agent(plant, plant.tools), plant.tools, spoken, escalates=True)
    tables, turns = Tables(plant), list[Turn]()
    for case in cases:
        made = calls(case)
        if len(turns) < ANSWERS and case.get("answer") and tables.reads(made):
            asked = (Message("user", case["text"]),)
            turns.append(Turn(prompts.answering(before(case), asked, tables.results(made)), case["answer"]))
    return turns


def _talk(system: str, said: Mapping[str, Any], spoken: Dialect) -> Turn:
    messages = (
        (Message("system", system), Message("user", said["text"])) if system else (Message("user", said["text"]),)
    )
    fixed = spoken.render(messages[:1], generate=False) if system else ()
    whole = spoken.render(messages, generate=True)
    turn = whole[len(fixed) :] if whole[: len(fixed)] == fixed else whole
    return Turn(Prompt(fixed, turn), said["answer"], cut=bool(said["cut"]))


def _tokens(pack: Sequence[Turn], vocabulary: Tokenizer) -> dict[str, list[object]]:
    """The tokens that all turns begin with are the prefix; each turn has at least one of its own."""
    whole = [encode_prompt(each.prompt.prefix, each.prompt.turn, vocabulary)[0] for each in pack]
    shared = min(min(map(len, whole)) - 1, *(common_length(whole[0], each) for each in whole)) if len(whole) > 1 else 0
    turns: list[object] = []
    for tokens, each in zip(whole, pack, strict=True):
        answer = encode([Segment(each.target, literal=True), *([] if each.cut else [Segment(END)])], vocabulary)
        turns.append([tokens[shared:], answer])
    return {"prefix": list(whole[0][:shared]), "turns": turns}


if __name__ == "__main__":
    main()
