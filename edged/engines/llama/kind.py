"""llama.cpp as a kind of engine: language models in GGUF files."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from math import sqrt
from pathlib import Path

from msgspec import structs

from edged.engines.kind import ChatTemplate, EngineKind, FileFacts, Preparation, Surroundings, TextFormat, TokenCount
from edged.engines.llama import gguf, merged, predict
from edged.engines.llama.engine import LlamaEngine
from edged.engines.llama.sizes import SWAPPED_BYTES, context_cells
from edged.engines.llama.snapshots import Snapshots
from edged.errors import ModelUnavailable
from edged.interfaces import Estimate
from edged.types import ModelSpec

# What a model takes beside its weights, by the root of the parameters' number: widths grow with it.
# Graph and logits, in bytes: 1,431 (135M), 1,957 (0.5B) and 1,629 (1.5B) by `sizes.compute_bytes`.
COMPUTE_BY_ROOT = 1_960
# Tables of the vocabulary: 2,500 to 4,100 with the catalog's models, by `predict.TABLE_BYTES`, GRAMMAR_BYTES.
VOCABULARY_BY_ROOT = 2_500
# Keys and values of a token, where the manifest does not say: 0.6 to 2 with the catalog's models.
KV_BY_ROOT = 2


class LlamaKind(EngineKind):
    """See EngineKind."""

    name = "llama.cpp"
    suffix = ".gguf"
    follows_grammars = True
    sizes = Estimate(
        identity=predict.identity,
        least=predict.least_bytes,
        ask=predict.dry_run,
        ask_bytes=predict.dry_run_bytes,
        calculate=predict.predict,
        libraries=predict.library_bytes,
    )

    def make(self, around: Surroundings) -> LlamaEngine:
        """See EngineKind."""
        snapshots = Snapshots(around.states_dir, around.states_bytes) if around.states_dir else None
        return LlamaEngine(threads=around.threads, on_fatal=around.on_fatal, snapshots=snapshots)

    def check_file(self, path: Path) -> None:
        """See EngineKind."""
        gguf.check(path)

    def token_counter(self, path: Path) -> AbstractContextManager[TokenCount]:
        """See EngineKind."""
        from edged.engines.llama.count import token_counter  # only in a process that counts: it loads llama.cpp

        return token_counter(path)

    def chat_template(self, path: Path) -> ChatTemplate:
        """See EngineKind."""
        pairs = gguf.metadata(path)
        source = pairs.get("tokenizer.chat_template")
        if not isinstance(source, str):
            return ChatTemplate()
        used = "bos_token" in source or "eos_token" in source
        return ChatTemplate(source, gguf.special_tokens(path, pairs) if used else {})

    def text_format(self, path: Path) -> TextFormat:
        """See EngineKind."""
        begin, *gap = gguf.text_marks(path)
        return TextFormat(begin, (gap[0], gap[1], gap[2]) if all(gap) else ())

    def facts(self, path: Path) -> FileFacts:
        """See EngineKind."""
        fills_gaps = False
        with contextlib.suppress(ModelUnavailable):  # some have no vocabulary
            fills_gaps = bool(self.text_format(path).gap)
        return structs.replace(gguf.facts(gguf.metadata(path)), fills_gaps=fills_gaps)

    def dialect_of(self, adapter: Path) -> str:
        """See EngineKind."""
        taught = gguf.metadata(adapter).get("edged.adapter.dialect")
        return taught if isinstance(taught, str) else ""

    def preparation(self, spec: ModelSpec) -> Preparation | None:
        """See EngineKind: the adapter is merged into the weights."""
        return merged.preparation(spec)

    def made_from(self, path: Path) -> list[Path]:
        """See EngineKind."""
        return merged.made_from(path)

    def about_bytes(self, file_bytes: int, parameters: int, context: int, kv_bytes_per_token: int = 0) -> int:
        """See EngineKind."""
        root = sqrt(parameters)
        kv = (kv_bytes_per_token or KV_BY_ROOT * root) * context_cells(context)
        return round(file_bytes + kv + (COMPUTE_BY_ROOT + VOCABULARY_BY_ROOT) * root) + SWAPPED_BYTES
