"""Hooks that users override to do it their way: the optimizer's, skipped epochs, checkpoints."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lightning_edge.errors import EdgeError
from tests.lightning.both import PLANS, REPLICAS, TWO, Run, both
from tests.lightning.nets import WIDTH, Losses, Net, metrics, train_loader, val_loader, weights

pytestmark = pytest.mark.multiproc


class Own(Net):
    """Warms up, zeroes, freezes and saves by itself, and ends its first epoch early."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
        return -1 if batch_idx == 2 and self.current_epoch == 0 else None

    def on_train_epoch_start(self) -> None:
        self.head.requires_grad_(self.current_epoch != 1)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        optimizer.step(closure=optimizer_closure)
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * min(1.0, (self.trainer.global_step + 1) / 4)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        if epoch < 2:
            optimizer.zero_grad(set_to_none=epoch == 0)
        elif batch_idx == 0:  # else the gradients of the batches before count again
            self.zero_grad()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = {n: t for n, t in checkpoint["state_dict"].items() if not n.startswith("head")}
        checkpoint.update(state_dict=kept, extra={"numbers": torch.ones(2)})

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert checkpoint["extra"]["numbers"].sum() == 2


class Peeks(Callback):
    """Looks at the loader and at metrics, logs, and goes back to the weights it liked."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_start(self, trainer: Any, module: Any) -> None:
        loader = trainer.train_dataloader
        self.seen += [len(loader), len(loader.dataset), loader.batch_size]
        self.seen += [trainer.num_training_batches, tuple(next(iter(loader))[0].shape)]

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        self.seen.append(float(trainer.callback_metrics["val_loss"]))
        module.log("from a callback", 2.0 * trainer.current_epoch)
        if trainer.current_epoch == 1:
            self.liked = copy.deepcopy(module.state_dict())

    def on_train_end(self, trainer: Any, module: Any) -> None:
        module.load_state_dict(self.liked)


def owned(run: Run, accumulate: int) -> Any:
    seen, peeks = Losses(), Peeks()
    keep = ModelCheckpoint(run.folder, filename="{epoch}", save_top_k=-1)
    trainer = run.trainer(
        callbacks=[seen, peeks, keep],
        enable_checkpointing=True,
        max_epochs=3,
        num_sanity_val_steps=0,
        accumulate_grad_batches=accumulate,
    )
    module = Own()
    trainer.fit(module, train_loader(rows=30), val_loader())
    found: dict[str, Any] = {"losses": seen.train, "steps": trainer.global_step}
    found |= {"peeks": peeks.seen, "metrics": metrics(trainer), "weights": weights(module)}
    run.end()
    path = run.folder / "epoch=1.ckpt"
    found["saved"] = list(torch.load(path, weights_only=True)["state_dict"])
    again, other = run.trainer(max_epochs=3, limit_val_batches=0), Own()
    other.strict_loading = False
    again.fit(other, train_loader(rows=30), ckpt_path=str(path))
    return {**found, "again": weights(other)}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_hooks_of_a_user_who_does_it_himself(pool, tmp_path, plan, accumulate):
    one, _ = both(pool, tmp_path, owned, accumulate, plan=plan, tolerance=1e-5)
    assert len(one["losses"]) == 2 + 4 + 4


class Smooth(Net):
    """A penalty on the gradient with respect to the inputs."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x = batch[0].requires_grad_()
        logits = self(x)
        (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        return F.cross_entropy(logits, batch[1]) + 0.1 * slope.square().sum(1).mean()


def smoothed(run: Run) -> Any:
    seen, module = Losses(), Smooth()
    trainer = run.trainer(callbacks=[seen], limit_val_batches=0)
    trainer.fit(module, train_loader())
    return seen.train, weights(module)


def test_gradients_in_the_step_work_on_one_stage(pool, tmp_path):
    both(pool, tmp_path, smoothed, plan={**REPLICAS, "micro_batches": 2})


class Infers(Net):
    def on_train_epoch_end(self) -> None:
        self.log("example", self(torch.ones(2, WIDTH)).sum())


def refused_rank(rank: int, world_size: int, kind: type[Net], folder: str) -> str:
    trainer = Run(TWO, Path(folder), rank).trainer(limit_val_batches=0)
    with pytest.raises(EdgeError) as caught:
        trainer.fit(kind(), train_loader())
    return str(caught.value)


def test_the_model_runs_in_steps_only(pool, tmp_path):
    for text in pool.run(refused_rank, 2, Infers, str(tmp_path)):
        assert "self.log('example') in on_train_epoch_end" in text
        assert "runs in steps only" in text


def test_gradients_across_a_cut_are_refused(pool, tmp_path):
    for text in pool.run(refused_rank, 2, Smooth, str(tmp_path)):
        assert "start: 'blocks.1' cannot begin a stage: the gradient taken in" in text
        assert "a plan of one stage" in text
