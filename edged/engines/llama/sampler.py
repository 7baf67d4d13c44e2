"""Chooses the next token from a row of logits. Rows are only read: they belong to llama.cpp and lie beside those of
other sequences."""

from __future__ import annotations

import ctypes
import secrets
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import llama_cpp as lc
import numpy as np
from numpy.typing import NDArray

from edged.types import Sampling

Logits = NDArray[np.float32]
Ids = NDArray[np.intp]

# llama_token_data
CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
# top_p and min_p keep at least so many candidates.
MIN_KEEP = 1
# The seed that tells llama.cpp to find one of its own (LLAMA_DEFAULT_SEED); all below are taken as they are.
RANDOM_SEED = 0xFFFFFFFF


class Allowed(Protocol):
    """The tokens that may come next."""

    @property
    def ids(self) -> Ids:
        """All of them, at least one; costs more than asking for one."""
        ...

    def holds(self, token: int) -> bool:
        """Whether the token is surely among them."""
        ...


class Sampler(Protocol):
    """A way of choosing; one per sequence."""

    def pick(self, logits: Logits, allowed: Allowed | None) -> int:
        """A token, among `allowed` where given. logits: shape [n_vocab]."""
        ...

    def close(self) -> None:
        """Free what is native; does nothing the second time."""
        ...


class Greedy:
    """The most probable token."""

    def pick(self, logits: Logits, allowed: Allowed | None) -> int:
        best = int(logits.argmax())
        if allowed is None or allowed.holds(best):  # mostly: then the others need not be known
            return best
        ids = allowed.ids
        return int(ids[logits[ids].argmax()])

    def close(self) -> None:
        pass


class Chain:
    """llama.cpp's samplers, in llama.cpp's order: top_k, nucleus (top_p), min_p, temperature, a draw."""

    def __init__(self, sampling: Sampling) -> None:
        seed = secrets.randbelow(RANDOM_SEED) if sampling.seed is None else sampling.seed % RANDOM_SEED
        params = lc.llama_sampler_chain_default_params()
        params.no_perf = True
        self._chain: Any = lc.llama_sampler_chain_init(params)
        if sampling.top_k > 0:
            lc.llama_sampler_chain_add(self._chain, lc.llama_sampler_init_top_k(sampling.top_k))
        if sampling.top_p < 1:
            lc.llama_sampler_chain_add(self._chain, lc.llama_sampler_init_top_p(sampling.top_p, MIN_KEEP))
        if sampling.min_p > 0:
            lc.llama_sampler_chain_add(self._chain, lc.llama_sampler_init_min_p(sampling.min_p, MIN_KEEP))
        lc.llama_sampler_chain_add(self._chain, lc.llama_sampler_init_temp(sampling.temperature))
        lc.llama_sampler_chain_add(self._chain, lc.llama_sampler_init_dist(seed))

    def pick(self, logits: Logits, allowed: Allowed | None) -> int:
        ids = np.arange(len(logits), dtype=np.int32) if allowed is None else allowed.ids
        candidates = np.zeros(len(ids), CANDIDATE)
        candidates["id"] = ids
        candidates["logit"] = logits if allowed is None else logits[ids]
        data = ctypes.cast(candidates.ctypes.data, lc.llama_token_data_p)
        array = lc.llama_token_data_array(data=data, size=len(ids), selected=-1, sorted=False)
        lc.llama_sampler_apply(self._chain, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def close(self) -> None:
        if self._chain:
            lc.llama_sampler_free(self._chain)
        self._chain = None


class Penalized:
    """Makes tokens that the answer has already less likely, then leaves the choice to another sampler.

    Only the answer's own tokens count, forced ones included. Those of the prompt do not: the marks by which a turn ends
    are among them, and an answer has to end.

    Args:
        tokens: of the sequence, which grows; drafts are not among them.
        begin: where in `tokens` the answer begins.
    """

    def __init__(self, sampling: Sampling, inner: Sampler, tokens: Sequence[int], begin: int) -> None:
        self._repeat = np.float32(sampling.repeat_penalty)
        self._presence = np.float32(sampling.presence_penalty)
        self._frequency = np.float32(sampling.frequency_penalty)
        self._inner, self._tokens, self._counted = inner, tokens, begin
        self._counts: Counter[int] = Counter()

    def pick(self, logits: Logits, allowed: Allowed | None) -> int:
        self._counts.update(self._tokens[self._counted :])
        self._counted = len(self._tokens)
        if not self._counts:
            return self._inner.pick(logits, allowed)
        ids = np.fromiter(self._counts.keys(), np.intp, len(self._counts))
        times = np.fromiter(self._counts.values(), np.float32, len(self._counts))
        seen = logits[ids]
        seen = np.where(seen > 0, seen / self._repeat, seen * self._repeat)
        row = logits.copy()  # the row itself is llama.cpp's
        row[ids] = seen - self._presence - self._frequency * times
        return self._inner.pick(row, allowed)

    def close(self) -> None:
        self._inner.close()


def sampler(sampling: Sampling, tokens: Sequence[int] = (), begin: int = 0) -> Sampler:
    """The sampler for these settings. tokens, begin: see Penalized; read only where a penalty is set."""
    chosen: Sampler = Greedy() if sampling.temperature <= 0 else Chain(sampling)
    if sampling.repeat_penalty == 1 and not sampling.presence_penalty and not sampling.frequency_penalty:
        return chosen
    return Penalized(sampling, chosen, tokens, begin)


def logprob(logits: Logits, token: int) -> float:
    """Natural logarithm of the token's probability under the whole row."""
    top = logits.max()
    return float(logits[token] - top - np.log(np.exp(logits - top).sum()))
