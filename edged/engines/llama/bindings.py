"""llama.cpp's low-level bindings with checked return codes: a model, its one context, a batch.

Not thread-safe: the engine thread alone uses it. Every class here has `close()`; nothing relies on finalizers, because
the order (context before model) matters and the memory must be back before the governor counts it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import llama_cpp as lc
import numpy as np
from numpy.typing import NDArray

from edged.engines.llama import sizes
from edged.engines.llama.drop_pages import MappedPages
from edged.engines.llama.llama_log import NATIVE_LOG
from edged.errors import ModelUnavailable
from edged.types import KvType

# Room for the text of one token; a longer one is read with a second call.
PIECE_BYTES = 512
# Pieces remembered per model; ordinary text uses a few thousand tokens, all of a large vocabulary would take 20 MB.
KEPT_PIECES = 16_384
# Return codes of llama_decode (llama.h).
NO_ROOM = 1
# ggml's number of each type.
KV_TYPES = {KvType.F16: lc.GGML_TYPE_F16, KvType.Q8_0: lc.GGML_TYPE_Q8_0}

Progress = Callable[[float], bool]
Row = tuple[int, int, int, bool]
Buffer = Any  # bytes, or an array of ctypes.c_uint8


def runtime() -> str:
    """What computes: versions of llama.cpp and its bindings, and the instructions its kernels use."""
    return f"llama-cpp-python {lc.__version__}, {lc.llama_print_system_info().decode()}"


class DecodeError(Exception):
    """llama_decode refused or failed. no_room: the cells did not suffice and nothing was changed."""

    def __init__(self, code: int) -> None:
        super().__init__(NATIVE_LOG.reason(f"llama_decode returned {code}"))
        self.no_room = code == NO_ROOM


def model_params() -> Any:
    """How models are loaded."""
    params = lc.llama_model_default_params()
    params.load_mode = lc.LLAMA_LOAD_MODE_MMAP  # pages come from the page cache and may be dropped under pressure
    return params


def context_params(cells: int, outputs: int, kv_type: KvType) -> Any:
    """How contexts are made, but for their threads."""
    params = lc.llama_context_default_params()
    params.n_ctx = cells
    params.n_batch = params.n_ubatch = min(sizes.BATCH_TOKENS, cells)
    params.n_seq_max = sizes.MAX_SEQUENCES
    # Without a limit the compute buffer holds logits for every token of a batch: 150 MB at 152k tokens.
    params.n_outputs_max = outputs
    params.kv_unified = True  # sequences share one pool of cells, and prefixes within it
    params.type_k = params.type_v = KV_TYPES[kv_type]
    # Quantized values can be read by flash attention only; where a model has none, llama.cpp then says so.
    quantized = kv_type is not KvType.F16
    params.flash_attn_type = lc.LLAMA_FLASH_ATTN_TYPE_ENABLED if quantized else lc.LLAMA_FLASH_ATTN_TYPE_AUTO
    params.no_perf = True
    return params


class Llama:
    """One loaded model with its context.

    Args:
        path: the GGUF file.
        cells: cells of the context (`sizes.context_cells`).
        threads: threads to compute with.
        on_progress: called with 0..1 while loading; False aborts.
        outputs: most rows of logits per decode; memory for them is kept (n_vocab floats each).
        kv_type: what keys and values are kept as.
        adapter: a low-rank adapter (GGUF) that is applied to the weights; empty: none.

    Raises:
        ModelUnavailable: with llama.cpp's own words.
    """

    def __init__(
        self,
        path: str,
        cells: int,
        threads: int,
        on_progress: Progress | None = None,
        outputs: int = sizes.MAX_SEQUENCES,
        kv_type: KvType = KvType.F16,
        adapter: str = "",
    ) -> None:
        self._model: Any = None
        self._context: Any = None
        NATIVE_LOG.install()
        NATIVE_LOG.clear()
        lc.llama_backend_init()
        try:
            self._load(path, on_progress)
            # Before the context: its graphs have room for what the model's adapters add.
            lora = self._load_adapter(adapter) if adapter else None
            self._open_context(cells, threads, outputs, kv_type)
            if lora is not None:
                self._apply(lora, adapter)
        except BaseException:
            self.close()
            raise

    def _params(self) -> Any:
        return model_params()

    def _load(self, path: str, on_progress: Progress | None) -> None:
        if not Path(path).is_file():
            raise ModelUnavailable(f"{path} is not a file")
        params = self._params()
        mapped = MappedPages(Path(path))

        def progress(fraction: float) -> bool:
            mapped.loaded(fraction)
            return on_progress is None or on_progress(fraction)

        params.progress_callback = _progress_callback(progress)
        self._model = lc.llama_model_load_from_file(path.encode(), params)
        if not self._model:
            raise ModelUnavailable(f"llama.cpp cannot load {path}: {NATIVE_LOG.reason('no reason was given')}")
        if not lc.llama_model_has_decoder(self._model) or lc.llama_model_has_encoder(self._model):
            raise ModelUnavailable(f"{path} is not a text generation model")
        mapped.release()
        self._vocab = lc.llama_model_get_vocab(self._model)
        self.n_vocab: int = lc.llama_vocab_n_tokens(self._vocab)
        self.trained_context: int = lc.llama_model_n_ctx_train(self._model)
        self._piece_buffer = ctypes.create_string_buffer(PIECE_BYTES)
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self._marks: dict[int, bool] = {}

    def _load_adapter(self, path: str) -> Any:
        lora = lc.llama_adapter_lora_init(self._model, path.encode())  # freed with the model
        if not lora:
            why = NATIVE_LOG.reason("no reason was given")
            raise ModelUnavailable(f"llama.cpp cannot load the adapter {path}: {why}")
        return lora

    def _apply(self, lora: Any, path: str) -> None:
        adapters, scales = (lc.llama_adapter_lora_p_ctypes * 1)(lora), (ctypes.c_float * 1)(1.0)
        if lc.llama_set_adapters_lora(self._context, adapters, 1, scales) != 0:
            raise ModelUnavailable(f"llama.cpp cannot apply the adapter {path}")

    def _open_context(self, cells: int, threads: int, outputs: int, kv_type: KvType) -> None:
        params = context_params(cells, outputs, kv_type)
        params.n_threads = params.n_threads_batch = threads
        self._context = lc.llama_init_from_model(self._model, params)
        if not self._context:
            why = NATIVE_LOG.reason("no reason was given")
            raise ModelUnavailable(f"llama.cpp cannot make a context with kv_type {kv_type}: {why}")
        # What a state's bytes mean depends on it.
        self.layout = f"keys {params.type_k}, values {params.type_v}, flash attention {params.flash_attn_type}"
        self._memory = lc.llama_get_memory(self._context)
        self.cells: int = lc.llama_n_ctx(self._context)
        self.batch_tokens: int = lc.llama_n_ubatch(self._context)
        self._batch = _Batch(self.batch_tokens)

    def close(self) -> None:
        """Free everything; does nothing the second time."""
        if self._context:
            lc.llama_free(self._context)
        if self._model:
            lc.llama_model_free(self._model)
        self._context = self._model = None

    # Tokens

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Tokens of a text, without any that the model's file would have added around it.

        special: spelled control tokens become control tokens. Tokens the file calls user-defined become what they
        are in both cases: that is how llama.cpp does it.
        """
        raw = text.encode("utf-8", "replace")
        room = len(raw) + 8  # a token has at least one byte, but for a few that some vocabularies put in front
        buffer = (lc.llama_token * room)()
        count = lc.llama_tokenize(self._vocab, raw, len(raw), buffer, room, False, special)
        if count < 0:  # the bindings say how much is needed
            buffer = (lc.llama_token * -count)()
            count = lc.llama_tokenize(self._vocab, raw, len(raw), buffer, -count, False, special)
        return list(buffer[:count])

    def piece(self, token: int, *, special: bool) -> bytes:
        """Bytes of a token's text. special: control tokens have theirs too, else they have none."""
        key = (token, special)
        known = self._pieces.get(key)
        if known is None:
            if len(self._pieces) >= KEPT_PIECES:
                self._pieces.clear()
            known = self._pieces[key] = self.read_piece(token, special=special)
        return known

    def read_piece(self, token: int, *, special: bool = True) -> bytes:
        """Like `piece`, and remembers nothing: for going through a whole vocabulary."""
        buffer = self._piece_buffer
        count = lc.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        if count < 0:
            buffer = ctypes.create_string_buffer(-count)
            count = lc.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        return ctypes.string_at(buffer, max(count, 0))

    def is_mark(self, token: int) -> bool:
        """Whether the token structures dialogues instead of being text: control tokens, and user-defined ones but for
        white space (some vocabularies keep runs of it that way)."""
        known = self._marks.get(token)
        if known is None:
            attributes = lc.llama_vocab_get_attr(self._vocab, token)
            special = attributes & (lc.LLAMA_TOKEN_ATTR_CONTROL | lc.LLAMA_TOKEN_ATTR_USER_DEFINED)
            known = self._marks[token] = bool(special) and bool(self.piece(token, special=True).strip())
        return known

    def is_control(self, token: int) -> bool:
        return bool(lc.llama_vocab_is_control(self._vocab, token))

    def is_eog(self, token: int) -> bool:
        """Whether the token ends a generation."""
        return bool(lc.llama_vocab_is_eog(self._vocab, token))

    @property
    def vocab(self) -> Any:
        """llama.cpp's vocabulary, valid until `close`."""
        return self._vocab

    # Computing

    def decode(self, rows: Iterable[Row]) -> None:
        """Compute (token, position, sequence id, wants logits) rows, at most `batch_tokens`.

        Raises:
            DecodeError: see there; unless it says no_room, the sequences in the batch are in an unknown state.
        """
        self._batch.fill(rows)
        NATIVE_LOG.clear()
        code = lc.llama_decode(self._context, self._batch.native)
        if code != 0:
            raise DecodeError(code)

    def logits(self, row: int) -> NDArray[np.float32]:
        """Logits of a row of the last decode that wanted them; shape [n_vocab].

        A view of llama.cpp's memory, valid until the next decode; read it, never write to it.
        """
        pointer = lc.llama_get_logits_ith(self._context, row)
        if not pointer:
            raise RuntimeError(f"row {row} has no logits")
        return np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))

    def set_threads(self, count: int) -> None:
        """Compute the next steps with so many threads."""
        lc.llama_set_n_threads(self._context, count, count)

    # Cells

    def forget(self, seq_id: int) -> None:
        """Free the cells that only this sequence uses."""
        lc.llama_memory_seq_rm(self._memory, seq_id, -1, -1)

    def cut(self, seq_id: int, length: int) -> bool:
        """Keep the first `length` tokens; False where the model's memory cannot."""
        return bool(lc.llama_memory_seq_rm(self._memory, seq_id, length, -1))

    def share(self, source: int, target: int, length: int) -> None:
        """Let `target` use the cells of the first `length` tokens of `source`; copies nothing."""
        lc.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def span(self, seq_id: int) -> tuple[int, int]:
        """First and last position of a sequence; (-1, -1) where it has none."""
        first = lc.llama_memory_seq_pos_min(self._memory, seq_id)
        return first, lc.llama_memory_seq_pos_max(self._memory, seq_id)

    def state_bytes(self, seq_id: int) -> int:
        """Bytes of a sequence's state."""
        return int(lc.llama_state_seq_get_size(self._context, seq_id))

    def state(self, seq_id: int) -> Buffer:
        """A copy of a sequence's state: keys and values of all its tokens, shared ones included."""
        size = self.state_bytes(seq_id)
        buffer = (ctypes.c_uint8 * size)()
        if lc.llama_state_seq_get_data(self._context, buffer, size, seq_id) != size:
            raise RuntimeError(f"the state of sequence {seq_id} cannot be read")
        return buffer

    def restore(self, seq_id: int, state: Buffer) -> bool:
        """Put a copy of a state in under an id that holds nothing; False where llama.cpp does not take it: its cells
        are too scattered, or it is the state of another model. The id then holds nothing."""
        size = len(state)
        data = (ctypes.c_uint8 * size).from_buffer_copy(state) if isinstance(state, bytes) else state
        if lc.llama_state_seq_set_data(self._context, data, size, seq_id) == size:
            return True
        self.forget(seq_id)
        return False

    def can_share(self) -> bool:
        """Whether part of a sequence can be kept and shared, found by trying: models with recurrent layers cannot.

        Computes two tokens, which also shows before the first request that the model computes at all.
        """
        token = max(0, lc.llama_vocab_eos(self._vocab))
        try:
            self.decode([(token, 0, 0, False), (token, 1, 0, True)])
        except DecodeError as error:
            raise ModelUnavailable(f"the model does not compute: {error}") from error
        able = self.cut(0, 1)
        self.forget(0)
        return able


class _Batch:
    """A llama_batch over numpy arrays: rows are written at once, not element by element through ctypes."""

    def __init__(self, most: int) -> None:
        self._token = np.zeros(most, np.int32)
        self._position = np.zeros(most, np.int32)
        self._ids = np.zeros(most, np.int32)
        self._wanted = np.zeros(most, np.int8)
        self._one_id = np.ones(most, np.int32)
        # seq_id is an array of pointers, one to each row's list of ids; each of our lists has one element.
        itemsize = self._ids.itemsize
        self._id_lists = (self._ids.ctypes.data + itemsize * np.arange(most)).astype(np.uintp)
        native = lc.llama_batch()
        native.token = _pointer(self._token, ctypes.c_int32)
        native.pos = _pointer(self._position, ctypes.c_int32)
        native.n_seq_id = _pointer(self._one_id, ctypes.c_int32)
        native.seq_id = ctypes.cast(self._id_lists.ctypes.data, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32)))
        native.logits = _pointer(self._wanted, ctypes.c_int8)
        self.native = native

    def fill(self, rows: Iterable[Row]) -> None:
        table = np.array(list(rows), np.int32)
        count = len(table)
        if not 0 < count <= len(self._token):
            raise ValueError(f"a batch of {count} rows")
        self._token[:count], self._position[:count] = table[:, 0], table[:, 1]
        self._ids[:count], self._wanted[:count] = table[:, 2], table[:, 3]
        self.native.n_tokens = count


def _pointer(array: NDArray[Any], kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))


def _progress_callback(on_progress: Progress) -> Any:
    def receive(fraction: float, _user_data: object) -> bool:
        try:
            return on_progress(fraction)
        except Exception:  # an exception cannot cross C frames; stopping the load shows that there was one
            return False

    return lc.llama_progress_callback(receive)
