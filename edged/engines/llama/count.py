"""How many tokens prompts have, by llama.cpp's own vocabulary, without the model: for a process of its own.

The vocabulary of 152k tokens takes 100 MB while it is loaded, and the libraries as much again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edged.engines.llama.bindings import Llama, model_params
from edged.engines.llama.prompt import encode
from edged.types import KvType, Segment


@contextmanager
def token_counter(path: Path) -> Iterator[Callable[[tuple[Segment, ...]], int]]:
    """Counts tokens of prompts, as the engine cuts them. ModelUnavailable: llama.cpp cannot read the vocabulary."""
    with vocabulary_only(path) as native:
        yield lambda prompt: len(encode(prompt, native))


@contextmanager
def vocabulary_only(path: Path) -> Iterator[Llama]:
    """A model's vocabulary without its weights. ModelUnavailable: llama.cpp cannot read it."""
    native = _VocabularyOnly(str(path), cells=0, threads=1)
    try:
        yield native
    finally:
        native.close()


class _VocabularyOnly(Llama):
    """Cuts texts into tokens and nothing else."""

    def _params(self) -> Any:
        params = model_params()
        params.vocab_only = True
        return params

    def _open_context(self, cells: int, threads: int, outputs: int, kv_type: KvType) -> None:
        """There is nothing to compute."""
