"""A new file for a model, taken only when it works: over the socket of the real daemon, with scripted models."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from edged.agent.dialects.chat_template import Dialect
from edged.client import AsyncClient
from edged.engines.llama import LlamaEngine, gguf
from edged.models import catalog, pull
from edged.models.catalog import FileSpec, ModelFile, Source
from edged.models.pull import Progress, PullFailed
from edged.models.updates import selftest
from edged.models.updates.fetch import fetch
from edged.types import ModelSpec
from tests.support.cli import edged
from tests.support.daemon import SCRIPT, Daemon, Wired, entry
from tests.support.real_model import model_path, real

NEW = entry("which one", text="the new one")
OLD = entry("which one", text="the old one")
RIGHT = '[[self_test]]\nprompt = "which one"\nexpect = { contains = "new" }\n'
WRONG = '[[self_test]]\nprompt = "which one"\nexpect = { regex = "^newest$" }\n'


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    """A daemon whose model says that it is the old one, and a script beside it that says another thing."""
    async with Daemon(tmp_path, script=OLD + SCRIPT) as daemon:
        yield daemon
        assert "Traceback" not in daemon.text()


def script(daemon: Daemon, text: str, name: str = "new.toml") -> str:
    """A source."""
    (daemon.folder / name).write_text(text)
    return f"scripted:{daemon.folder / name}"


async def update(daemon: Daemon, source: str) -> tuple[Any, Any]:
    async with Wired(daemon.socket) as client:
        return await client.call(1, "models.update", {"name": "small", "source": source})


async def said(daemon: Daemon) -> str:
    """Which one answers."""
    async with Wired(daemon.socket) as client:
        error, reply = await client.call(2, "agent.ask", {"input": "which one"})
        assert error is None
        assert reply["status"] == "done", reply["error"]
        return str(reply["output"])


async def told(daemon: Daemon) -> Any:
    """What status says of the last update."""
    async with Wired(daemon.socket) as client:
        _, status = await client.call(3, "status")
        assert set(status["models"]) == {"small"}
        return status["models"]["small"]["update"]


async def test_update_takes_a_file_that_passes_and_goes_back_and_forth(daemon: Daemon) -> None:
    """It answers from the next request on, after a restart too; rollback has the one before, once more the other."""
    assert await said(daemon) == "the old one"
    assert await told(daemon) is None
    source = script(daemon, RIGHT + NEW)
    async with Wired(daemon.socket) as client:
        await client.call(1, "events.subscribe")
        error, done = await client.call(2, "models.update", {"name": "small", "source": source})
        assert (error, done["state"], done["error"]) == (None, "done", None)
        states = [n[2][1]["state"] for n in client.notifications if n[1] == "models.progress"]
        assert states == ["pulling", "loading", "testing", "switching"]
        events = [n[2][0]["event"] for n in client.notifications if n[1] == "event"]
        assert "model_updated" in events
    assert await said(daemon) == "the new one"
    assert (await told(daemon))["state"] == "done"
    await daemon.kill()
    await daemon.start()
    assert await said(daemon) == "the new one"
    for which in ("the old one", "the new one"):
        ended = await edged("models", "rollback", "small", config=daemon.config)
        assert ended.code == 0, ended.err
        assert await said(daemon) == which
    assert (await told(daemon))["state"] == "rolled_back"
    assert await daemon.stop() == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [(WRONG + NEW, "does not match '^newest$'"), ("replies = 5", "no script"), (entry("", text=""), "says nothing")],
    ids=["wrong", "damaged", "silent"],
)
async def test_update_that_fails_leaves_the_old_file_and_says_why(daemon: Daemon, text: str, reason: str) -> None:
    """On the command line, in status, as an event; the user's own file stays."""
    source = script(daemon, text)
    ended = await edged("models", "update", "small", "--source", source, "--json", config=daemon.config)
    document = ended.json()
    assert reason in document["error"]["message"]
    if "damaged" not in document["error"]["message"] and document.get("state"):
        assert (ended.code, document["state"]) == (70, "failed")
        assert (await told(daemon))["state"] == "failed"
        assert reason in (await told(daemon))["reason"]
    else:
        assert ended.code == 65
    assert await said(daemon) == "the old one"
    assert (daemon.folder / "new.toml").exists()
    assert await daemon.stop() == 0


async def test_configuration_that_names_another_source_wins_and_says_so(daemon: Daemon) -> None:
    """The update was of what was configured before."""
    await update(daemon, script(daemon, RIGHT + NEW))
    other = script(daemon, entry("which one", text="a third one"), "third.toml")
    daemon.drop_in(f'[models.small]\nsource = "{other}"\n')
    await daemon.reload()
    assert await said(daemon) == "a third one"
    assert "the configuration names another source" in daemon.text()
    assert json.loads((daemon.folder / "state" / "models.json").read_text())["models"] == {}
    assert await daemon.stop() == 0


async def test_file_that_is_gone_gives_way_to_the_configured_one(daemon: Daemon) -> None:
    """A daemon that starts has a model."""
    await update(daemon, script(daemon, RIGHT + NEW))
    assert await daemon.stop() == 0
    (daemon.folder / "new.toml").unlink()
    await daemon.start()
    assert await said(daemon) == "the old one"
    assert "is gone" in daemon.text()
    assert await daemon.stop() == 0


@pytest.mark.parametrize(
    ("point", "which"),
    [
        ("update.pulled", "the old one"),
        ("update.tested", "the old one"),
        ("update.recorded", "the new one"),
        ("update.switched", "the new one"),
    ],
)
async def test_kill_leaves_the_old_file_or_the_new_one_wholly(daemon: Daemon, point: str, which: str) -> None:
    """And the next update does what is left of it."""
    assert await daemon.stop() == 0
    await daemon.start(point)
    source = script(daemon, RIGHT + NEW)
    async with Wired(daemon.socket) as client:
        client.send([0, 1, "models.update", [{"name": "small", "source": source}]])
        assert await daemon.ended() == -9
    await daemon.start()
    assert await said(daemon) == which
    state = await told(daemon)
    assert (state["state"] == "failed") is (which == "the old one")
    if which == "the old one":
        assert "the daemon ended meanwhile" in state["reason"]
        assert (await update(daemon, source))[1]["state"] == "done"
    assert await said(daemon) == "the new one"
    assert await daemon.stop() == 0


async def test_running_request_ends_with_the_file_it_began_with(daemon: Daemon) -> None:
    """It is switched between requests: nobody fails."""
    source = script(daemon, RIGHT + NEW)
    async with Wired(daemon.socket) as client:
        client.send([0, 1, "agent.ask", [{"input": "tell a story", "stream": True}]])
        while not client.notifications:  # its answer is being written
            assert await client.read()
        assert (await update(daemon, source))[1]["state"] == "done"
        assert (await client.answer(1))[1]["output"] == "one two three"
    assert await said(daemon) == "the new one"
    assert await daemon.stop() == 0


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"name": "huge"}, "can be updated are small"),
        ({"name": "small", "source": "catalog:smollm2-135m-instruct-q4_1"}, "is none"),
        ({"name": "small", "source": "ftp:x"}, "is not catalog:NAME"),
        ({"name": "small", "source": 5}, "is a text"),
        ({"name": "small", "colour": "red"}, "colour"),
        ({}, "name: is required"),
    ],
)
async def test_wrong_update_is_refused_before_anything_is_done(
    daemon: Daemon, params: dict[str, Any], reason: str
) -> None:
    """With what is allowed."""
    async with Wired(daemon.socket) as client:
        error, _ = await client.call(1, "models.update", params)
        assert error["code"] == "bad_request"
        assert reason in error["message"]
        error, _ = await client.call(2, "models.rollback", {"name": "small"})
        assert "nothing to go back to" in error["message"]
    assert await told(daemon) is None
    assert await daemon.stop() == 0


async def test_pull_in_a_child_brings_the_bytes_and_tells_how_it_goes(tmp_path: Path) -> None:
    """A file of the right size and the wrong bytes is replaced; wrong bytes at the source are refused."""
    data = b"weights" * 1000
    sha256 = hashlib.sha256(data).hexdigest()
    (tmp_path / "original").write_bytes(data)
    place = Source(file=str(tmp_path / "original"))
    path = tmp_path / "models" / "m.gguf"
    model = ModelFile(name="m", path=path, files=(FileSpec("m.gguf", sha256, len(data), (place,)),), sha256=sha256)
    seen: list[Progress] = []
    path.parent.mkdir()
    path.write_bytes(bytes(len(data)))
    got = await fetch(model, seen.append)
    assert (got.sha256, got.new, path.read_bytes()) == (sha256, True, data)
    assert any("original" in progress.note for progress in seen)
    assert (await fetch(model, seen.append)).new is False
    path.unlink()
    (tmp_path / "original").write_bytes(data[:-1] + b"!")
    with pytest.raises(PullFailed, match="expected"):
        await fetch(model, seen.append)
    assert not path.exists()


async def test_cancelled_pull_ends_its_child(tmp_path: Path) -> None:
    """Nobody goes on writing."""
    model = ModelFile(name="m", path=tmp_path / "m.gguf", files=(FileSpec("m.gguf", None, None, ()),))
    task = asyncio.create_task(fetch(model, lambda progress: None))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_real_model_is_updated_to_a_copy_and_not_to_a_damaged_one(tmp_path: Path) -> None:
    """Loaded beside the old one and asked; a file that ends in the middle is refused by the runtime. Whoever looks at
    the daemon meanwhile sees both."""
    async with real(tmp_path) as daemon, Wired(daemon.socket) as client, AsyncClient(daemon.socket) as other:
        data = model_path().read_bytes()
        (tmp_path / "damaged.gguf").write_bytes(data[: len(data) // 2])
        (tmp_path / "copy.gguf").write_bytes(data)
        for name, state in (("damaged", "failed"), ("copy", "done")):
            params = {"name": "small", "source": f"file:{tmp_path}/{name}.gguf"}
            updating = asyncio.create_task(client.call(1, "models.update", params))
            seen: set[str] = set()
            while not updating.done():
                now = await other.call("status")
                assert set(now["models"]) == {"small", "long"}
                seen |= set(now["engine"])
            error, done = await updating
            assert (error, done["state"]) == (None, state)
            assert ("small@next" in seen) is (state == "done")
        _, status = await client.call(2, "status")
        assert status["models"]["small"]["update"]["state"] == "done"
        assert await daemon.stop() == 0
        assert "Traceback" not in daemon.text()


@pytest.mark.slow
async def test_models_of_the_catalog_pass_their_own_self_tests() -> None:
    """Those that are here; else no update to them would ever succeed."""
    engine = LlamaEngine(Held(), threads=1)
    await engine.start()
    for model in pull.installed(model_path().parent):
        if model.engine == "llama.cpp":
            await engine.load(ModelSpec(name=model.name, path=str(model.path), context=512))
            pairs = gguf.metadata(model.path)
            template = pairs["tokenizer.chat_template"]
            dialect = Dialect(template, gguf.special_tokens(model.path, pairs))
            tests = catalog.find(model.name).self_test
            assert tests
            assert await selftest.problem(model.name, tests, engine, dialect) is None
            assert await selftest.problem(model.name, (), engine, dialect) is None
            await engine.unload(model.name)
    await engine.stop()


class Held:
    """A residency for what is loaded by hand."""

    @contextlib.asynccontextmanager
    async def hold(self, model: str) -> AsyncIterator[float]:
        """See interfaces.Residency."""
        yield 0.0
