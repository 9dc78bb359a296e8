"""Runs of a model that is built in `configure_model` and that no rank holds as a whole."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

import lightning_edge
from lightning_edge.replicate import placeholder
from lightning_edge.replicate.placeholder import is_fake
from tests.families.zoo import FAMILIES
from tests.trainers import Rows, Seen

Options = Mapping[str, Any]


class Large(L.LightningModule):
    """A family's model that is described in `configure_model`, or read from a directory there."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = dict(options)
        self.net: Any = None
        if options.get("own"):  # made by each rank for itself; rank 0's counts
            self.own = torch.nn.Linear(16, 16)

    def configure_model(self) -> None:
        if self.net is not None:
            return
        if "pretrained" in self.options:
            from transformers import LlamaForCausalLM

            self.net = FAMILIES["llama"][0]()
            self.net.model = LlamaForCausalLM.from_pretrained(
                self.options["pretrained"], dtype=self.options.get("dtype", "auto")
            )
            self.net.train()
        else:
            self.net = FAMILIES[self.options["model"]][0]().train()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.options.get("early"):  # in front of all cuts
            self.log("early", self.net.embedding(batch["input_ids"]).square().mean())
        loss = self.net.training_step(batch)
        if self.options.get("own"):
            loss = loss + self.own(torch.ones(16)).square().mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.net.training_step(batch))

    def configure_optimizers(self) -> Any:
        if self.options.get("sgd"):
            # Adam makes full steps of gradients that are rounding errors (the bias of keys)
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def run(rank: int, world_size: int, plan: Any, options: Options, folder: str) -> dict[str, Any]:
    """Fit (or resume) and validate; what can be held against one process."""
    warnings.filterwarnings("ignore")
    before, placeholder.SMALL_ENTRIES = placeholder.SMALL_ENTRIES, options.get("small", 100)
    try:
        return _run(rank, plan, options, folder)
    finally:
        placeholder.SMALL_ENTRIES = before


def _run(rank: int, plan: Any, options: Options, folder: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    seen = Seen()
    keep = ModelCheckpoint(folder, filename="kept", every_n_epochs=1)
    torch.manual_seed(40 + rank)
    module = Large(options)
    trainer = _trainer(plan, folder, options.get("epochs", 2), [seen, keep])
    L.seed_everything(4 + rank, verbose=False)  # rank 0's weights count
    train = DataLoader(Rows(options["model"], 10), 5)
    val = DataLoader(Rows(options["model"], 6, seed=200), 6)
    resume = options.get("resume")
    if resume and rank and options.get("only_rank_0_has_it"):
        resume = f"{resume}.elsewhere"
    trainer.fit(module, train, val, ckpt_path=resume)
    metrics = dict(trainer.callback_metrics)
    again = trainer.validate(module, val, verbose=False)
    found = {
        "losses": seen.losses,
        "val_loss": float(metrics["val_loss"]),
        "early": float(metrics.get("early", 0.0)),
        "again": again[0]["val_loss"],
        "held": sum(p.numel() for p in module.parameters() if not is_fake(p)),
        "all": sum(p.numel() for p in module.parameters()),
        "checkpoint": str(Path(folder) / "kept.ckpt"),
        "state": {k: v.clone() for k, v in module.state_dict().items() if not is_fake(v)},
    }
    if plan != "alone":
        trainer.strategy.disconnect()
    return found


def _trainer(plan: Any, folder: str, epochs: int, callbacks: list[Any]) -> Any:
    strategy: Any = "auto" if plan == "alone" else lightning_edge.EdgeCollabStrategy(plan)
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        strategy=strategy,
        max_epochs=epochs,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
