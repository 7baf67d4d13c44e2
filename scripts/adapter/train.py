"""Trains an adapter on packs of tokens (`adapter.data`), from checkpoints where there are any.

    python -m adapter.train --model MODEL.gguf --packs FILE OUT.gguf

Uses CUDA where torch sees it. OUT.gguf.checkpoint holds what is needed to go on; the same command goes on from it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import signal
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional

from adapter.qwen import Pack, Qwen

RANK, ALPHA = 16, 32.0  # 8.8 million numbers for the 0.5B, 17.6 MB: what fits the repository
LEARNING_RATE, LEAST = 3e-4, 0.05  # the first after the warm-up; the last as a share of it, after a cosine
WARM_UP = 20  # steps
BETAS, DECAY, CLIP = (0.9, 0.99), 0.01, 1.0
CHECKPOINT_S = 300.0
CPU = Path("/proc/cpuinfo")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--packs", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=int, help="stop after so many packs, as if these were all")
    parser.add_argument("--rate", type=float, default=LEARNING_RATE, help="the learning rate after the warm-up")
    parser.add_argument("--begin-with", type=Path, metavar="ADAPTER", help="an adapter that is taught further")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    packs = [json.loads(line) for line in options.packs.open(encoding="utf-8")][: options.most]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    flags = set(CPU.read_text(encoding="utf-8").split())
    # Without instructions for it a CPU computes bfloat16 in float32, with conversions on top. With those for int8 the
    # products are 2.5 to 3.5 times as fast as in float32; the gradient's direction is kept to a cosine of 0.97.
    half = device == "cuda" or bool({"avx512_bf16", "amx_bf16"} & flags)
    int8 = not half and "avx512_vnni" in flags
    torch.manual_seed(options.seed)
    if int8:
        torch.backends.quantized.engine = "onednn"
    model = Qwen(options.model, RANK, ALPHA, torch.bfloat16 if half else torch.float32, int8=int8).to(device)
    run = Run(model, packs, options.out, device, options.rate)
    if options.begin_with:
        model.begin_with(options.begin_with)
    run.go_on()
    described = {
        "edged.adapter.weights": hashlib.sha256(options.model.read_bytes()).hexdigest(),
        "edged.adapter.dialect": "compact",
    }
    signal.signal(signal.SIGTERM, run.stop)
    signal.signal(signal.SIGINT, run.stop)
    if run.train():
        model.export(options.out, described)


class Run:
    """One training: the optimizer's state and where it is."""

    def __init__(self, model: Qwen, packs: list[dict[str, list]], out: Path, device: str, rate: float) -> None:
        self.model, self._packs, self._device, self._greatest_rate = model, packs, device, rate
        self._checkpoint = Path(f"{out}.checkpoint")
        self._parameters = [each for _, each in model.trained()]
        self._optimizer = torch.optim.AdamW(self._parameters, LEARNING_RATE, BETAS, weight_decay=DECAY)
        self._step = self._tokens = 0
        self._stopped = False

    def stop(self, *_: object) -> None:
        """After the step that is under way, with a checkpoint."""
        self._stopped = True

    def go_on(self) -> None:
        """From the checkpoint, where there is one."""
        if self._checkpoint.exists():
            state = torch.load(self._checkpoint)
            self.model.load_state_dict(state["adapter"], strict=False)
            self._optimizer.load_state_dict(state["optimizer"])
            self._step, self._tokens = state["step"], state["tokens"]

    def train(self) -> bool:
        """All packs that are left; False where it was stopped before."""
        began, saved, first, average = time.monotonic(), time.monotonic(), self._tokens, None
        while self._step < len(self._packs) and not self._stopped:
            loss, tokens = self._learn(self._packs[self._step])
            self._step, self._tokens = self._step + 1, self._tokens + tokens
            average = loss if average is None else 0.95 * average + 0.05 * loss
            now = time.monotonic()
            if self._step % 10 == 0:
                speed = (self._tokens - first) / (now - began)
                of = f"step {self._step} of {len(self._packs)}, {self._tokens} tokens"
                print(f"{of}, {speed:.0f}/s, loss {average:.4f}", flush=True)
            if now - saved > CHECKPOINT_S:
                self._save()
                saved = now
        self._save()
        return not self._stopped

    def _rate(self) -> float:
        done = self._step / len(self._packs)
        cosine = 0.5 * (1 + math.cos(math.pi * done))
        return self._greatest_rate * min(1.0, (self._step + 1) / WARM_UP) * (cosine * (1 - LEAST) + LEAST)

    def _learn(self, pack: dict[str, list]) -> tuple[float, int]:
        made = tensors(pack).to(self._device)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate()
        loss = functional.cross_entropy(self.model(made).float(), made.gold)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, CLIP)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.item(), len(made.tokens)

    def _save(self) -> None:
        state = {
            "adapter": {name: each.detach() for name, each in self.model.trained()},
            "optimizer": self._optimizer.state_dict(),
            "step": self._step,
            "tokens": self._tokens,
        }
        part = Path(f"{self._checkpoint}.part")
        torch.save(state, part)
        part.replace(self._checkpoint)


def tensors(pack: dict[str, list]) -> Pack:
    """A pack of `adapter.data` as the model takes it."""
    tokens, positions = list(pack["prefix"]), list(range(len(pack["prefix"])))
    turns, wanted, gold = list[tuple[int, int]](), list[int](), list[int]()
    for asked, answer in pack["turns"]:
        begins = len(tokens)
        for place, token in enumerate(asked + answer):
            if place >= len(asked):
                wanted.append(len(tokens) - 1)
                gold.append(token)
            tokens.append(token)
            positions.append(len(pack["prefix"]) + place)
        turns.append((begins, len(tokens)))
    as_tensor = torch.tensor
    return Pack(as_tensor(tokens), as_tensor(positions), len(pack["prefix"]), turns, as_tensor(wanted), as_tensor(gold))


if __name__ == "__main__":
    sys.exit(main())
