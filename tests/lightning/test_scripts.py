"""What ordinary scripts do with a Trainer and its parts, on every device as in one process."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import BasePredictionWriter, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, WeightedRandomSampler

from tests.lightning.both import PIPELINE, PLANS, TWO, Run, both
from tests.lightning.nets import BATCH, Losses, Net, data, loaders, metrics, val_loader, weights

pytestmark = pytest.mark.multiproc


class Asking(Net):
    """Asks its Trainer, optimizer and scheduler in the step, and stops from there."""

    def __init__(self, width: int = 7, **more: Any) -> None:
        super().__init__(optimizer=_scheduled)
        self.save_hyperparameters()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        assert self.trainer.datamodule is not None
        self.log("rate", self.optimizers().param_groups[0]["lr"], prog_bar=True)
        self.log("last", self.lr_schedulers().get_last_lr()[0])
        self.log("place", float(self.global_step + 10 * self.current_epoch + 100 * batch_idx))
        self.log("seed", float(self.trainer.datamodule.rows), logger=False)
        if self.global_step == 4:
            self.trainer.should_stop = True
        return super().training_step(batch, batch_idx)


def _scheduled(module: Net) -> Any:
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Data(L.LightningDataModule):
    rows = 22

    def train_dataloader(self) -> Any:
        chosen = WeightedRandomSampler(torch.linspace(0.1, 1, self.rows), self.rows)
        return DataLoader(data(self.rows), BATCH, sampler=chosen)

    def val_dataloader(self) -> Any:
        return val_loader()

    predict_dataloader = val_dataloader


class Writer(BasePredictionWriter):
    """Keeps all that it is given."""

    def __init__(self) -> None:
        super().__init__("batch_and_epoch")
        self.found: list[Any] = []

    def write_on_batch_end(
        self, trainer: Any, module: Any, prediction: Any, indices: Any, *_: Any
    ) -> None:
        self.found.append([prediction, indices])

    def write_on_epoch_end(self, trainer: Any, module: Any, predictions: Any, indices: Any) -> None:
        self.found.append([len(predictions), indices])


def script(run: Run) -> Any:
    seen, writer = Losses(), Writer()
    keep = ModelCheckpoint(run.folder, monitor="val_loss", filename="{epoch}")
    trainer = run.trainer(
        callbacks=[seen, keep, writer], enable_checkpointing=True, max_epochs=5, min_epochs=1
    )
    trainer = copy.deepcopy(trainer)
    seen, writer, keep = trainer.callbacks[0], trainer.callbacks[1], trainer.checkpoint_callback
    run.trainers[-1] = trainer
    module = Asking(width=9)
    found: dict[str, Any] = {}
    trainer.fit(module, datamodule=Data())
    found["fit"] = [seen.train, metrics(trainer), trainer.current_epoch, trainer.global_step]
    found["logged"] = sorted(trainer.logged_metrics), sorted(trainer.progress_bar_metrics)
    trainer.predict(module, datamodule=Data(), ckpt_path="best")
    found["written"] = writer.found
    trainer.save_checkpoint(run.folder / "after.ckpt", weights_only=True)
    found["hyper-parameters"] = torch.load(run.folder / "after.ckpt")["hyper_parameters"]
    other = Asking()
    other.load_state_dict(torch.load(run.folder / "after.ckpt")["state_dict"])
    found["weights"] = weights(other)
    run.end()
    again = run.trainer(max_epochs=1)  # the same module on another Trainer
    again.fit(module, datamodule=Data())
    found["again"] = [metrics(again), weights(module)]
    return found


@pytest.mark.parametrize("plan", PLANS)
def test_a_script_of_a_user(pool, tmp_path, plan):
    one, _ = both(pool, tmp_path, script, plan=plan, tolerance=1e-5)
    assert one["fit"][3] == 5


class Student(Net):
    """Learns from a frozen copy of itself, which is made before and used in the step."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.ModuleList([copy.deepcopy(self.blocks[0]), copy.deepcopy(self.head)])
        for parameter in self.teacher.parameters():
            parameter.requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        with torch.no_grad():
            target = self.teacher[1](torch.tanh(self.teacher[0](batch[0])))
        loss = F.mse_loss(self(batch[0]), target)
        self.log("train_loss", loss)
        return loss


def distilled(run: Run) -> Any:
    seen, module = Losses(), Student()
    trainer = run.trainer(callbacks=[seen])
    trainer.fit(module, *loaders())
    return seen.train, weights(module), metrics(trainer)


def test_a_frozen_teacher(pool, tmp_path):
    both(pool, tmp_path, distilled, plan=TWO)


class Skipping(Net):
    """Leaves out batches that it does not like."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx == 1 else loss


def skipping_rank(rank: int, world_size: int, folder: str) -> str:
    trainer = Run(PIPELINE, Path(folder), rank).trainer()
    with pytest.raises(Exception, match="instead of a loss") as caught:
        trainer.fit(Skipping(), *loaders())
    return str(caught.value)


def test_skipped_batches_are_refused(pool, tmp_path):
    for text in pool.run(skipping_rank, 3, str(tmp_path)):
        assert "cannot be skipped on one device only" in text
