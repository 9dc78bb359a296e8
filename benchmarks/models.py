"""What is trained: the examples' GPT blocks in a row, and blocks whose computing time is known."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_edge.zoo.byte_gpt import Block

WIDTH, HEADS, LENGTH, VOCABULARY = 256, 8, 64, 1024
ROWS = 4  # of one micro-batch


def gpt(blocks: int, width: int = WIDTH) -> nn.Sequential:
    """12 blocks have 10.0 million parameters."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False))
    middle = (Block(width, HEADS, LENGTH) for _ in range(blocks))
    return nn.Sequential(nn.Embedding(VOCABULARY, width), *middle, head)


def build(model: str, size: int) -> nn.Sequential:
    """Return a model by name; ``tiny`` is a GPT with nearly nothing in it."""
    if model == "sleepers":
        return sleepers(size)
    if model == "convnet":
        return convnet(size)
    return gpt(size, 16 if model == "tiny" else WIDTH)


def gpt_stage(blocks: int, stage: int) -> nn.Sequential:
    """One of two halves: embedding and the first blocks, or the other blocks and the head."""
    middle = 1 + blocks // 2
    whole = gpt(blocks)
    return whole[:middle] if stage == 0 else whole[middle:]


def loss_of(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of text; squared error of the sleeping blocks' one number per row."""
    if target.dtype == torch.long:
        return F.cross_entropy(output.flatten(0, -2), target.flatten())
    return F.mse_loss(output.mean((1, 2)), target)


def text(rows: int) -> tuple[Tensor, Tensor]:
    """Random bytes and what should follow each of them."""
    tokens = torch.randint(
        VOCABULARY, (rows, LENGTH + 1), generator=torch.Generator().manual_seed(0)
    )
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


class Sleep(torch.autograd.Function):
    """The identity, after a sleep: computing time that no other process can lengthen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward_s: float, backward_s: float) -> Tensor:
        ctx.backward_s = backward_s
        time.sleep(forward_s)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        time.sleep(ctx.backward_s)
        return grad, None, None


class SleepingBlock(nn.Module):
    """A stage that takes 30 ms forwards and 60 ms backwards and has something to learn."""

    def __init__(self, forward_s: float = 0.03, backward_s: float = 0.06) -> None:
        super().__init__()
        self.forward_s, self.backward_s = forward_s, backward_s
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return Sleep.apply(x * self.scale, self.forward_s, self.backward_s)  # type: ignore[no-any-return, no-untyped-call]


class Spread(nn.Module):
    """One number per row becomes a whole activation, so that only the cut loads the link."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, None, None].expand(-1, LENGTH, WIDTH)


def sleepers(stages: int) -> nn.Sequential:
    """Modules 1 to ``stages`` are the stages; what crosses is as large as between GPT blocks."""
    return nn.Sequential(Spread(), *(SleepingBlock() for _ in range(stages)))


class Task(L.LightningModule):
    """An ordinary LightningModule around any of the models above."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs, target = batch
        return loss_of(self.model(inputs), target)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return adamw(self.model)


def adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=1e-4)


def numbers(rows: int) -> tuple[Tensor, Tensor]:
    """The sleeping blocks' batch."""
    return torch.ones(rows), torch.zeros(rows)


class Residual(nn.Module):
    """Two convolutions around which the input goes on; the first may halve the picture."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        stride = 2 if after > before else 1
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.GroupNorm(8, after), nn.GroupNorm(8, after)])
        self.beside = nn.Conv2d(before, after, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(inner)) + self.beside(x))


def convnet(blocks: int) -> nn.Sequential:
    """Large activations and few parameters in front, the other way round behind; 3.1M for 8."""
    torch.manual_seed(0)
    widths = [32 << (4 * i // blocks) for i in range(blocks)]
    stem = nn.Conv2d(3, widths[0], 3, padding=1)
    middle = (Residual(a, b) for a, b in zip([widths[0], *widths], widths, strict=False))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))
    return nn.Sequential(stem, *middle, head)


def images(rows: int) -> tuple[Tensor, Tensor]:
    """Random pictures and labels."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, 3, 32, 32, generator=generator), torch.arange(rows) % 10


def batch_of(model: str, rows: int) -> tuple[Tensor, Tensor]:
    makers = {"sleepers": numbers, "convnet": images}
    return makers.get(model, text)(rows)


def loader(batch: tuple[Tensor, Tensor], batches: int = 1000) -> DataLoader[tuple[Tensor, ...]]:
    """Yield ``batch`` again and again, more often than any contest takes."""
    rows = len(batch[0])
    data = TensorDataset(*(x.repeat(batches, *[1] * (x.dim() - 1)) for x in batch))
    return DataLoader(data, batch_size=rows)
