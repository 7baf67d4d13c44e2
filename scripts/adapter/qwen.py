"""Qwen2 in PyTorch with the weights of a GGUF file, and low-rank adapters on every projection.

The frozen weights are the dequantized ones: the adapter learns beside exactly what the board computes with. LoRA:
Hu et al. 2021, https://arxiv.org/abs/2106.09685.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gguf import GGUFReader, GGUFWriter
from gguf.quants import dequantize
from torch import Tensor, nn
from torch.nn import functional

PROJECTIONS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
TOGETHER = (("attn_q", "attn_k", "attn_v"), ("attn_output",), ("ffn_gate", "ffn_up"), ("ffn_down",))  # same input
ALIKE = 8  # turns that are padded to one length for attention: sorted by length, little of it is padding


class Frozen(torch.autograd.Function):
    """x W^T in int8, forwards and backwards: each row of activations and of gradients is scaled by its greatest, as
    SwitchBack does (Wortsman et al. 2023, https://arxiv.org/abs/2304.13013). What is frozen needs no gradient, and what
    is trained is computed in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forwards: Any, backwards: Any) -> Tensor:
        """[L, in] to [L, out]."""
        ctx.backwards = backwards
        return _int8(x, forwards)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """[L, out] to [L, in]."""
        return _int8(gradient, ctx.backwards), None, None


def _int8(x: Tensor, packed: Any) -> Tensor:
    scale = x.abs().amax(-1, keepdim=True).clamp_min_(1e-20)
    return torch.ops.quantized.linear_dynamic(x / scale, packed).mul_(scale)


def _packed(weight: Tensor) -> Any:
    """A matrix in int8, each row scaled by its greatest, in the order that the CPU's kernels want."""
    scale = weight.abs().amax(1).clamp_min(1e-8) / 127
    zero = torch.zeros(len(scale), dtype=torch.long)
    rows = torch.quantize_per_channel(weight.contiguous(), scale.double(), zero, 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(rows, None)


class Projections(nn.Module):
    """Frozen matrices of one input, each with a trained one of low rank beside it: W x + (alpha / rank) B A x."""

    def __init__(
        self, named: Mapping[str, tuple[Tensor, Tensor | None]], rank: int, alpha: float, *, int8: bool
    ) -> None:
        super().__init__()
        self.names, self.rank, self.scale = tuple(named), rank, alpha / rank
        self.sizes = [weight.shape[0] for weight, _ in named.values()]
        weight = torch.cat([weight for weight, _ in named.values()])
        biases = [bias for _, bias in named.values() if bias is not None]
        self.a = nn.ParameterDict({n: torch.randn(rank, weight.shape[1]) / math.sqrt(weight.shape[1]) for n in named})
        self.b = nn.ParameterDict({n: torch.zeros(w.shape[0], rank) for n, (w, _) in named.items()})
        self.packed = (_packed(weight), _packed(weight.t())) if int8 else None
        self.register_buffer("weight", None if int8 else weight, persistent=False)
        self.register_buffer("bias", torch.cat(biases) if biases else None, persistent=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """[L, in] to [L, out] of each."""
        if self.packed:
            base = Frozen.apply(x, *self.packed)
            base = base if self.bias is None else base + self.bias
        else:
            base = functional.linear(x, self.weight, self.bias)
        into = torch.cat([self.a[name] for name in self.names]).to(x.dtype)
        low = (functional.linear(x, into) * self.scale).split(self.rank, -1)
        return [
            torch.addmm(part, each, self.b[name].to(x.dtype).t())
            for name, part, each in zip(self.names, base.split(self.sizes, -1), low, strict=True)
        ]


class Pack(NamedTuple):
    """A prefix and turns that stand beside each other behind it. tokens, positions: [L]. prefix: its count of tokens.
    turns: where each begins and ends. wanted [k]: the tokens before those to learn, gold [k]."""

    tokens: Tensor
    positions: Tensor
    prefix: int
    turns: list[tuple[int, int]]
    wanted: Tensor
    gold: Tensor

    def to(self, device: str) -> Pack:
        """There."""
        moved = {name: getattr(self, name).to(device) for name in ("tokens", "positions", "wanted", "gold")}
        return self._replace(**moved)


class Qwen(nn.Module):
    """The model of a GGUF file whose architecture is qwen2.

    Args:
        rank, alpha: of the adapter.
        kind: what the frozen weights and activations are kept as.
        int8: multiply by the frozen weights in int8, with activations in float32.
    """

    def __init__(self, path: Path, rank: int, alpha: float, kind: torch.dtype, *, int8: bool = False) -> None:
        super().__init__()
        reader = GGUFReader(path)
        tensors = {tensor.name: tensor for tensor in reader.tensors}

        def read(name: str) -> Tensor:
            tensor = tensors[name]
            return torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type))).to(kind)

        def said(key: str) -> float:
            return float(reader.fields[f"qwen2.{key}"].contents())

        self.layers, self.heads = int(said("block_count")), int(said("attention.head_count"))
        self.kv_heads, self.width = int(said("attention.head_count_kv")), int(said("embedding_length"))
        self.eps, self.alpha, self.rank = said("attention.layer_norm_rms_epsilon"), alpha, rank
        self.head = self.width // self.heads
        self.register_buffer("embedding", read("token_embd.weight"), persistent=False)
        output = read("output.weight") if "output.weight" in tensors else self.embedding
        self.register_buffer("output", output, persistent=False)
        self.register_buffer("norm", read("output_norm.weight"), persistent=False)
        steps = torch.arange(0, self.head, 2).float() / self.head
        self.register_buffer("turns", 1.0 / said("rope.freq_base") ** steps, persistent=False)
        self.blocks = nn.ModuleList()
        for i in range(self.layers):
            block = nn.Module()
            block.groups = nn.ModuleList()
            for group in TOGETHER:
                named = {}
                for name in group:
                    full = f"blk.{i}.{name}"
                    named[name] = (read(f"{full}.weight"), read(f"{full}.bias") if f"{full}.bias" in tensors else None)
                block.groups.append(Projections(named, rank, alpha, int8=int8))
            block.register_buffer("before", read(f"blk.{i}.attn_norm.weight"), persistent=False)
            block.register_buffer("middle", read(f"blk.{i}.ffn_norm.weight"), persistent=False)
            self.blocks.append(block)

    def forward(self, pack: Pack) -> Tensor:
        """Logits [k, vocabulary] of the tokens that follow `wanted`."""
        x = self.embedding[pack.tokens]
        angles = pack.positions.float()[:, None] * self.turns[None]
        cos, sin = (torch.cat([part, part], -1).to(x.dtype) for part in (angles.cos(), angles.sin()))
        alike = _alike(pack, x)
        for block in self.blocks:
            qkv, out, gate_up, down = block.groups
            q, k, v = qkv(self._normed(x, block.before))
            x = x + out(self._attention(q, k, v, cos, sin, pack.prefix, alike))[0]
            gate, up = gate_up(self._normed(x, block.middle))
            x = x + down(functional.silu(gate) * up)[0]
        return functional.linear(self._normed(x[pack.wanted], self.norm), self.output)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x, (self.width,), weight, self.eps)

    def _attention(
        self, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, prefix: int, alike: list[tuple[Tensor, ...]]
    ) -> Tensor:
        """[L, heads * head], of a prefix that sees itself and turns of which each sees it and itself."""

        def turned(x: Tensor, count: int) -> Tensor:
            x, half = x.view(-1, count, self.head).transpose(0, 1), self.head // 2
            return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin

        attend = functional.scaled_dot_product_attention
        shared = self.heads // self.kv_heads
        q, k, v = turned(q, self.heads), turned(k, self.kv_heads), v.view(-1, self.kv_heads, self.head).transpose(0, 1)
        k, v = (each.repeat_interleave(shared, 0) for each in (k, v))
        parts = (
            [attend(q[None, :, :prefix], k[None, :, :prefix], v[None, :, :prefix], is_causal=True)[0]] if prefix else []
        )
        for places, mask, real in alike:  # [n, most], [n, 1, most, prefix + most], places of real tokens among n * most
            own_q, own_k, own_v = (each[:, places].transpose(0, 1) for each in (q, k, v))
            many = len(places)
            seen_k = torch.cat([k[None, :, :prefix].expand(many, -1, -1, -1), own_k], 2)
            seen_v = torch.cat([v[None, :, :prefix].expand(many, -1, -1, -1), own_v], 2)
            found = attend(own_q, seen_k, seen_v, attn_mask=mask).transpose(0, 1).reshape(self.heads, -1, self.head)
            parts.append(found[:, real])
        order = torch.cat(
            [torch.arange(prefix, device=q.device), *(places.reshape(-1)[real] for places, _, real in alike)]
        )
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=q.device)
        return torch.cat(parts, 1)[:, back].transpose(0, 1).reshape(-1, self.heads * self.head)

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What is learnt, by name."""
        return ((name, each) for name, each in self.named_parameters() if each.requires_grad)

    def begin_with(self, path: Path) -> None:
        """Take over an adapter's file of the same rank and alpha."""
        tensors = {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}
        for i, block in enumerate(self.blocks):
            for name in PROJECTIONS:
                for part, matrix in self._matrices(block, name):
                    values = np.array(tensors[f"blk.{i}.{name}.weight.{part}"], dtype=np.float32)
                    matrix.data.copy_(torch.from_numpy(values))

    def export(self, path: Path, described: dict[str, str]) -> None:
        """Write the adapter as llama.cpp reads it, in float16.

        Args:
            described: key-value pairs of text that say what it belongs to.
        """
        writer = GGUFWriter(path, "qwen2")
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", float(self.alpha))
        for key, value in described.items():
            writer.add_string(key, value)
        for i, block in enumerate(self.blocks):
            for name in PROJECTIONS:
                for part, matrix in self._matrices(block, name):
                    values = matrix.detach().float().cpu().numpy().astype(np.float16)
                    writer.add_tensor(f"blk.{i}.{name}.weight.{part}", values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    @staticmethod
    def _matrices(block: nn.Module, name: str) -> tuple[tuple[str, Tensor], ...]:
        group = next(each for each in block.groups if name in each.names)
        return (("lora_a", group.a[name]), ("lora_b", group.b[name]))


def _alike(pack: Pack, x: Tensor) -> list[tuple[Tensor, ...]]:
    """Turns of about one length together: (places [n, most], what each token sees [n, 1, most, prefix + most], which of
    the n * most are no padding)."""
    by_length = sorted(pack.turns, key=lambda turn: turn[1] - turn[0])
    found = []
    for first in range(0, len(by_length), ALIKE):
        group = by_length[first : first + ALIKE]
        most = group[-1][1] - group[-1][0]
        starts = torch.tensor([turn[0] for turn in group], device=x.device)
        sizes = torch.tensor([turn[1] - turn[0] for turn in group], device=x.device)
        steps = torch.arange(most, device=x.device)
        places = starts[:, None] + torch.minimum(steps[None], sizes[:, None] - 1)
        causal = torch.ones(most, most, dtype=torch.bool, device=x.device).tril()
        sees = torch.cat([torch.ones(most, pack.prefix, dtype=torch.bool, device=x.device), causal], 1)
        real = (steps[None] < sizes[:, None]).reshape(-1).nonzero()[:, 0]
        found.append((places, sees[None, None], real))
    return found
