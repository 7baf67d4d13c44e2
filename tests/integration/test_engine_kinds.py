"""A kind of engine that is no part of edged, beside one that is: in the real daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import edged
from tests.support.daemon import Daemon, Wired

PARROT = '''
"""Models that repeat what they hear. `source = "parrot:SIZE"` takes SIZE MiB of memory."""

from pathlib import Path

from edged.engines import registry
from edged.engines.kind import BaseEngine, EngineKind, ModelStats
from edged.interfaces import Estimate
from edged.types import Completion, Finish, MemoryNeed, ModelState

MIB = 2**20


class ParrotStats(ModelStats, frozen=True, kw_only=True):
    words: int


class ParrotEngine(BaseEngine):
    def __init__(self):
        self.models, self.words = {}, {}

    async def load(self, spec):
        self.models[spec.name] = bytearray(b"x") * (int(Path(spec.path).name) * MIB)
        self.words[spec.name] = 0

    async def unload(self, name):
        del self.models[name]

    async def generate(self, job, on_text=None, *, on_piece=None):
        async with self.residency.hold(job.model) as load_ms:
            heard = [segment.text for segment in job.turn if segment.literal][-1]
            text = '{"name": "reply", "arguments": {}}' if job.confidence_marker is not None else heard.upper()
            self.words[job.model] += len(text.split())
            if on_text:
                on_text(text)
            return Completion(
                text=text, finish=Finish.STOP, prompt_tokens=1, cached_tokens=0, completion_tokens=1, forced_tokens=0,
                decode_steps=1, logprob=None, load_ms=load_ms, queue_ms=0.0, prefill_ms=0.0, first_token_ms=0.0,
                decode_ms=0.0,
            )

    def stats(self):
        return [
            ParrotStats(name=name, state=ModelState.READY, load_ms=0.0, threads=1, words=self.words[name])
            for name in self.models
        ]


def need(spec):
    return MemoryNeed(weights=int(Path(spec.path).name) * MIB)


class ParrotKind(EngineKind):
    name = "parrot"
    scheme = "parrot"
    sizes = Estimate(
        identity=lambda spec: f"parrot {spec.path}",
        least=lambda spec: need(spec).weights,
        ask=lambda spec: None,
        ask_bytes=lambda spec: 0,
        calculate=need,
        libraries=lambda: 0,
    )

    def make(self, around):
        return ParrotEngine()

    def is_present(self, path):
        return True


registry.KINDS.append(ParrotKind())
'''
# Each parrot takes more than half of what the budget leaves beside the daemon.
CONFIG = """
[memory]
budget = "160MiB"
reserve = "0MiB"

[models.grey]
source = "parrot:70"

[models.green]
source = "parrot:71"

[models.huge]
source = "parrot:4000"

[agents.grey_bird]
model = "grey"

[agents.green_bird]
model = "green"

[agents.roc]
model = "huge"
"""
MIB = 2**20


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    """With the parrots, and the scripted model that every daemon of the tests has."""
    members = tmp_path / "parrot.py"
    members.write_text(PARROT)
    daemon = Daemon(tmp_path, environment={"EDGED_TEST_MEMBERS": str(members)})
    daemon.drop_in(CONFIG)
    return daemon


async def ask(client: Wired, agent: str, text: str) -> Any:
    error, reply = await client.call(1, "agent.ask", {"input": text, "agent": agent})
    assert error is None
    return reply


async def test_models_of_a_kind_from_outside_answer_beside_others(daemon: Daemon) -> None:
    """Loaded and evicted by their sizes like any other, and shown by `status` with what their engine counts."""
    async with daemon, Wired(daemon.socket) as client:
        assert (await ask(client, "grey_bird", "hello there"))["output"] == "HELLO THERE"
        assert (await ask(client, "house", "how full is it?"))["output"] == "It is 41 percent full."
        _, status = await client.call(2, "status")
        models = status["models"]
        assert [models[name]["state"] for name in ("grey", "green", "small")] == ["ready", "unloaded", "ready"]
        assert models["grey"]["predicted_bytes"] == 70 * MIB
        assert 69 * MIB <= models["grey"]["measured_bytes"] <= 80 * MIB
        assert status["engine"]["grey"] == {"state": "ready", "load_ms": 0.0, "threads": 1, "words": 2}

        assert (await ask(client, "green_bird", "and you?"))["output"] == "AND YOU?"
        _, status = await client.call(3, "status")
        states = [status["models"][name]["state"] for name in ("grey", "green", "small")]
        assert states == ["unloaded", "ready", "ready"], "there is no room for both parrots, and a script takes none"
        assert list(status["engine"]) == ["green"]

        refused = (await ask(client, "roc", "hello"))["error"]
        assert refused["code"] == "no_memory"
        assert "needs about 4000 MiB" in refused["message"]
        assert await daemon.stop() == 0
    assert "Traceback" not in daemon.text()


async def test_unknown_engine_is_refused_with_those_there_are(daemon: Daemon) -> None:
    """The kinds of the table, and the servers."""
    daemon.drop_in('[models.small]\nengine = "tpu"\n', "60.toml")
    checked = await edged("check", config=daemon.config)
    assert checked.code == 78
    assert "models.small.engine" in checked.err + checked.out
    assert "allowed are llama.cpp, onnx, scripted, openai" in checked.err + checked.out
