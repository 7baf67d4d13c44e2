"""Dialogues that are rehearsed with the model's own template and vocabulary, and verdicts that are kept."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from edged import config
from edged.config import Config
from edged.daemon.checks import agents
from edged.daemon.checks.finding import About, Finding, Inspection, Level, Subject
from edged.daemon.checks.rehearsal import Verdict
from edged.daemon.checks.verdicts import MOST, Verdicts
from edged.host import memory
from tests.support import real_model as real
from tests.support.gguf import with_template

NO_SECOND_TURN = (
    "{% if messages | selectattr('role', 'equalto', 'user') | list | length > 1 %}{{ raise_exception('too many') }}"
    "{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)
# An agent with two tools has so many messages before a question: the examples of its tools are among them.
ENDLESS = (
    "{% if messages | length > 12 %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    "{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)
TOOL = '[tools.t{0}]\ndescription = "Switch device {0} of the house."\ndatabase = "d"\nsql = "SELECT :s"\n'
ENUM = 'parameters.s = { enum = ["on", "off"] }\n'


def settings(folder: Path, model: Path, more: str = "", *, context: int = 2048) -> Config:
    """An agent "talk" with a system text and no tools, on a model."""
    path = folder / "edged.toml"
    path.write_text(
        f'[node]\nid = "n"\nstate_dir = "{folder}"\nruntime_dir = "{folder}"\n'
        f'[models.small]\nsource = "file:{model}"\ncontext = {context}\n[databases.d]\npath = "{folder}/d.db"\n'
        f'[agents.talk]\nmodel = "small"\nsystem = "You run a small house."\nmax_tokens = 64\n{more}'
    )
    return config.load(str(path))


async def found(made: Config, verdicts: Verdicts | None = None) -> list[Finding]:
    """What is found of agents and of the arguments of tools."""
    verdicts = verdicts or Verdicts(made.state_dir / agents.FILE, writes=False)
    inspected, everything = Inspection(settings=made), list[Finding]()
    for trial in agents.trials(made, offered_only=False):
        await agents.rehearse(trial, verdicts)
        everything += agents.known(inspected, trial, verdicts)
    return everything


async def test_agent_of_a_real_model_is_well(tmp_path: Path) -> None:
    """Nothing is said of it, and its tokens are counted."""
    verdicts = Verdicts(tmp_path / "kept", writes=False)
    made = settings(tmp_path, real.model_path())
    assert await found(made, verdicts) == []
    [trial, _] = agents.trials(made, offered_only=False)
    verdict = verdicts.get(trial.digests["talk"])
    assert verdict is not None
    assert verdict.fixed is not None
    assert verdict.shortest is not None
    assert 5 < verdict.fixed < verdict.shortest < 60


async def test_template_that_does_not_write_a_dialogue_is_the_agents_fault(tmp_path: Path) -> None:
    """Also one that fails only later in a dialogue. What the template itself says is told."""
    model = tmp_path / "m.gguf"
    with_template(real.model_path(), model, NO_SECOND_TURN)
    [finding] = await found(settings(tmp_path, model))
    assert (finding.subject, finding.level) == (Subject(About.AGENT, "talk"), Level.FAIL)
    assert "too many" in finding.message


async def test_template_without_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would stop the daemon for ever. The other agents of its model get their verdicts all the same."""
    monkeypatch.setattr(agents, "CPU_S", 3.0)  # the imports take a third of it
    model = tmp_path / "m.gguf"
    with_template(real.model_path(), model, ENDLESS)
    more = '[agents.busy]\nmodel = "small"\ntools = ["t0", "t1"]\n[agents.last]\nmodel = "small"\n'
    verdicts = Verdicts(tmp_path / "kept", writes=False)
    made = settings(tmp_path, model, more + "".join(TOOL.format(i) + ENUM for i in range(2)))
    findings = await found(made, verdicts)
    assert {finding.subject.name: finding.message for finding in findings} == {"busy": "trying it takes too long"}
    trial = agents.trials(made, offered_only=True)[0]
    assert all(verdicts.get(digest) for digest in trial.digests.values())


async def test_tools_that_do_not_fit_the_context_are_counted(tmp_path: Path) -> None:
    """Too many fail; where an answer has little room left, that is a warning. The figures are told."""
    tools = "".join(TOOL.format(i) + ENUM for i in range(20))
    names = json.dumps([f"t{i}" for i in range(20)])
    busy = f'[agents.busy]\nmodel = "small"\nmax_tokens = 64\ntools = {names}\n'
    verdicts = Verdicts(tmp_path / "kept", writes=False)
    [finding] = await found(settings(tmp_path, real.model_path(), busy + tools, context=1024), verdicts)
    assert (finding.subject, finding.level) == (Subject(About.AGENT, "busy"), Level.FAIL)
    assert "of the 1024 that one request may use: no question fits beside them" in finding.message
    made = settings(tmp_path, real.model_path(), busy + tools, context=8192)
    assert await found(made, verdicts) == []
    verdict = verdicts.get(agents.trials(made, offered_only=False)[0].digests["busy"])
    assert verdict is not None
    assert verdict.shortest is not None
    [finding] = await found(
        settings(tmp_path, real.model_path(), busy + tools, context=verdict.shortest + 40), verdicts
    )
    assert (finding.level, finding.key) == (Level.WARN, "agents.busy.max_tokens")
    assert "40 are left for an answer, and max_tokens is 64" in finding.message


async def test_arguments_that_no_grammar_can_be_made_of_are_the_tools_fault(tmp_path: Path) -> None:
    """Whether the cost says so or only trying does."""
    wrong = TOOL.format(1) + 'parameters.s = { "$ref" = "#/nowhere" }\n'
    [finding] = await found(settings(tmp_path, real.model_path(), TOOL.format(0) + ENUM + wrong))
    assert (finding.subject, finding.key) == (Subject(About.TOOL, "t1"), "tools.t1.parameters")
    assert "nowhere" in finding.message


async def test_tool_with_a_dot_in_its_name_is_named_whole(tmp_path: Path) -> None:
    """Its fault is not that of a tool whose name is the part before the dot."""
    wrong = TOOL.format(1).replace("tools.t1", 'tools."light.on"') + 'parameters.s = { "$ref" = "#/nowhere" }\n'
    [finding] = await found(settings(tmp_path, real.model_path(), wrong))
    assert finding.subject == Subject(About.TOOL, "light.on")


async def test_defaults_and_examples_that_a_parameter_does_not_allow_are_doubts(tmp_path: Path) -> None:
    """Such a tool can be called, so its arguments are no failure of it."""
    wrong = 'parameters.s = { type = "integer", default = "one" }\n'
    example = 'examples = [{ input = "a", arguments = { s = 2 } }, { input = "b", arguments = { s = "two" } }]\n'
    made = settings(tmp_path, real.model_path(), TOOL.format(0) + wrong + example)
    inspected, verdicts = Inspection(settings=made), Verdicts(tmp_path / "kept", writes=False)
    [_, trial] = agents.trials(made, offered_only=False)
    await agents.rehearse(trial, verdicts)
    assert list(agents.known(inspected, trial, verdicts)) == []
    assert [(doubt.subject, doubt.key) for doubt in agents.doubts(inspected, trial, verdicts)] == [
        (Subject(About.TOOL, "t0"), "tools.t0.parameters.s.default"),
        (Subject(About.TOOL, "t0"), "tools.t0.examples[1].arguments.s"),
    ]


async def test_daemon_does_not_try_what_no_agent_offers(tmp_path: Path) -> None:
    """No grammar is ever made of it."""
    made = settings(tmp_path, real.model_path(), TOOL.format(0) + ENUM)
    assert [trial.tools.keys() for trial in agents.trials(made, offered_only=True)] == [set(), set()]
    assert [trial.tools.keys() for trial in agents.trials(made, offered_only=False)] == [set(), {"t0"}]


async def no_child(*_: Any, **__: Any) -> Any:
    """Instead of asyncio.create_subprocess_exec."""
    raise AssertionError("a process was started")


async def test_verdict_is_kept_until_something_it_depends_on_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file, the agent, its tools; not the rest of the configuration."""
    model = tmp_path / "m.gguf"
    with_template(real.model_path(), model, NO_SECOND_TURN)
    kept = tmp_path / agents.FILE
    [before] = await found(settings(tmp_path, model), Verdicts(kept, writes=True))
    with monkeypatch.context() as patched:
        patched.setattr(asyncio, "create_subprocess_exec", no_child)
        assert [finding.message for finding in await found(settings(tmp_path, model, context=4096))] == [before.message]
    digest = agents.trials(settings(tmp_path, model), offered_only=False)[0].digests["talk"]
    os.utime(model, ns=(1, 1))
    assert agents.trials(settings(tmp_path, model), offered_only=False)[0].digests["talk"] != digest
    other = settings(tmp_path, model, "top_p = 0.5\n")
    assert agents.trials(other, offered_only=False)[0].digests["talk"] != digest


async def test_without_memory_nothing_is_tried_and_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verdict is made another time."""
    monkeypatch.setattr(memory, "available_bytes", lambda: 50 * 2**20)
    monkeypatch.setattr(asyncio, "create_subprocess_exec", no_child)
    assert await found(settings(tmp_path, real.model_path())) == []


def test_kept_verdicts_are_few_whole_and_never_in_the_way(tmp_path: Path) -> None:
    """Damage costs a rehearsal; who only looks writes nothing."""
    path = tmp_path / "checks.json"
    verdicts = Verdicts(path, writes=True)
    verdicts.keep({str(number): Verdict(str(number)) for number in range(MOST + 10)})
    again = Verdicts(path, writes=True)
    assert (again.get("0"), again.get(str(MOST + 9))) == (None, Verdict(str(MOST + 9)))
    path.write_bytes(b'{"1": 3')
    assert Verdicts(path, writes=True).get("1") is None
    Verdicts(path, writes=False).keep({"1": Verdict()})
    assert path.read_bytes() == b'{"1": 3'
    Verdicts(tmp_path / "none" / "checks.json", writes=True).keep({"1": Verdict()})
    assert sorted(each.name for each in tmp_path.iterdir()) == ["checks.json"]
