"""Another model has another fingerprint, found without reading the whole file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edged.engines.llama.fingerprint import HEAD_BYTES, SAMPLE_BYTES, SAMPLES, model_fingerprint

SIZE = HEAD_BYTES + 64 * 2**20


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file of a model's size, sparse."""
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.truncate(SIZE)
    os.utime(path, ns=(10**18, 10**18))
    return path


def changed(path: Path, at: int) -> str:
    """The fingerprint with one other byte; the modification time stays, as a restored backup has it."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"x")
    os.utime(path, ns=(10**18, 10**18))
    return model_fingerprint(path)


def test_the_same_file_has_the_same(model: Path) -> None:
    """Wherever it lies."""
    before = model_fingerprint(model)
    assert model_fingerprint(model.rename(model.with_name("other.gguf"))) == before


@pytest.mark.parametrize("at", [0, HEAD_BYTES - 1, HEAD_BYTES, SIZE - 1])
def test_another_byte_in_the_header_or_a_sample_is_seen(model: Path, at: int) -> None:
    """The first and the last block are among the samples."""
    assert changed(model, at) != model_fingerprint_of_nothing(model)


def model_fingerprint_of_nothing(like: Path) -> str:
    """The fingerprint of the same file without a byte that is not zero."""
    path = like.with_name("zeros")
    with path.open("wb") as file:
        file.truncate(like.stat().st_size)
    os.utime(path, ns=(10**18, 10**18))
    return model_fingerprint(path)


def test_another_time_or_length_is_seen(model: Path) -> None:
    """A file that was written anew, whatever is in it."""
    first = model_fingerprint(model)
    os.utime(model, ns=(10**18, 10**18 + 1))
    second = model_fingerprint(model)
    os.truncate(model, SIZE + 1)
    os.utime(model, ns=(10**18, 10**18 + 1))
    assert len({first, second, model_fingerprint(model)}) == 3


@pytest.mark.parametrize("size", [0, 1, HEAD_BYTES, HEAD_BYTES + SAMPLE_BYTES, HEAD_BYTES + SAMPLE_BYTES + 1])
def test_small_files_have_one_too(tmp_path: Path, size: int) -> None:
    """Whatever there is of them."""
    path = tmp_path / "small.gguf"
    path.write_bytes(bytes(size))
    assert len(model_fingerprint(path)) == 64


def test_little_is_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10 MiB of any file, which is milliseconds."""
    read, real = 0, os.pread

    def counted(fd: int, count: int, at: int) -> bytes:
        nonlocal read
        data = real(fd, count, at)
        read += len(data)
        return data

    monkeypatch.setattr(os, "pread", counted)
    model_fingerprint(model)
    assert read == HEAD_BYTES + SAMPLES * SAMPLE_BYTES == 10 * 2**20


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    """Nobody takes it for a model."""
    with pytest.raises(FileNotFoundError):
        model_fingerprint(tmp_path / "none.gguf")
