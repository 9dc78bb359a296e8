"""Every stage alone and one after the other, with every way to limit it."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader

from tests.lightning.both import PIPELINE, PLANS, TWO, Run, both
from tests.lightning.nets import (
    BATCH,
    Losses,
    Net,
    Noisy,
    Stream,
    data,
    loaders,
    metrics,
    train_loader,
    val_loader,
    weights,
)

pytestmark = pytest.mark.multiproc


def each_stage(run: Run) -> Any:
    """validate, fit, validate, test, predict, fit again, test: on one Trainer."""
    seen = Losses()
    trainer = run.trainer(callbacks=[seen])
    module = Net()
    train, val = loaders()
    found: dict[str, Any] = {"before": trainer.validate(module, val, verbose=False)}
    trainer.fit(module, train, val)
    found["fit"] = [metrics(trainer), weights(module), trainer.global_step, trainer.current_epoch]
    found["after"] = trainer.validate(module, val, verbose=False)
    found["test"] = trainer.test(module, val, verbose=False)
    found["predict"] = trainer.predict(module, val)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, train, val)
    found["again"] = [metrics(trainer), weights(module), trainer.global_step, trainer.current_epoch]
    found["losses"] = seen.train
    return found


@pytest.mark.parametrize("plan", PLANS)
def test_every_stage_after_the_other(pool, tmp_path, plan):
    one, _ = both(pool, tmp_path, each_stage, plan=plan)
    assert len(one["losses"]) == 6 + 3


def alone(run: Run) -> Any:
    """Each stage on a Trainer of its own."""
    module = Net()
    found: dict[str, Any] = {}
    for name in ("validate", "test", "predict"):
        trainer = run.trainer()
        options = {} if name == "predict" else {"verbose": False}
        found[name] = getattr(trainer, name)(module, [val_loader(), val_loader(9, 7)], **options)
    return found


def test_each_stage_on_its_own(pool, tmp_path):
    one, _ = both(pool, tmp_path, alone)
    assert len(one["validate"]) == len(one["predict"]) == 2


LIMITS: dict[str, dict[str, Any]] = {
    "limit by number": {"limit_train_batches": 2, "limit_val_batches": 1},
    "limit by share": {"limit_train_batches": 0.5, "limit_val_batches": 0.5},
    "no validation": {"limit_val_batches": 0},
    "no training": {"limit_train_batches": 0},
    "overfit_batches": {"overfit_batches": 2},
    "fast_dev_run": {"fast_dev_run": 2},
    "val_check_interval by number": {"val_check_interval": 2},
    "val_check_interval by share": {"val_check_interval": 0.34},
    "val_check_interval over epochs": {"val_check_interval": 4, "check_val_every_n_epoch": None},
    "check_val_every_n_epoch": {"check_val_every_n_epoch": 2, "max_epochs": 3},
    "max_steps": {"max_steps": 4, "max_epochs": -1},
    "min_steps and min_epochs": {"max_steps": 5, "min_epochs": 1, "min_steps": 4},
    "no sanity check": {"num_sanity_val_steps": 0},
    "whole sanity check": {"num_sanity_val_steps": -1},
    "accumulation": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
    "clipping by value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "reloaded loaders": {"reload_dataloaders_every_n_epochs": 1},
    "no inference mode": {"inference_mode": False, "detect_anomaly": True},
    "barebones": {"barebones": True, "logger": None, "log_every_n_steps": None},
}


class Counted(Losses):
    """How often validation ran, and at which step."""

    def __init__(self) -> None:
        super().__init__()
        self.validated: list[int] = []

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        self.validated.append(trainer.global_step)


def limited(run: Run, names: list[str]) -> Any:
    found = {}
    for name in names:
        seen = Counted()
        options = dict(LIMITS[name])
        if "barebones" in options:
            options = {"barebones": True}
            trainer = _bare(run)
        else:
            trainer = run.trainer(callbacks=[seen], **options)
        module = Net()
        trainer.fit(module, *loaders())
        found[name] = [
            seen.train,
            seen.validated,
            metrics(trainer),
            weights(module),
            [trainer.global_step, trainer.current_epoch],
        ]
        run.end()
    return found


def _bare(run: Run) -> L.Trainer:
    options = {"barebones": True, "logger": None, "log_every_n_steps": None}
    options |= {"enable_checkpointing": None, "enable_progress_bar": None}
    return run.trainer(enable_model_summary=None, **options)


FEW = ("limit by share", "overfit_batches", "val_check_interval by number", "accumulation")


def test_limits(pool, tmp_path):
    both(pool, tmp_path, limited, list(FEW), plan=TWO)


@pytest.mark.slow
def test_all_other_limits(pool, tmp_path):
    both(pool, tmp_path, limited, [name for name in LIMITS if name not in FEW], plan=TWO)


class Pairs(Net):
    """Trains on what a CombinedLoader makes of two loaders."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        parts = [part for part in batch.values() if part is not None]
        x = torch.cat([part[0] for part in parts])
        y = torch.cat([part[1] for part in parts])
        return super().training_step((x, y), batch_idx)


def combined(run: Run) -> Any:
    found = {}
    for mode in ("min_size", "max_size_cycle", "max_size"):
        seen = Losses()
        trainer = run.trainer(callbacks=[seen], max_epochs=2, limit_val_batches=0)
        module = Pairs()
        both_loaders = {"a": train_loader(rows=16), "b": train_loader(rows=24)}
        trainer.fit(module, CombinedLoader(both_loaders, mode))
        found[mode] = [seen.train, weights(module)]
        run.end()
    return found


def test_combined_loaders(pool, tmp_path):
    one, _ = both(pool, tmp_path, combined, plan=TWO)
    assert [len(losses) for losses, _ in one.values()] == [4, 6, 6]


def streams(run: Run) -> Any:
    """Data without a length that draws, several validation loaders, one of them a stream."""
    seen = Counted()
    trainer = run.trainer(callbacks=[seen], val_check_interval=2, max_epochs=2)
    module = Net()
    val = [val_loader(), DataLoader(Stream(9), BATCH)]
    trainer.fit(module, DataLoader(Noisy(), BATCH), val)
    return seen.train, seen.validated, metrics(trainer), weights(module)


def test_streams_and_several_validation_loaders(pool, tmp_path):
    one, _ = both(pool, tmp_path, streams)
    assert {"val_loss/dataloader_idx_0", "val_loss/dataloader_idx_1"} <= set(one[2])


def timed(run: Run) -> Any:
    """`max_time` ends a fit at the same step everywhere; how many steps that are is up to time."""
    seen = Losses()
    trainer = run.trainer(callbacks=[seen], max_time={"seconds": 1}, max_epochs=-1)
    trainer.fit(Net(), DataLoader(data(400), BATCH), val_loader())
    return trainer.global_step, len(seen.train), trainer.should_stop


@pytest.mark.slow
def test_max_time_stops_all_at_the_same_step(pool, tmp_path):
    from tests.lightning.both import run_one

    many = pool.run(run_one, 3, timed, PIPELINE, str(tmp_path), ())
    assert many[0][0] > 2
    assert many[0] == many[1] == many[2]


def by_clock(run: Run) -> Any:
    """Validation goes by time; which steps those are is up to time."""
    seen = Counted()
    trainer = run.trainer(
        callbacks=[seen], val_check_interval={"seconds": 0.1}, check_val_every_n_epoch=None,
        max_steps=60, max_epochs=-1, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(Net(), DataLoader(data(400), BATCH), val_loader())
    return seen.validated


@pytest.mark.slow
def test_validation_by_time_is_at_the_same_steps_everywhere(pool, tmp_path):
    from tests.lightning.both import run_one

    many = pool.run(run_one, 3, by_clock, PIPELINE, str(tmp_path), ())
    assert many[0]
    assert many[0] == many[1] == many[2]
