"""Handwritten digits: scikit-learn's 1797 images of 8 x 8 pixels, and a network that reads them."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_edge.errors import UnsupportedError
from lightning_edge.zoo.checks import check_sizes
from lightning_edge.zoo.optimizer import adamw

__all__ = ["Digits", "DigitsClassifier"]


class DigitsClassifier(L.LightningModule):
    """Convolutions, then two dense layers; batches are images `[rows, 1, 8, 8]` and labels.

    Args:
        channels: Of the first convolutions; the later ones have twice as many.
        lr: The highest learning rate.
        warmup_steps: Optimizer steps until it is reached.
    """

    def __init__(self, channels: int = 32, lr: float = 3e-3, warmup_steps: int = 20) -> None:
        super().__init__()
        self.save_hyperparameters()
        check_sizes("model", channels=channels)
        wide = 2 * channels
        self.model = nn.Sequential(
            nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(channels, wide, 3, padding=1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(wide, wide, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Flatten(), nn.Linear(4 * wide, wide), nn.ReLU()),
            nn.Linear(wide, 10),
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """One batch."""
        images, labels = batch
        loss = F.cross_entropy(self.model(images), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """One batch."""
        images, labels = batch
        scores = self.model(images)
        right = (scores.argmax(-1) == labels).float().mean()
        self.log("val_loss", F.cross_entropy(scores, labels), prog_bar=True)
        self.log("val_accuracy", right, prog_bar=True)

    def configure_optimizers(self) -> Any:
        """AdamW with a warm-up."""
        return adamw(self, self.hparams["lr"], self.hparams["warmup_steps"])


class Digits(L.LightningDataModule):
    """The images and their labels; every fifth is held out.

    Args:
        batch_rows: Rows of a batch.

    Raises:
        UnsupportedError: scikit-learn is missing.
    """

    def __init__(self, batch_rows: int = 64) -> None:
        super().__init__()
        check_sizes("data", batch_rows=batch_rows)
        self.batch_rows = batch_rows

    def setup(self, stage: str) -> None:
        """Read the images that scikit-learn brings along."""
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise UnsupportedError(
                "these digits come with scikit-learn: install it with"
                ' `pip install "lightning-edge[digits]"`'
            ) from None
        found = load_digits()
        images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
        labels = torch.tensor(found.target)
        held_out = torch.arange(len(labels)) % 5 == 0
        self.train_rows = TensorDataset(images[~held_out], labels[~held_out])
        self.val_rows = TensorDataset(images[held_out], labels[held_out])

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Images in a new order each epoch."""
        return DataLoader(self.train_rows, batch_size=self.batch_rows, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """The images that are held out."""
        return DataLoader(self.val_rows, batch_size=self.batch_rows)
