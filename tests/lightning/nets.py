"""The module and the data of the scenarios: small, with all that can be logged or cut."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

WIDTH, CLASSES, BATCH = 6, 3, 8
ROWS = 22  # the last batch has 6


class Net(L.LightningModule):
    """Three blocks and a head; logs a loss per step and per epoch.

    Args:
        optimizer: Makes the optimizer of the module; SGD by default.
        norm: Puts a BatchNorm in the second block.
    """

    def __init__(
        self, optimizer: Callable[[Net], Any] | None = None, norm: bool = False, lr: float = 0.1
    ) -> None:
        super().__init__()
        self.lr = lr
        generator = torch.Generator().manual_seed(1)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norm = nn.BatchNorm1d(WIDTH) if norm else nn.Identity()
        self.head = nn.Linear(WIDTH, CLASSES)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                parameter.data = torch.randn(parameter.shape, generator=generator) / WIDTH**0.5
        self._optimizer = optimizer
        self.losses: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.blocks):
            x = torch.tanh(block(x))
            if number == 1:
                x = self.norm(x)
        return self.head(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("val_loss", loss)
        return loss

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        x, y = batch
        self.log("test_loss", F.cross_entropy(self(x), y))

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        if self._optimizer is not None:
            return self._optimizer(self)
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class Losses(Callback):
    """The losses that callbacks see."""

    def __init__(self) -> None:
        self.train: list[float] = []
        self.steps: list[int] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.train.append(float(outputs["loss"]))
        self.steps.append(trainer.global_step)


class Stream(IterableDataset[Any]):
    """The same rows without a length."""

    def __init__(self, rows: int = ROWS) -> None:
        self.rows = data(rows)

    def __iter__(self) -> Iterator[Any]:
        return iter([self.rows[i] for i in range(len(self.rows))])


class Noisy(Stream):
    """Rows with noise from the global random streams, as augmentation adds it."""

    def __iter__(self) -> Iterator[Any]:
        for x, y in super().__iter__():
            yield x + torch.randn(WIDTH) * random.random() + np.float32(np.random.rand()), y


def data(rows: int = ROWS, seed: int = 2) -> TensorDataset:
    """Points that have a class."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, WIDTH, generator=generator)
    return TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0.3).long())


def train_loader(shuffle: bool = True, rows: int = ROWS) -> DataLoader[Any]:
    return DataLoader(data(rows), batch_size=BATCH, shuffle=shuffle)


def val_loader(rows: int = 13, seed: int = 5) -> DataLoader[Any]:
    return DataLoader(data(rows, seed), batch_size=BATCH)


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    return train_loader(), val_loader()


def weights(module: nn.Module) -> dict[str, Tensor]:
    """Its state, as plain copies."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def metrics(trainer: L.Trainer) -> dict[str, float]:
    """What callbacks see, with names in order."""
    return {n: float(v) for n, v in sorted(trainer.callback_metrics.items())}
