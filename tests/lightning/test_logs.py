"""`self.log` in every form: the same numbers on every rank and in every logger."""

from __future__ import annotations

import csv
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from tests.lightning.both import PLANS, Run, both
from tests.lightning.nets import CLASSES, Net, loaders, metrics, val_loader

pytestmark = pytest.mark.multiproc


class Logging(Net):
    """Logs in every way there is, from every hook where it is allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters({"width": 6, "depth": {"blocks": 3}})
        self.accuracy = torchmetrics.classification.MulticlassAccuracy(CLASSES)
        self.several = torchmetrics.MetricCollection(
            {
                "f1": torchmetrics.classification.MulticlassF1Score(CLASSES),
                "auroc": torchmetrics.classification.MulticlassAUROC(CLASSES, thresholds=None),
            },
            prefix="val_",
        )

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.log("plain", loss)
        self.log("step", loss, on_step=True, on_epoch=False)
        self.log("epoch", loss, on_step=False, on_epoch=True)
        self.log("both", loss, on_step=True, on_epoch=True, prog_bar=True, logger=True)
        self.log("synced", loss, on_epoch=True, sync_dist=True, rank_zero_only=False)
        self.log("sum", y.sum().float(), on_epoch=True, reduce_fx="sum")
        self.log("max", logits.max(), on_epoch=True, reduce_fx=torch.max)
        self.log("min", logits.min(), on_epoch=True, reduce_fx="min")
        self.log("weighted", y.float().mean(), on_epoch=True, batch_size=len(y))
        self.log("number", 3, on_step=True)
        self.log_dict({"a": loss * 2, "b": loss * 3}, on_epoch=True)
        self.log("not in the logger", loss, logger=False)
        self.accuracy(logits, y)
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        return loss

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.log("from a hook", float(batch_idx))

    def on_train_epoch_end(self) -> None:
        self.log("epoch end", float(self.current_epoch))

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        x, y = batch
        logits = self(x)
        self.log("val_loss", F.cross_entropy(logits, y), add_dataloader_idx=True)
        if dataloader_idx == 0:
            self.log("val_first", logits.mean(), add_dataloader_idx=False)
            self.several.update(logits, y)
            self.log_dict(self.several, add_dataloader_idx=False)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        logits = self(batch[0])
        self.log(f"test_{dataloader_idx}", logits.sum(), reduce_fx="sum", batch_size=1)
        self.accuracy.update(logits, batch[1])

    def on_test_epoch_end(self) -> None:
        self.log("test_accuracy", self.accuracy.compute())
        self.accuracy.reset()


class FromCallback(Callback):
    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        module.log("callback", float(trainer.global_step), on_step=True, on_epoch=True)

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        module.log("callback_val", trainer.callback_metrics.get("plain", 0.0) * 2)


def logged(run: Run) -> Any:
    loggers = [
        CSVLogger(run.folder, name="csv", version="0", flush_logs_every_n_steps=1),
        TensorBoardLogger(run.folder, name="board", version="0"),
    ]
    trainer = run.trainer(
        logger=loggers, callbacks=[FromCallback(), LearningRateMonitor()], log_every_n_steps=2
    )
    module = Logging()
    train, val = loaders()
    trainer.fit(module, train, [val, val_loader(9, 7)])
    found = {
        "callback": metrics(trainer),
        "logged": {name: float(v) for name, v in sorted(trainer.logged_metrics.items())},
        "bar": {name: float(v) for name, v in sorted(trainer.progress_bar_metrics.items())},
    }
    found["test"] = trainer.test(module, [val, val_loader(9, 7)], verbose=False)
    return found


def of_csv(folder: Any) -> list[dict[str, float]]:
    with (folder / "csv" / "0" / "metrics.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def of_board(folder: Any) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "board" / "0"))
    read.Reload()
    tags = sorted(read.Tags()["scalars"])
    return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in tags}


@pytest.mark.parametrize("plan", PLANS)
def test_logs_are_the_same_on_every_rank_and_in_every_logger(pool, tmp_path, plan):
    from tests.lightning.both import same

    both(pool, tmp_path, logged, plan=plan)
    one, many = tmp_path / "one", tmp_path / "many"
    same(of_csv(many), of_csv(one), 3e-6, "CSV")
    same(of_board(many), of_board(one), 3e-6, "TensorBoard")
    assert len(of_csv(one)) > 4
    for name in ("csv", "board"):
        found, expected = ((f / name / "0" / "hparams.yaml").read_text() for f in (many, one))
        assert found == expected
