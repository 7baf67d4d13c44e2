"""Qwen2 in PyTorch with the weights of a GGUF file, and low-rank adapters on every projection.

The frozen weights are the dequantized ones: the adapter learns beside exactly what the board computes with. LoRA:
Hu et al. 2021, https://arxiv.org/abs/2106.09685.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader, GGUFWriter
from gguf.quants import dequantize
from torch import Tensor, nn
from torch.nn import functional

PROJECTIONS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


class Projection(nn.Module):
    """A frozen matrix with a trained one of low rank beside it: W x + (alpha / rank) B A x."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, rank: int, alpha: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.a = nn.Parameter(torch.randn(rank, weight.shape[1]) / math.sqrt(weight.shape[1]))
        self.b = nn.Parameter(torch.zeros(weight.shape[0], rank))
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        """[L, in] to [L, out]."""
        low = functional.linear(functional.linear(x, self.a.to(x.dtype)), self.b.to(x.dtype))
        return functional.linear(x, self.weight, self.bias) + self.scale * low


class Qwen(nn.Module):
    """The model of a GGUF file whose architecture is qwen2.

    Args:
        rank, alpha: of the adapter.
        kind: what the frozen weights and activations are kept as.
    """

    def __init__(self, path: Path, rank: int, alpha: float, kind: torch.dtype) -> None:
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
            block = nn.ModuleDict()
            for name in PROJECTIONS:
                full = f"blk.{i}.{name}"
                bias = read(f"{full}.bias") if f"{full}.bias" in tensors else None
                block[name] = Projection(read(f"{full}.weight"), bias, rank, alpha)
            block.register_buffer("before", read(f"blk.{i}.attn_norm.weight"), persistent=False)
            block.register_buffer("middle", read(f"blk.{i}.ffn_norm.weight"), persistent=False)
            self.blocks.append(block)

    def forward(self, tokens: Tensor, positions: Tensor, mask: Tensor, wanted: Tensor) -> Tensor:
        """Logits [k, vocabulary] of the tokens that follow `wanted` [k], places in tokens [L]. mask: [L, L], whom each
        token sees."""
        x = self.embedding[tokens]
        angles = positions.float()[:, None] * self.turns[None]
        cos, sin = (torch.cat([part, part], -1).to(x.dtype) for part in (angles.cos(), angles.sin()))
        for block in self.blocks:
            x = x + self._attention(block, self._normed(x, block.before), cos, sin, mask)
            y = self._normed(x, block.middle)
            x = x + block["ffn_down"](functional.silu(block["ffn_gate"](y)) * block["ffn_up"](y))
        return functional.linear(self._normed(x[wanted], self.norm), self.output)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        y = x.float()
        return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype) * weight

    def _attention(self, block: nn.ModuleDict, y: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        def heads(name: str, count: int) -> Tensor:
            return block[name](y).view(-1, count, self.head).transpose(0, 1)

        def turned(x: Tensor) -> Tensor:
            half = self.head // 2
            return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin

        q, k = turned(heads("attn_q", self.heads)), turned(heads("attn_k", self.kv_heads))
        shared = self.heads // self.kv_heads
        k, v = (x.repeat_interleave(shared, 0) for x in (k, heads("attn_v", self.kv_heads)))
        out = functional.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask)[0]
        return block["attn_output"](out.transpose(0, 1).reshape(-1, self.width))

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What is learnt, by name."""
        return ((name, each) for name, each in self.named_parameters() if each.requires_grad)

    def begin_with(self, path: Path) -> None:
        """Take over an adapter's file of the same rank and alpha."""
        tensors = {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}
        for i, block in enumerate(self.blocks):
            for name in PROJECTIONS:
                for part, matrix in (("lora_a", block[name].a), ("lora_b", block[name].b)):
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
                for part, matrix in (("lora_a", block[name].a), ("lora_b", block[name].b)):
                    values = matrix.detach().float().cpu().numpy().astype(np.float16)
                    writer.add_tensor(f"blk.{i}.{name}.weight.{part}", values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
