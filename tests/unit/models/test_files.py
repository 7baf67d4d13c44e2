"""What the models of a configuration stand for."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged import config
from edged.config import Config
from edged.errors import ConfigError
from edged.models.files import model_specs


def settings(folder: Path, table: str) -> Config:
    """A configuration with a model `m`."""
    file = folder / "edged.toml"
    file.write_text(f'[node]\nstate_dir = "{folder}"\n[models.m]\n{table}\n')
    return config.load(str(file))


@pytest.mark.parametrize(
    ("table", "engine"),
    [
        ('source = "file:/w/m.gguf"', "llama.cpp"),
        ('source = "file:/w/m"', "llama.cpp"),
        ('source = "file:/w/m.gguf"\nengine = "llama.cpp"', "llama.cpp"),
        ('source = "file:/w/m.ONNX"', "onnx"),
        ('source = "file:/w/m.bin"\nengine = "onnx"', "onnx"),
        ('source = "hf:a/b/m.onnx"\nengine = "onnx"', "onnx"),
        ('source = "scripted:/w/m.toml"', "scripted"),
        ('source = "file:/w/m.toml"\nengine = "scripted"', "scripted"),
    ],
)
def test_engine_is_the_files_own_or_the_one_that_is_named(tmp_path: Path, table: str, engine: str) -> None:
    """A file of any name is for the engine that is named, else for llama.cpp."""
    assert model_specs(settings(tmp_path, table))["m"].engine == engine


@pytest.mark.parametrize(
    ("table", "key", "problem"),
    [
        ('source = "file:/w/m.onnx"\nengine = "llama.cpp"', "models.m.engine", "is a file for onnx"),
        ('source = "file:/w/m.gguf"\nengine = "onnx"', "models.m.engine", "is a file for llama.cpp"),
        ('source = "scripted:/w/m.toml"\nengine = "onnx"', "models.m.engine", "is a file for scripted"),
        ('engine = "tpu"', "models.m.engine", "allowed are llama.cpp, onnx, scripted, openai"),
        ('variants = ["file:/w/m.gguf", "file:/w/m.onnx"]', "models.m.variants", "for llama.cpp and onnx: one kind"),
        ('source = "script:/w/m.toml"', "models.m.source", "is not catalog:NAME"),
        ('source = "catalog:none"', "models.m.source", "no model 'none'"),
    ],
)
def test_what_does_not_go_together_is_refused_by_its_key(tmp_path: Path, table: str, key: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        model_specs(settings(tmp_path, table))
    assert caught.value.key == key
    assert problem in str(caught.value)
