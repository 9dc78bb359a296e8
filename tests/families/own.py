"""Models of our own, of kinds that transformers does not have."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models import VOCAB, Batch, Tiny


class UNet(nn.Module):
    """Skips from each level on the way down to the same level on the way up."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = _conv(3, 8), _conv(8, 16)
        self.middle = _conv(16, 16)
        self.up2, self.up1 = _conv(32, 8), _conv(16, 8)
        self.head = nn.Conv2d(8, 4, 1)

    def training_step(self, batch: Batch) -> Tensor:
        first = self.down1(batch["image"])
        second = self.down2(F.max_pool2d(first, 2))
        x = F.interpolate(self.middle(F.max_pool2d(second, 2)), scale_factor=2.0)
        x = F.interpolate(self.up2(torch.cat([x, second], 1)), scale_factor=2.0)
        x = self.up1(torch.cat([x, first], 1))
        target = batch["label"][:, None, None].expand(-1, 8, 8)
        return F.cross_entropy(self.head(x), target)


def _conv(inside: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inside, out, 3, padding=1), nn.GELU())


class Lstm(nn.Module):
    """Three recurrent layers and a head; states of each layer leave the module in tuples."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, 16)
        self.first = nn.LSTM(16, 16, batch_first=True)
        self.second = nn.LSTM(16, 16, batch_first=True)
        self.third = nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, VOCAB)

    def training_step(self, batch: Batch) -> Tensor:
        x, state = self.first(self.embedding(batch["input_ids"]))
        x, state = self.second(x, state)
        x, _ = self.third(x, state[0])
        return F.cross_entropy(self.head(x).flatten(0, 1), batch["labels"].flatten())


class Residuals(nn.Module):
    """Everything that a chain of blocks is not: residuals outside, a shared norm, a first value
    used at the end, blocks that are given and give dicts and tuples."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, 16)
        self.norm = nn.LayerNorm(16)
        self.layers = nn.ModuleList([nn.Linear(16, 16) for _ in range(5)])
        self.gate = _Gate()
        self.head = nn.Linear(16, VOCAB)

    def training_step(self, batch: Batch) -> Tensor:
        start = self.embedding(batch["input_ids"])
        scale = start.mean(-1, keepdim=True)
        x = start
        for i, layer in enumerate(self.layers):
            if i == 3:
                x = self.gate({"x": x, "gates": (scale, x)}, start=start)["x"]
            x = x + F.gelu(layer(self.norm(x)))
        logits = self.head(x + start) * (1 + scale)
        return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())


class _Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(16))

    def forward(self, inputs: Any, start: Tensor) -> Any:
        scale, x = inputs["gates"]
        return {"x": inputs["x"] * torch.sigmoid(scale * self.scale) + 0.1 * x.relu() + start}


COMPILED: list[Any] = []


def _keep_graph(graph: Any, inputs: Any) -> Any:
    COMPILED.append(graph)
    return graph.forward


def compiled(in_place: bool = False, backend: Any = _keep_graph) -> nn.Module:
    model = Tiny()
    for i, block in enumerate(model.blocks):
        if in_place:
            block.compile(backend=backend)
        else:
            model.blocks[i] = torch.compile(block, backend=backend)  # type: ignore[assignment]
    return model
