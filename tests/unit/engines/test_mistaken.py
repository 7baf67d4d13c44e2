"""What people have in a model's place: the reason says what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.engines.llama import gguf
from edged.engines.mistaken import what_it_is
from edged.engines.onnx import file as onnx
from edged.errors import ModelUnavailable

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 491400064\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"
FOUND = {
    "pointer": (POINTER, "a Git LFS pointer"),
    "page": (PAGE, "an HTML page"),
    "page-without-a-type": (b"<HTML><body>502</body></HTML>", "an HTML page"),
    "json": (b'{"error": "Repository not found"}', "a JSON document"),
    "empty": (b"", "an empty file"),
    "zeros": (bytes(5000), "a file of zeros"),
    "safetensors": (b"\x10\x00\x00\x00\x00\x00\x00\x00" + b'{"a":{"dtype":"F32"}}', "a Safetensors file"),
    "zip": (b"PK\x03\x04rest", "a ZIP archive"),
}


@pytest.mark.parametrize("case", FOUND)
def test_reason_names_what_the_file_is(tmp_path: Path, case: str) -> None:
    """Of both kinds of models."""
    content, what = FOUND[case]
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelUnavailable, match=f"is no GGUF file but {what}"):
        gguf.metadata(path)
    with pytest.raises(ModelUnavailable, match=f"is no ONNX model but {what}"):
        onnx.read(path)


def test_what_is_not_known_is_not_guessed(tmp_path: Path) -> None:
    """And a file that is gone is none of this module's business."""
    (tmp_path / "x").write_bytes(b"\x7fELF and so on")
    assert what_it_is(tmp_path / "x") is None
    assert what_it_is(tmp_path / "none") is None
