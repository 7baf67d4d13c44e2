"""`edged models`: what it prints, where, and its exit codes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from edged.cli import progress
from edged.cli.models import commands as models
from edged.host import memory
from edged.models import catalog, pull
from edged.models.catalog import ModelFile

BYTES = b"weights" * 1000
SHA256 = hashlib.sha256(BYTES).hexdigest()

ENTRY = """
name = "{name}"
description = "A model."
default = {default}
engine = "llama.cpp"
family = "qwen2.5"
parameters = 1
quantization = "Q4_1"
context = 512
licence = "MIT"
upstream = "owner/repo"
sha256 = "{sha256}"
bytes = {size}
[[sources]]
{source}
"""


@pytest.fixture(autouse=True)
def small_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Three models: one that can be had from a file, one whose hub is away, one that is nowhere."""
    (tmp_path / "original").write_bytes(BYTES)
    sources = {
        "here": f'file = "{tmp_path}/original"',
        "away": 'hf = "owner/repo/away.gguf"',
        "gone": f'file = "{tmp_path}/nothing"',
    }
    folder = tmp_path / "catalog"
    folder.mkdir()
    for size, (name, source) in enumerate(sources.items(), start=len(BYTES)):
        values = {"default": str(name == "here").lower(), "sha256": SHA256, "size": size, "source": source}
        (folder / f"{name}.toml").write_text(ENTRY.format(name=name, **values))
    monkeypatch.setattr(catalog, "folder", lambda: folder)
    monkeypatch.setenv("EDGED_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")  # nobody listens there
    catalog.catalog.cache_clear()
    yield
    catalog.catalog.cache_clear()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(models.app, arguments)


def document(result: Result) -> Any:
    """stdout as the one JSON document it must be."""
    return json.loads(result.stdout)


def test_ls_json_says_what_is_here(tmp_path: Path) -> None:
    """Installed, half there, absent, and a file that nobody knows."""
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "here.gguf").write_bytes(BYTES)
    (folder / "away.gguf.part").write_bytes(b"12345")
    (folder / "mine.gguf").write_bytes(b"123")
    result = run("ls", "--json")
    assert result.exit_code == 0
    listing = document(result)
    found = {model["name"]: (model["installed"], model["partial_bytes"]) for model in listing["models"]}
    assert found == {"here": (True, 0), "away": (False, 5), "gone": (False, 0)}
    assert listing["models"][0]["default"] is True
    assert listing["other"] == [{"path": str(folder / "mine.gguf"), "bytes": 3}]


def test_ls_shows_models_that_servers_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have no file; the configuration names them."""
    file = tmp_path / "edged.toml"
    base_url = "http://127.0.0.1:8080/v1"
    file.write_text(
        f'[node]\nstate_dir = "{tmp_path}"\nruntime_dir = "{tmp_path}"\n'
        f'[models.npu]\nengine = "openai"\nbase_url = "{base_url}"\nmodel = "qwen"\n'
    )
    monkeypatch.setenv("EDGED_CONFIG", str(file))
    shown = {"name": "npu", "model": "qwen", "base_url": base_url, "context": 4096}
    assert document(run("ls", "--json"))["served"] == [shown]
    assert f"qwen at {base_url}" in run("ls").stdout
    file.write_text("broken = ")
    assert document(run("ls", "--json"))["served"] == []


def test_ls_prints_one_line_a_model(tmp_path: Path) -> None:
    """The table can be cut with ordinary tools; without a models folder everything is absent."""
    lines = run("ls").stdout.splitlines()
    assert [line.split()[:2] for line in lines[:4]] == [
        ["NAME", "HERE"],
        ["here", "no"],
        ["away", "no"],
        ["gone", "no"],
    ]
    assert lines[-1] == f"in {tmp_path / 'models'}"


def test_pull_without_a_name_pulls_the_default(tmp_path: Path) -> None:
    """Progress and notes go to stderr; stdout is the outcome."""
    result = run("pull", "--json")
    path = tmp_path / "models" / "here.gguf"
    assert result.exit_code == 0
    assert document(result)["models"] == [{"name": "here", "status": "pulled", "path": str(path)}]
    assert "original" in result.stderr
    assert path.read_bytes() == BYTES
    assert document(run("pull", "--json"))["models"][0]["status"] == "present"


def test_pull_takes_the_folder_from_its_option(tmp_path: Path) -> None:
    """--models-dir wins over the environment."""
    result = run("pull", "here", "--models-dir", str(tmp_path / "elsewhere"))
    assert result.stdout == f"here: pulled, {tmp_path}/elsewhere/here.gguf\n"
    assert (tmp_path / "elsewhere" / "here.gguf").is_file()


@pytest.mark.parametrize(
    ("names", "code", "words"),
    [
        (["heer"], 65, "did you mean 'here'?"),
        (["away"], 75, "hf:owner/repo/away.gguf: Cannot connect"),
        (["gone"], 70, "there is no such file"),
        (["https://"], 70, "is not https://host/path"),
        (["gone", "heer"], 70, "did you mean 'here'?"),
    ],
)
def test_pull_failure_has_its_exit_code_and_a_reason(names: list[str], code: int, words: str) -> None:
    """65: no such model, 75: try again, 70: do not; with several names the first failure decides."""
    result = run("pull", *names)
    assert result.exit_code == code
    assert words in result.stderr
    assert result.stdout == ""


def test_pull_goes_on_after_a_failure() -> None:
    """One model that fails does not keep the others away."""
    result = run("pull", "gone", "here", "--json")
    assert result.exit_code == 70
    assert [model["status"] for model in document(result)["models"]] == ["failed", "pulled"]


def test_verify_reports_and_deletes_a_damaged_model(tmp_path: Path) -> None:
    """Right: 0. Wrong: 70, the reason, and the file is gone."""
    run("pull")
    assert document(run("verify", "--json"))["models"][0]["status"] == "right"
    path = tmp_path / "models" / "here.gguf"
    path.write_bytes(bytes(len(BYTES)))
    result = run("verify")
    assert result.exit_code == 70
    assert f"expected {SHA256}; deleted" in result.stderr
    assert not path.exists()


def test_rm_frees_the_bytes(tmp_path: Path) -> None:
    """A model that is not there is no error: the wish is fulfilled."""
    run("pull")
    assert document(run("rm", "here", "--json"))["models"][0]["freed_bytes"] == len(BYTES)
    assert not (tmp_path / "models" / "here.gguf").exists()
    result = run("rm", "here")
    assert (result.exit_code, result.stdout) == (0, "here: absent\n")


def test_ctrl_c_says_that_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted is not a traceback."""

    async def interrupted(model: ModelFile, **options: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(pull, "pull", interrupted)
    result = run("pull")
    assert result.exit_code == 130
    assert "the same command goes on from there" in result.stderr


def test_broken_catalog_is_a_configuration_error(tmp_path: Path) -> None:
    """78, with the file and the key."""
    (tmp_path / "catalog" / "here.toml").write_text("name = 1")
    result = run("ls")
    assert result.exit_code == 78
    assert "here.toml: name: Expected `str`, got `int`" in result.stderr


def test_lines_appear_every_few_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    """A log gets notes at once and amounts rarely."""
    now = 0.0
    lines = progress.Lines(lambda: now)
    lines.report(pull.Progress("m", 1_000_000, 4_000_000, 1_000_000.0))
    lines.report(pull.Progress("m", 1_000_000, 4_000_000, 1_000_000.0, "from hf:x"))
    now = 3.0
    lines.report(pull.Progress("m", 2_000_000, 4_000_000, 1_000_000.0))
    lines.report(pull.Progress("m", 3_000_000, 4_000_000, 1_000_000.0))
    assert capsys.readouterr().err.splitlines() == ["m: from hf:x", "m: 2 of 4 MB, 1.0 MB/s, 2 s left"]


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (pull.Progress("m", 5_000_000, None, 2e6), "5 MB, 2.0 MB/s"),
        (pull.Progress("m", 0, 4_000_000, 0.0), "0 of 4 MB"),
        (pull.Progress("m", 0, 4_000_000_000, 1e6), "0 of 4000 MB, 1.0 MB/s, 67 min left"),
    ],
)
def test_amount_says_what_is_known(at: pull.Progress, text: str) -> None:
    """No total, no rate: nothing is made up."""
    assert progress.amount(at) == text


def test_pull_refuses_what_can_never_run_here_before_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """70, with numbers; --force pulls it and says so; what is here already is no question."""
    monkeypatch.setenv("EDGED_CONFIG", str(tmp_path / "none.toml"))
    monkeypatch.setattr(memory, "board_bytes", lambda: 1000)
    result = run("pull", "here")
    assert result.exit_code == 70
    assert "it cannot run here" in result.stderr
    assert "no model of the catalog fits" in result.stderr
    assert not list((tmp_path / "models").glob("*"))
    assert run("pull", "here", "--force").exit_code == 0
    assert document(run("pull", "here", "--json"))["models"][0]["status"] == "present"


def test_fit_says_what_fits_and_keeps_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a daemon, a configuration or a model; the second time nothing is measured."""
    monkeypatch.setenv("EDGED_CONFIG", str(tmp_path / "none.toml"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(memory, "board_bytes", lambda: 2**30)
    monkeypatch.setattr(memory, "available_bytes", lambda: 2**30)
    first = document(run("fit", "--json"))
    assert [(m["name"], m["fits"], m["about"]) for m in first["models"]] == [
        ("here", "yes", True),
        ("away", "yes", True),
        ("gone", "yes", True),
    ]
    assert first["measured_by"] == "memory and arithmetic"
    assert all(m["decode_tokens_s"] > 0 for m in first["models"])
    assert document(run("fit", "here", "--json"))["measured_at"] == first["measured_at"]
    assert document(run("fit", "--again", "--json"))["measured_at"] > first["measured_at"]
    assert "NAME" in run("fit").stdout
    assert run("fit", "nothing").exit_code == 65
