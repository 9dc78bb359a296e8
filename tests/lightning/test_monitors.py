"""Summaries, progress bars, monitors, and the learning-rate finder."""

from __future__ import annotations

import csv
import io
from contextlib import redirect_stdout
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import (
    DeviceStatsMonitor,
    LambdaCallback,
    ModelSummary,
    RichModelSummary,
    RichProgressBar,
    ThroughputMonitor,
    TQDMProgressBar,
)
from lightning.pytorch.callbacks.lr_finder import LearningRateFinder
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.profilers import SimpleProfiler
from lightning.pytorch.tuner import Tuner

from tests.lightning.both import PIPELINE, TWO, Run, both
from tests.lightning.nets import Losses, Net, loaders, metrics, train_loader, weights

pytestmark = [pytest.mark.thorough, pytest.mark.multiproc]


class Summed(Net):
    """Has an example, so that summaries run the model."""

    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(4, 6)

    @property
    def flops_per_batch(self) -> int:
        return 1000


class Sizes(ModelSummary):
    """Keeps what it would print."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        summary = self._summary(trainer, pl_module)
        self.table = [
            [summary.total_parameters, summary.trainable_parameters, summary.param_nums],
            [summary.layer_names, summary.in_sizes, summary.out_sizes],
        ]


def monitored(run: Run) -> Any:
    seen, sizes = Losses(), Sizes(max_depth=-1)
    throughput = ThroughputMonitor(lambda batch: len(batch[0]), lambda batch: batch[0].numel())
    calls: list[int] = []
    callbacks = [
        seen,
        sizes,
        throughput,
        DeviceStatsMonitor(cpu_stats=True),
        LambdaCallback(on_train_epoch_end=lambda trainer, _: calls.append(trainer.global_step)),
    ]
    logger = CSVLogger(run.folder, name="csv", version="0", flush_logs_every_n_steps=1)
    options = {"callbacks": callbacks, "profiler": SimpleProfiler(), "logger": logger}
    trainer = run.trainer(**options, limit_val_batches=0)
    module = Summed()
    trainer.fit(module, train_loader())
    return seen.train, sizes.table, calls, metrics(trainer), weights(module)


def test_summaries_and_monitors(pool, tmp_path):
    both(pool, tmp_path, monitored)
    file = "csv/0/metrics.csv"
    rows = {name: of_csv(tmp_path / name / file) for name in ("one", "many")}
    for name in ("train/samples", "train/lengths", "train/batches"):
        counted = {k: [row[name] for row in v if row.get(name)] for k, v in rows.items()}
        assert counted["many"] == counted["one"]
        assert counted["one"]
    assert set(rows["many"][0]) == set(rows["one"][0])


def of_csv(path: Any) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def shown(run: Run) -> Any:
    """Bars and summaries that print, on rank 0 only."""
    found = {}
    for name, callbacks in {
        "rich": [RichProgressBar(), RichModelSummary(max_depth=2)],
        "tqdm": [TQDMProgressBar(), ModelSummary(max_depth=2)],
    }.items():
        printed = io.StringIO()
        with redirect_stdout(printed):
            trainer = run.trainer(
                callbacks=callbacks, enable_progress_bar=True, enable_model_summary=True
            )
            module = Summed()
            trainer.fit(module, *loaders())
        text = printed.getvalue()
        assert ("train_loss" in text) == (run.rank == 0), text
        found[name] = [metrics(trainer), weights(module)]
        run.end()
    return found


def test_progress_bars(pool, tmp_path):
    both(pool, tmp_path, shown, plan=TWO)


class Tuned(Net):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def tuned(run: Run) -> Any:
    """The learning-rate finder by itself and as a callback; both leave the module as it was."""
    module = Tuned()
    trainer = run.trainer(limit_val_batches=0, max_epochs=9)
    options = {"min_lr": 1e-3, "max_lr": 1.0, "num_training": 12}
    finder = Tuner(trainer).lr_find(module, train_loader(), update_attr=True, **options)
    found: dict[str, Any] = {"found": finder.results, "lr": module.lr, "weights": weights(module)}
    trainer.fit(module, train_loader())
    found["fit"] = [weights(module), trainer.global_step]
    run.end()
    callback = LearningRateFinder(min_lr=1e-3, max_lr=1.0, num_training_steps=12)
    other = Tuned()
    again = run.trainer(callbacks=[callback], limit_val_batches=0, max_epochs=9)
    again.fit(other, train_loader())
    found["callback"] = [other.lr, weights(other)]
    left = [path.name for path in run.folder.glob(".lr_find*")]
    return found, left if run.rank == 0 else []


def test_learning_rate_finder(pool, tmp_path):
    one, _ = both(pool, tmp_path, tuned, plan=PIPELINE, tolerance=2e-5)
    assert len(one[0]["found"]["lr"]) >= 10
    assert one[1] == []
