"""Fits through the real Trainer: the same function on a rank of the pool and in one process."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torchmetrics
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import lightning_edge
from tests.models import MODELS, make

Options = Mapping[str, Any]


class Rows(Dataset[Any]):
    """Rows of a zoo model's batches, as samples."""

    def __init__(self, model: str, size: int, seed: int = 100) -> None:
        self._batch = MODELS[model][1](size, seed)
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Any:
        if isinstance(self._batch, dict):
            return {key: value[index] for key, value in self._batch.items()}
        return [value[index] for value in self._batch]


class Module(L.LightningModule):
    """A zoo model with logs, metrics, an optimizer and what the options ask for."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = dict(options)
        self.net = make(options["model"], options.get("seed", 0))
        self.mean = torchmetrics.MeanMetric()
        self.rates: list[float] = []
        self.norms: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.options.get("fail_at") == (self.global_step, self.global_rank):
            raise ValueError("the step fails on purpose")
        loss = self.net.training_step(batch)
        tokens = None
        if self.options.get("weighted"):
            tokens = int((batch["labels"] >= 0).sum())
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True, batch_size=tokens)
        return loss if tokens is None else {"loss": loss, "loss_weight": tokens}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss = self.net.training_step(batch)
        self.log("val_loss", loss)
        self.mean.update(loss, weight=len(batch["ids"]))  # rows: a mean of means is not a mean
        self.log("val_mean", self.mean)

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net.training_step(batch)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])

    def configure_optimizers(self) -> Any:
        if self.options.get("sgd"):
            optimizer: Any = torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)
        else:
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1)
        scheduler = self.options.get("scheduler")
        if scheduler == "cosine":
            step = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
            return [optimizer], [{"scheduler": step, "interval": "step"}]
        if scheduler == "plateau":
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"},
            }
        return optimizer


class Seen(Callback):
    """The losses and gradients a callback sees."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradients: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.gradients.append(
            {
                name: parameter.grad.clone()
                for name, parameter in module.named_parameters()
                if parameter.grad is not None
            }
        )


def loaders(options: Options) -> tuple[DataLoader[Any], DataLoader[Any]]:
    model, batch = options["model"], options.get("batch", 8)
    train = Rows(model, options.get("rows", 21))
    return (
        DataLoader(train, batch, shuffle=options.get("shuffle", False)),
        DataLoader(Rows(model, 10, seed=200), batch),
    )


def fit(rank: int, world_size: int, plan: Any, options: Options, folder: str) -> dict[str, Any]:
    """Fit, and say everything about it that one process can be held against."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    L.seed_everything(3, verbose=False)
    module = Module({**options, "seed": rank})
    if options.get("before"):
        options["before"](module)
    if plan == "alone":
        strategy: Any = "auto"
    else:
        strategy = lightning_edge.EdgeCollabStrategy(plan, **options.get("strategy", {}))
    seen = Seen()
    keep = ModelCheckpoint(folder, filename="kept", save_last=False, every_n_epochs=1)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        strategy=strategy,
        max_epochs=options.get("epochs", 2),
        accumulate_grad_batches=options.get("accumulate", 1),
        gradient_clip_val=options.get("clip"),
        precision=options.get("precision", "32-true"),
        callbacks=[seen, keep, *options.get("callbacks", [])],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    L.seed_everything(4, verbose=False)
    train, val = loaders(options)
    trainer.fit(module, train, val, ckpt_path=options.get("resume"))
    found = {
        "losses": seen.losses,
        "gradients": seen.gradients,
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "rates": module.rates,
        "global_step": trainer.global_step,
        "state": {name: value.detach().clone() for name, value in module.state_dict().items()},
        "checkpoint": keep.best_model_path,
    }
    if options.get("then"):
        found["tested"] = trainer.test(module, val, verbose=False)
        predicted = trainer.predict(module, val)
        assert predicted is not None
        found["predicted"] = predicted
    if plan != "alone":
        found["plan"] = str(trainer.strategy.plan or "")
        found["report"] = trainer.strategy.report().to_dict()
        trainer.strategy.disconnect()
    return found


def alone(options: Options, folder: Path) -> dict[str, Any]:
    """The same in this process with Lightning's own strategy."""
    return fit(0, 1, "alone", {**options, "strategy": {}}, str(folder))
