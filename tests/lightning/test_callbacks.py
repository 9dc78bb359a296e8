"""Lightning's own callbacks, each held against one process: what they do, and what they save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)
from torch import nn

from tests.lightning.both import PLANS, TWO, Run, both
from tests.lightning.nets import Losses, Net, loaders, metrics, weights

pytestmark = pytest.mark.multiproc


def saved(path: str | Path) -> dict[str, Any]:
    """What is in a checkpoint, without paths and versions."""
    content: dict[str, Any] = torch.load(path, weights_only=True)
    callbacks = {
        name.partition("{")[0]: {k: v for k, v in state.items() if "path" not in k}
        for name, state in content["callbacks"].items()
    }
    for state in callbacks.values():
        state.pop("best_k_models", None)
        state.pop("time_elapsed", None)
    return {**content, "callbacks": callbacks}


class Averager(WeightAveraging):
    """Averages at epoch ends only, buffers too."""

    def __init__(self) -> None:
        super().__init__(use_buffers=True)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return epoch_idx is not None


def averaging(run: Run, kind: str, norm: bool) -> Any:
    """Train, save in the middle, go on from there, and look at everything."""
    made = {
        "ema": lambda: EMAWeightAveraging(decay=0.5),
        "swa": lambda: StochasticWeightAveraging(0.05, swa_epoch_start=1, annealing_epochs=2),
        "average": Averager,
    }[kind]
    torch.manual_seed(run.rank)  # what is averaged must not depend on it
    folder = run.folder / kind
    keep = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    seen = Losses()
    trainer = run.trainer(callbacks=[made(), keep, seen], max_epochs=4, enable_checkpointing=True)
    module = Net(norm=norm)
    trainer.fit(module, *loaders())
    found = {
        "losses": seen.train,
        "metrics": metrics(trainer),
        "weights": weights(module),
        "saved": [saved(folder / f"epoch={epoch}.ckpt") for epoch in (0, 2)],
    }
    trainer.save_checkpoint(folder / "after.ckpt")
    found["after"] = saved(folder / "after.ckpt")
    run.end()
    again = run.trainer(callbacks=[made()], max_epochs=4)
    other = Net(norm=norm)
    again.fit(other, *loaders(), ckpt_path=str(folder / "epoch=1.ckpt"))
    found["again"] = weights(other)
    return found


SLOW_AVERAGE = pytest.param("average", marks=pytest.mark.slow)


@pytest.mark.parametrize("kind", ["ema", "swa", SLOW_AVERAGE])
def test_averaged_weights(pool, tmp_path, kind):
    both(pool, tmp_path, averaging, kind, False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ema", "swa", "average"])
def test_averaged_weights_with_batchnorm(pool, tmp_path, kind):
    plan = {**TWO, "micro_batches": 1}  # statistics are those of a micro-batch
    both(pool, tmp_path, averaging, kind, True, plan=plan)


class Backbone(Net):
    """`BackboneFinetuning` looks for `backbone`."""

    def __init__(self) -> None:
        super().__init__(optimizer=_trained)
        self.backbone = nn.Sequential(self.blocks[0], self.blocks[1])


def _trained(module: Net) -> Any:
    trained = [p for p in module.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=0.05)


class Thaw(BaseFinetuning):
    """Thaws a block per epoch, from the last one forward."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.blocks)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch:
            block = pl_module.blocks[3 - epoch]
            self.unfreeze_and_add_param_group(block, optimizer, lr=0.02 / epoch)


def finetuning(run: Run, kind: str) -> Any:
    made = {"thaw": Thaw, "backbone": lambda: BackboneFinetuning(1, backbone_initial_lr=0.01)}[kind]
    keep = ModelCheckpoint(run.folder, filename="{epoch}", save_top_k=-1)
    seen = Losses()
    trainer = run.trainer(callbacks=[made(), keep, seen], max_epochs=4, enable_checkpointing=True)
    module = Backbone() if kind == "backbone" else Net(optimizer=_trained)
    trainer.fit(module, *loaders())
    found = {
        "losses": seen.train,
        "groups": [len(group["params"]) for group in trainer.optimizers[0].param_groups],
        "weights": weights(module),
        "saved": saved(run.folder / "epoch=2.ckpt"),
    }
    run.end()
    again = run.trainer(callbacks=[made()], max_epochs=4)
    other = Backbone() if kind == "backbone" else Net(optimizer=_trained)
    again.fit(other, *loaders(), ckpt_path=str(run.folder / "epoch=1.ckpt"))
    found["again"] = weights(other)
    return found


@pytest.mark.parametrize("kind", ["thaw", pytest.param("backbone", marks=pytest.mark.slow)])
def test_finetuning(pool, tmp_path, kind):
    one, _ = both(pool, tmp_path, finetuning, kind, tolerance=1e-5)
    assert len(one["groups"]) > 1


def scheduled(run: Run) -> Any:
    """Early stopping, accumulation that changes, and a timer, on one Trainer."""
    seen, timer = Losses(), Timer("00:00:10:00")
    stop = EarlyStopping("val_loss", min_delta=0.02, patience=1)
    keep = ModelCheckpoint(run.folder, monitor="val_loss", save_top_k=2, filename="{epoch}")
    accumulate = GradientAccumulationScheduler({0: 1, 1: 2, 3: 3})
    trainer = run.trainer(
        callbacks=[seen, stop, accumulate, timer, keep], max_epochs=9, enable_checkpointing=True
    )
    module = Net(lr=0.3)
    trainer.fit(module, *loaders())
    assert timer.time_elapsed("train") > 0
    return {
        "losses": seen.train,
        "steps": seen.steps,
        "stopped": [stop.stopped_epoch, stop.wait_count, trainer.current_epoch],
        "best": [Path(keep.best_model_path).name, keep.best_model_score],
        "kept": sorted(path.name for path in run.folder.glob("*.ckpt")),
        "saved": saved(keep.best_model_path),
        "weights": weights(module),
    }


@pytest.mark.parametrize("plan", PLANS)
def test_stopping_accumulating_timing(pool, tmp_path, plan):
    one, _ = both(pool, tmp_path, scheduled, plan=plan)
    assert 0 < one["stopped"][0] < 8
