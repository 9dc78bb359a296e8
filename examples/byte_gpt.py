"""A small GPT that learns to write Python from the source text of Python's own standard library.

Nothing here knows about devices: the model is an ordinary LightningModule and the data an ordinary
LightningDataModule. `train_plain.py` trains them on one device, `train_edge.py` on several.
"""

from __future__ import annotations

import math
import sysconfig
import zlib
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

BYTES = 256  # the vocabulary: no tokenizer to fetch, and bits per byte compare with any compressor


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
        return self.out(y.transpose(1, 2).reshape(rows, length, width))

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
        return x + self.dense(self.norm_2(x))


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
        return self.head(self.norm(x))


class ByteGPT(L.LightningModule):
    """Trains a `GPT` on the next byte; the learning rate warms up, then falls evenly to zero."""

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
        self.model = GPT(width, heads, blocks, context)

    def bits_per_byte(self, batch: list[Tensor]) -> Tensor:
        text = batch[0].long()
        scores = self.model(text[:, :-1])
        return F.cross_entropy(scores.flatten(0, 1), text[:, 1:].flatten()) / math.log(2)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.bits_per_byte(batch)
        self.log("train_bits_per_byte", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("bits_per_byte", self.bits_per_byte(batch), prog_bar=True)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"], betas=(0.9, 0.95))
        warmup, steps = self.hparams["warmup_steps"], self.trainer.estimated_stepping_batches

        def factor(step: int) -> float:
            return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        each_step = {"scheduler": schedule, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": each_step}

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


class StandardLibrary(L.LightningDataModule):
    """The modules of Python's standard library as rows of ``context + 1`` bytes.

    About every tenth file is kept for validation, chosen by a checksum of its name, so that a file
    is on the same side on every machine and after every update of Python.
    """

    def __init__(
        self,
        context: int = 128,
        batch_rows: int = 16,
        train_bytes: int = 640_000,
        val_bytes: int = 64_000,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        p = self.hparams
        folder = Path(sysconfig.get_path("stdlib"))
        # The top-level modules: the packages below hold tests and long tables of characters.
        names = sorted(folder.glob("*.py"), key=lambda path: zlib.crc32(path.name.encode()))
        held_out = [path for path in names if zlib.crc32(path.name.encode()) % 10 == 0]
        learnt = [path for path in names if path not in held_out]
        self.train_rows = read_rows(learnt, p["context"], p["train_bytes"])
        self.val_rows = read_rows(held_out, p["context"], p["val_bytes"])

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.train_rows, batch_size=self.hparams["batch_rows"], shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.val_rows, batch_size=self.hparams["batch_rows"])


def read_rows(paths: list[Path], context: int, limit_bytes: int) -> TensorDataset:
    """Read files up to a limit; rows overlap by the one byte that is predicted."""
    text = bytearray()
    for path in paths:
        if len(text) < limit_bytes:
            text += path.read_bytes()
    data = torch.frombuffer(text, dtype=torch.uint8)[:limit_bytes]
    return TensorDataset(data.unfold(0, context + 1, context))
