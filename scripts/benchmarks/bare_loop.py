"""A child of `concurrency`: the least that has to be done for a token, on the bindings edged runs on.

One sequence, greedy, llama.cpp's low-level functions and nothing else: no text, no scheduler, no one to tell. A line on
stdin is a prompt (JSON), the line it answers with is tokens a second after the first one.

    python bare_loop.py MODEL.gguf N_CTX N_BATCH THREADS TOKENS
"""

from __future__ import annotations

import ctypes
import json
import sys
import time

import llama_cpp as lc
import numpy as np


@lc.llama_log_callback
def quiet(level: int, text: bytes, user_data: object) -> None:
    """llama.cpp's log goes nowhere."""


class Loop:
    """A model, its context, and a batch."""

    def __init__(self, path: str, n_ctx: int, n_batch: int, threads: int) -> None:
        lc.llama_log_set(quiet, ctypes.c_void_p(0))
        lc.llama_backend_init()
        self._model = lc.llama_model_load_from_file(path.encode(), lc.llama_model_default_params())
        self._vocab = lc.llama_model_get_vocab(self._model)
        params = lc.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, n_batch, n_batch
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        self._context = lc.llama_init_from_model(self._model, params)
        self._n_vocab = lc.llama_vocab_n_tokens(self._vocab)
        self._batch = lc.llama_batch_init(n_batch, 0, 1)

    def tokenize(self, text: str) -> list[int]:
        """With its control tokens."""
        raw = text.encode()
        buffer = (lc.llama_token * (len(raw) + 8))()
        return list(buffer[: lc.llama_tokenize(self._vocab, raw, len(raw), buffer, len(buffer), False, True)])

    def decode(self, tokens: list[int], position: int) -> int:
        """Compute tokens; the likeliest next one."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position + i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, i == len(tokens) - 1
        if lc.llama_decode(self._context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        row = lc.llama_get_logits_ith(self._context, len(tokens) - 1)
        return int(np.ctypeslib.as_array(row, shape=(self._n_vocab,)).argmax())

    def rate(self, prompt: str, tokens: int) -> float:
        """Tokens a second after the first one."""
        lc.llama_memory_clear(lc.llama_get_memory(self._context), True)
        computed = self.tokenize(prompt)
        token = self.decode(computed, 0)
        first = time.perf_counter()
        for i in range(tokens - 1):
            token = self.decode([token], len(computed) + i)
        return (tokens - 1) / (time.perf_counter() - first)


def main() -> None:
    """Serve prompts until stdin ends."""
    path, *numbers = sys.argv[1:]
    n_ctx, n_batch, threads, tokens = map(int, numbers)
    loop = Loop(path, n_ctx, n_batch, threads)
    for line in sys.stdin:
        print(loop.rate(json.loads(line), tokens), flush=True)


if __name__ == "__main__":
    main()
