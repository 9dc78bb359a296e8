"""A small GPT on bytes: no tokenizer to fetch, and bits per byte compare with any compressor.

Nothing here knows about devices: it is an ordinary LightningModule.
"""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_edge.zoo.checks import check_heads, check_sizes
from lightning_edge.zoo.optimizer import adamw

__all__ = ["ByteGPT"]

BYTES = 256  # the vocabulary


class Attention(nn.Module):
    """Causal self-attention: every position looks at itself and at what came before.

    Positions are told apart by rotating queries and keys: pair ``i`` of a head's entries turns by
    ``position / 1000^(i / pairs)``, so that a product of the two depends on their distance only.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        pairs = width // heads // 2
        angles = torch.arange(context)[:, None] / 1000 ** (torch.arange(pairs) / pairs)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        q, k, v = (
            part.view(rows, length, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        y = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True)
        mixed: Tensor = self.out(y.transpose(1, 2).reshape(rows, length, width))
        return mixed

    def rotate(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        cos, sin = self.cos[: x.shape[2]], self.sin[: x.shape[2]]
        return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class Block(nn.Module):
    """Attention, then two dense layers, each added to what came in."""

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, context)
        self.norm_2 = nn.LayerNorm(width)
        self.dense = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_1(x))
        added: Tensor = x + self.dense(self.norm_2(x))
        return added


class GPT(nn.Module):
    """Bytes in, scores for the next byte out: ``[rows, length] -> [rows, length, 256]``."""

    def __init__(self, width: int, heads: int, blocks: int, context: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(BYTES, width)
        self.blocks = nn.ModuleList(Block(width, heads, context) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, BYTES, bias=False)
        self.head.weight = self.embed.weight  # tied: one matrix reads bytes and writes them
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                # What blocks add is smaller, so that the sum over all blocks keeps its size.
                added = name.endswith(("out.weight", "dense.2.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * blocks) if added else 0.02)

    def forward(self, text: Tensor) -> Tensor:
        x = self.embed(text)
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.head(self.norm(x))
        return scores


class ByteGPT(L.LightningModule):
    """Trains a `GPT` on the next byte; the learning rate warms up, then falls evenly to zero.

    Batches are lists of one tensor of bytes, ``[rows, context + 1]``.

    Args:
        width: Entries that describe a byte.
        heads: Of each attention; a divisor of half the width.
        blocks: Their number.
        context: Bytes that are seen at once.
        lr: The highest learning rate.
        warmup_steps: Optimizer steps until it is reached.

    Raises:
        UnsupportedError: Sizes that cannot be.
    """

    def __init__(
        self,
        width: int = 192,
        heads: int = 6,
        blocks: int = 6,
        context: int = 128,
        lr: float = 3e-3,
        warmup_steps: int = 30,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        check_sizes("model", width=width, heads=heads, blocks=blocks, context=context)
        check_heads(width, heads)
        self.model = GPT(width, heads, blocks, context)

    def bits_per_byte(self, batch: list[Tensor]) -> Tensor:
        """Mean over all bytes; 8 for who knows nothing, and what a compressor would need."""
        text = batch[0].long()
        scores = self.model(text[:, :-1])
        return F.cross_entropy(scores.flatten(0, 1), text[:, 1:].flatten()) / math.log(2)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """One batch."""
        loss = self.bits_per_byte(batch)
        self.log("train_bits_per_byte", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """One batch."""
        self.log("bits_per_byte", self.bits_per_byte(batch), prog_bar=True)

    def configure_optimizers(self) -> Any:
        """AdamW with a warm-up."""
        return adamw(self, self.hparams["lr"], self.hparams["warmup_steps"], betas=(0.9, 0.95))

    @torch.no_grad()
    def generate(self, start: str, count: int, temperature: float = 0.6, seed: int = 0) -> str:
        """Continue ``start`` by ``count`` bytes."""
        generator = torch.Generator().manual_seed(seed)
        text = torch.tensor([list(start.encode())])
        for _ in range(count):
            scores = self.model(text[:, -self.hparams["context"] :])[0, -1]
            chances = (scores / temperature).softmax(-1)
            text = torch.cat([text, chances.multinomial(1, generator=generator)[None]], dim=1)
        return bytes(text[0].tolist()).decode(errors="replace")
