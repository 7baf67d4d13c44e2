"""For tests of what grammars know of a model: vocabularies without the weights, and files of vocabularies."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import llama_cpp as lc
import pytest


class Words:
    """A model without its weights: as much of `Llama` as vocabularies need, and quick to load."""

    def __init__(self, path: Path) -> None:
        params = lc.llama_model_default_params()
        params.vocab_only = True
        self._model: Any = lc.llama_model_load_from_file(str(path).encode(), params)
        assert self._model, path
        self.vocab = lc.llama_model_get_vocab(self._model)
        self.n_vocab: int = lc.llama_vocab_n_tokens(self.vocab)

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        raw = text.encode()
        tokens = (lc.llama_token * (len(raw) + 8))()
        return list(tokens[: lc.llama_tokenize(self.vocab, raw, len(raw), tokens, len(tokens), False, special)])

    def is_control(self, token: int) -> bool:
        return bool(lc.llama_vocab_is_control(self.vocab, token))

    def is_eog(self, token: int) -> bool:
        return bool(lc.llama_vocab_is_eog(self.vocab, token))

    def close(self) -> None:
        lc.llama_model_free(self._model)


def model_path(name: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = Path(os.environ.get("EDGED_TEST_MODELS_DIR") or cache / "edged" / "models") / f"{name}.gguf"
    if not path.is_file():
        pytest.fail(f"{path} is missing: pull the test models, or set EDGED_TEST_MODELS_DIR to their folder")
    return path


UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE, NORMAL = 2, 3, 4, 5, 6, 1
Token = tuple[str, int]

SENTENCEPIECE: list[Token] = [
    ("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL),
    *((f"<0x{byte:02X}>", BYTE) for byte in range(256)),
    ("\u2581", NORMAL), ("a", NORMAL), ("b", NORMAL), ("\u2581a", NORMAL), ("ab", NORMAL), ("\u2581ab", NORMAL),
    ("\u2581\u2581", NORMAL), ("\u2581hello", NORMAL), ("}", NORMAL), ("include", NORMAL), ("#include", NORMAL),
    ("<tool_call>", USER_DEFINED), ("\u2581x\u2581y", NORMAL), ("[UNUSED]", UNUSED), ("\u00e9", NORMAL),
    ("\u2581\u00e9\u2581", NORMAL), ("<0x41> as text", NORMAL), ("\u2581as it is", USER_DEFINED),
]  # fmt: skip


def write_file(path: Path, tokens: list[Token], *, model: str = "llama", end: int = 2) -> Path:
    """A GGUF file with a vocabulary and nothing else."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def array(kind: int, items: list[bytes]) -> bytes:
        return struct.pack("<IIQ", 9, kind, len(items)) + b"".join(items)

    pairs = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("tokenizer.ggml.model") + struct.pack("<I", 8) + text(model),
        text("tokenizer.ggml.tokens") + array(8, [text(t) for t, _ in tokens]),
        text("tokenizer.ggml.scores") + array(6, [struct.pack("<f", float(-i)) for i in range(len(tokens))]),
        text("tokenizer.ggml.token_type") + array(5, [struct.pack("<i", kind) for _, kind in tokens]),
        text("tokenizer.ggml.merges") + array(8, []),
        text("tokenizer.ggml.bos_token_id") + struct.pack("<II", 4, 1),
        text("tokenizer.ggml.eos_token_id") + struct.pack("<II", 4, end),
        text("tokenizer.ggml.unknown_token_id") + struct.pack("<II", 4, 0),
    ]
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + b"".join(pairs))
    return path
