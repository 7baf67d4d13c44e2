"""What a file is that should be a model and is none: what people really have in a model's place, named as such."""

from __future__ import annotations

from pathlib import Path

LOOKED_AT = 512  # bytes: enough for a line of white space and the first tag of a page

# By how a file begins, in lower case and without white space in front; the first that fits.
BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull` where it was cloned, or pull the model again"),
    (b"<!doctype html", "an HTML page: a server sent a page, of a login or an error, in place of the file"),
    (b"<html", "an HTML page: a server sent a page, of a login or an error, in place of the file"),
    (b"<?xml", "an XML document: a server sent an error in place of the file"),
    (b"{", "a JSON document: the answer of a server, or the model's settings, in place of the model"),
    (b"gguf", "a GGUF file, of a language model"),
    (b"pk\x03\x04", "a ZIP archive: PyTorch's format, or the model is inside it"),
    (b"\x1f\x8b", "a compressed file: unpack it"),
    (b"\x28\xb5\x2f\xfd", "a compressed file: unpack it"),
    (b"tjgg", "a file of a format before GGUF: convert it, or pull a newer one"),
    (b"lmgg", "a file of a format before GGUF: convert it, or pull a newer one"),
)
# Safetensors begin with the length of their header, eight bytes, and then the header, which is JSON.
SAFETENSORS_AT, SAFETENSORS = 8, b'{"'


def what_it_is(path: Path) -> str | None:
    """What a file is by its first bytes, and what to do; None where that is not known, or it cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(LOOKED_AT)
    except OSError:
        return None
    if not head:
        return "an empty file: pull the model again"
    if head.count(0) == len(head):
        return "a file of zeros: it was never written whole; pull the model again"
    if head[SAFETENSORS_AT:].startswith(SAFETENSORS):
        return "a Safetensors file: convert it, or pull the model in its own format"
    start = head.lstrip().lower()
    return next((what for beginning, what in BEGINNINGS if start.startswith(beginning)), None)
