"""Fine-tuning, or training from nothing, of any causal language model of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
from torch import Tensor

from lightning_edge.zoo.optimizer import adamw
from lightning_edge.zoo.pretrained import load

__all__ = ["CausalLM"]


class CausalLM(L.LightningModule):
    """Predicts the next token. Batches are mappings with `input_ids`, which are the labels too.

    Args:
        path: A local model directory, or a `config.json` for new weights.
        config: Instead of a path: entries of a `config.json`, at least `model_type`.
        lora: Settings of `peft.LoraConfig`, such as `{"r": 8, "target_modules": ["q_proj"]}`.
        lr: The highest learning rate.
        warmup_steps: Optimizer steps until it is reached.

    Raises:
        UnsupportedError: A package is missing, or the path is not a model.
    """

    def __init__(
        self,
        path: str | None = None,
        config: Mapping[str, Any] | None = None,
        lora: Mapping[str, Any] | None = None,
        lr: float = 5e-5,
        warmup_steps: int = 20,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = load("AutoModelForCausalLM", path, config, lora, use_cache=False)

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean negative log-likelihood per token, in nats."""
        loss: Tensor = self.model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss
        return loss

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """One batch."""
        loss = self.loss(batch)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """One batch."""
        self.log("val_loss", self.loss(batch), prog_bar=True)

    def configure_optimizers(self) -> Any:
        """AdamW with a warm-up."""
        return adamw(self, self.hparams["lr"], self.hparams["warmup_steps"])
