"""Collectives of user code: right where every device runs it, an error at once where not."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lightning_edge.errors import UnsupportedError
from tests.lightning.both import PIPELINE, Run, same
from tests.lightning.nets import Net, loaders, train_loader, val_loader, weights

pytestmark = [pytest.mark.thorough, pytest.mark.multiproc]


class Asks(Callback):
    """Asks the others in hooks which every device runs."""

    def __init__(self) -> None:
        self.answers: list[Any] = []

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        rank = trainer.global_rank
        own = torch.tensor([float(rank + 1), 2.0])
        strategy = trainer.strategy
        self.answers += [
            module.all_gather(own).tolist(),
            module.all_gather({"a": own, "b": torch.tensor(rank)})["b"].tolist(),
            strategy.reduce(own, reduce_op="mean").tolist(),
            strategy.reduce(own, reduce_op="sum").tolist(),
            strategy.reduce(own, reduce_op="max").tolist(),
            strategy.broadcast({"from": rank}),
            strategy.broadcast(f"rank {rank}", src=2),
            strategy.reduce_boolean_decision(rank < 2, all=True),
            strategy.reduce_boolean_decision(rank == 2, all=False),
        ]
        strategy.barrier("of the user's")


def asking_rank(rank: int, world_size: int, folder: str) -> Any:
    warnings.simplefilter("ignore")
    run, asks = Run(PIPELINE, Path(folder), rank), Asks()
    trainer = run.trainer(callbacks=[asks], max_epochs=1, limit_val_batches=0)
    trainer.fit(Net(), train_loader())
    run.end()
    return asks.answers


def test_collectives_in_hooks_of_all_devices(pool, tmp_path):
    expected = [
        [[1.0, 2.0], [2.0, 2.0], [3.0, 2.0]],
        [0, 1, 2],
        [2.0, 2.0],
        [6.0, 6.0],
        [3.0, 2.0],
        {"from": 0},
        "rank 2",
        False,
        True,
    ]
    assert pool.run(asking_rank, 3, str(tmp_path)) == [expected] * 3


CALLS = {
    "all_gather": lambda module: module.all_gather(torch.ones(1)),
    "reduce": lambda module: module.trainer.strategy.reduce(torch.ones(1)),
    "broadcast": lambda module: module.trainer.strategy.broadcast("something new"),
    "barrier": lambda module: module.trainer.strategy.barrier(),
}


class AsksInStep(Net):
    """Asks behind the model, where only the last stage comes."""

    def __init__(self, call: str) -> None:
        super().__init__()
        self.call = call

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        CALLS[self.call](self)
        return loss


def refused_rank(rank: int, world_size: int, call: str, folder: str) -> str:
    warnings.simplefilter("ignore")
    trainer = Run(PIPELINE, Path(folder), rank).trainer(limit_val_batches=0)
    try:
        trainer.fit(AsksInStep(call), train_loader())
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing said"


@pytest.mark.parametrize(
    "call", [pytest.param(c, marks=[pytest.mark.slow] if c != "barrier" else []) for c in CALLS]
)
def test_collectives_in_steps_are_refused_at_once(pool, tmp_path, call):
    for rank, said in enumerate(pool.run(refused_rank, 3, call, str(tmp_path))):
        assert said.startswith(UnsupportedError.__name__ if rank == 2 else "PeerError"), said
        assert f"{call} was called inside training_step" in said


def apart_rank(rank: int, world_size: int, folder: str) -> Any:
    """Devices with disks of their own: only rank 0 finds the checkpoint, whatever it is called."""
    warnings.simplefilter("ignore")
    run = Run(PIPELINE, Path(folder) / str(rank), rank)
    keep = ModelCheckpoint(run.folder, save_last=True, filename="{epoch}", monitor="val_loss")
    trainer = run.trainer(callbacks=[keep], enable_checkpointing=True)
    module = Net()
    trainer.fit(module, *loaders())
    tested = trainer.test(module, val_loader(), ckpt_path="best", verbose=False)
    run.end()
    files = sorted(path.name for path in run.folder.rglob("*.ckpt"))
    keep = ModelCheckpoint(run.folder, save_last=True, filename="{epoch}")
    again = run.trainer(callbacks=[keep], enable_checkpointing=True, max_epochs=3)
    other = Net()
    again.fit(other, *loaders(), ckpt_path="last")
    run.end()
    return [files, tested, weights(other), again.global_step]


def test_devices_with_disks_of_their_own(pool, tmp_path):
    first, second, third = pool.run(apart_rank, 3, str(tmp_path))
    assert first[0] == ["epoch=1.ckpt", "last.ckpt"]
    assert second[0] == third[0] == []
    assert first[3] == 9
    same(second[1:], first[1:], 0.0, "rank 1")
    same(third[1:], first[1:], 0.0, "rank 2")
