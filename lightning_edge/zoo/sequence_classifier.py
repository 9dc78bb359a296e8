"""Fine-tuning of any encoder of transformers to tell kinds of text apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
from torch import Tensor

from lightning_edge.zoo.optimizer import adamw
from lightning_edge.zoo.pretrained import load

__all__ = ["SequenceClassifier"]


class SequenceClassifier(L.LightningModule):
    """Tells which of several kinds a text is.

    Batches are mappings with `input_ids`, `attention_mask` and `labels`.

    Args:
        num_labels: Number of kinds.
        path: A local model directory, or a `config.json` for new weights.
        config: Instead of a path: entries of a `config.json`, at least `model_type`.
        lora: Settings of `peft.LoraConfig`; the new classifying layer is trained as well.
        lr: The highest learning rate.
        warmup_steps: Optimizer steps until it is reached.

    Raises:
        UnsupportedError: A package is missing, or the path is not a model.
    """

    def __init__(
        self,
        num_labels: int,
        path: str | None = None,
        config: Mapping[str, Any] | None = None,
        lora: Mapping[str, Any] | None = None,
        lr: float = 5e-5,
        warmup_steps: int = 20,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        auto = "AutoModelForSequenceClassification"
        self.model = load(auto, path, config, lora, num_labels=num_labels)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """One batch."""
        loss: Tensor = self.model(**batch).loss
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """One batch."""
        result = self.model(**batch)
        right = (result.logits.argmax(-1) == batch["labels"]).float().mean()
        self.log("val_loss", result.loss, prog_bar=True)
        self.log("val_accuracy", right, prog_bar=True)

    def configure_optimizers(self) -> Any:
        """AdamW with a warm-up."""
        return adamw(self, self.hparams["lr"], self.hparams["warmup_steps"])
