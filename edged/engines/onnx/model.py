"""One embedding model in onnxruntime: its session and its tokenizer. Used by the engine thread only.

A vector is the mean of the token vectors over the attention mask, or what the model calls its sentence embedding, and
has length 1.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edged.engines.onnx import file, providers
from edged.engines.onnx.sizes import BATCH_TOKENS, limit
from edged.errors import ModelUnavailable
from edged.types import ModelSpec

log = logging.getLogger(__name__)

TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUTS = ("sentence_embedding", "token_embeddings", "last_hidden_state")  # best first
ERRORS_ONLY = 3  # onnxruntime's severity: its warnings are about graphs, and there are many

Vectors = NDArray[np.float32]
MakeSession = Callable[..., Any]


class EmbeddingModel:
    """A loaded model.

    Args:
        threads: to compute with.
        make_session: onnxruntime.InferenceSession, or what stands for it.
        offered: the providers there are; None: asks onnxruntime.

    Raises:
        ModelUnavailable: file or tokenizer is missing or damaged, or it makes no vectors of texts.
    """

    def __init__(
        self,
        spec: ModelSpec,
        threads: int,
        *,
        make_session: MakeSession = onnxruntime.InferenceSession,
        offered: Sequence[str] | None = None,
    ) -> None:
        path = Path(spec.path)
        facts = file.read(path)
        self.spec, self.threads = spec, threads
        self.context = limit(spec.context, facts)
        # One scale for a whole batch: a text's vector would depend on those beside it (numbers of the MiniLM by up to
        # 0.05). Alone it is always the same.
        self.batch_tokens = 1 if facts.quantized else BATCH_TOKENS
        self._tokenizer = _tokenizer(path)
        names = onnxruntime.get_available_providers() if offered is None else offered
        self.offered = tuple(map(providers.short, names))
        tries, self.passed_over = providers.choose(names, quantized=facts.quantized)
        self._session = self._open(path, tries, make_session)
        self._types = _types(path, self._session.get_inputs())
        self._output, shape = _output(path, self._session.get_outputs())
        self.dimensions = shape[-1] if isinstance(shape[-1], int) else None

    @property
    def provider(self) -> str:
        """What computes it."""
        return providers.short(self._session.get_providers()[0])

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, with those the model wants around it."""
        return list(self._tokenizer.encode(text).ids)

    def vectors(self, texts: Sequence[Sequence[int]], *, unit: bool = True) -> Vectors:
        """A vector for each text of a batch, given as tokens. unit: of length 1; else as the model makes them."""
        longest = max(len(ids) for ids in texts)
        mask = np.zeros((len(texts), longest), np.int64)
        ids = np.zeros_like(mask)  # what stands in masked places does not matter
        for row, tokens in enumerate(texts):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}
        feed = {name: values[name].astype(kind, copy=False) for name, kind in self._types.items()}
        try:
            [found] = self._session.run([self._output], feed)
        except Exception as error:  # its exceptions have no base of their own
            raise ModelUnavailable(f"onnxruntime cannot compute {self.spec.name!r}: {error}") from None
        made = pooled(found, mask)
        return normalised(made) if unit else made

    def _open(self, path: Path, tries: Sequence[str], make_session: MakeSession) -> Any:
        """A session on the first provider that works. What did not is told, and computed by the CPU."""
        for name in tries:
            wanted = list(dict.fromkeys((name, providers.CPU)))
            try:
                session = make_session(str(path), _options(self.threads), providers=wanted)
            except Exception as error:  # see above
                if name == providers.CPU:
                    raise ModelUnavailable(f"onnxruntime refuses {path.name}: {error}") from None
                self._pass_over(name, f"it failed: {error}")
                continue
            if name in session.get_providers():
                return session
            self._pass_over(name, "it did not start; onnxruntime's own log says why")
        raise ModelUnavailable(f"onnxruntime has no {providers.CPU}")

    def _pass_over(self, name: str, why: str) -> None:
        log.warning("model %s is not computed by %s: %s", self.spec.name, providers.short(name), why)
        self.passed_over[providers.short(name)] = why


def pooled(found: NDArray[Any], mask: NDArray[np.int64]) -> Vectors:
    """A vector a text: what the model pooled itself, or the mean of its tokens'."""
    if found.ndim == 2:
        return found.astype(np.float32, copy=False)
    weight = mask[:, :, None].astype(np.float32)
    mean: Vectors = (found.astype(np.float32, copy=False) * weight).sum(axis=1) / weight.sum(axis=1)
    return mean


def normalised(vectors: Vectors) -> Vectors:
    """Of length 1; a vector of zeros stays one."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Vectors = (vectors / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32, copy=False)
    return unit


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin between two matrix products take the cores from the language model.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The arena keeps the buffers of the largest batch (36 MiB at 512 tokens) for the session's life. What it saves at
    # the worst, `memory.return_at_once` saves as well: 26 MiB instead of 81.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False  # a plan of the arena is kept for every shape, and texts have any length
    return options


def _tokenizer(path: Path) -> Tokenizer:
    """The one beside the model: NAME.tokenizer.json, as `edged models pull` names it, or tokenizer.json."""
    places = [path.with_suffix(".tokenizer.json"), path.with_name("tokenizer.json")]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ModelUnavailable(f"{path.name} has no tokenizer: put its tokenizer.json at {places[0]}")
    try:
        tokenizer = Tokenizer.from_file(str(found))
    except Exception as error:  # it raises Exception itself
        raise ModelUnavailable(f"{found} is no tokenizer: {error}") from None
    tokenizer.no_truncation()  # what is too long is refused, not cut
    tokenizer.no_padding()
    return tokenizer


def _types(path: Path, inputs: Sequence[Any]) -> dict[str, Any]:
    """The types of what the model reads, by name."""
    unknown = [each.name for each in inputs if each.name not in INPUTS or each.type not in TYPES]
    if unknown or "input_ids" not in {each.name for each in inputs}:
        told = ", ".join(f"{each.name} {each.type}" for each in inputs)
        raise ModelUnavailable(f"{path.name} is no embedding model: it reads {told}; known are {', '.join(INPUTS)}")
    return {each.name: TYPES[each.type] for each in inputs}


def _output(path: Path, outputs: Sequence[Any]) -> tuple[str, list[Any]]:
    """(name, shape) of what the vectors are made of."""
    shapes = {each.name: each.shape for each in outputs if len(each.shape) in (2, 3)}
    name = next((name for name in OUTPUTS if name in shapes), None)
    if name is None:
        told = ", ".join(each.name for each in outputs)
        raise ModelUnavailable(f"{path.name} is no embedding model: it makes {told}; known are {', '.join(OUTPUTS)}")
    return name, shapes[name]
