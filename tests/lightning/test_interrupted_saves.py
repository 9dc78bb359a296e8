"""Power may go while a checkpoint is being written: there is always a whole one on the disk."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn

from lightning_edge.errors import EdgeError
from lightning_edge.loop.files import WholeFileIO
from tests.lightning.both import TWO, Run
from tests.lightning.nets import Net, train_loader
from tests.pool import Died

pytestmark = pytest.mark.multiproc


KEPT: dict[str, Any] = {"save_last": True, "save_top_k": 2, "monitor": "step", "mode": "max"}


class Large(Net):
    """Writing it takes some milliseconds."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Parameter(torch.zeros(1 << 20))


class Killed(Callback):
    """Kills this process some time after the second checkpoint was begun."""

    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 2:
            threading.Thread(target=self._kill, daemon=True).start()

    def _kill(self) -> None:
        time.sleep(self.delay_s)
        os.kill(os.getpid(), signal.SIGKILL)


def killed_rank(rank: int, world_size: int, folder: str, delay_s: float) -> str:
    run = Run(TWO, Path(folder), rank)
    keep = ModelCheckpoint(folder, every_n_train_steps=1, **KEPT)
    callbacks = [Killed(delay_s), keep] if rank == 0 else [keep]
    options = {"enable_checkpointing": True, "max_epochs": 400}
    # a large message to a dead device is given up after this only
    patience = {"timeout": timedelta(seconds=10)}
    trainer = run.trainer(callbacks=callbacks, edge=patience, **options)
    try:
        trainer.fit(Large(), train_loader())
    except EdgeError as error:
        return str(error)
    return "went on"


def kill_and_look(pool: Any, folder: Path, delay_s: float) -> int:
    """Kill rank 0 while it saves; return the step of the newest checkpoint: all are whole."""
    found = pool.run(killed_rank, 2, str(folder), delay_s, may_die={0})
    assert isinstance(found[0], Died)
    assert found[1] != "went on"
    written = sorted(folder.glob("*.ckpt"))
    assert written, "there is no checkpoint, though the second one was being written"
    steps = [torch.load(path, weights_only=True)["global_step"] for path in written]
    # the one that was there before the kill, or a later one
    assert max(steps) >= 1
    assert sum(path.name == "last.ckpt" for path in written) == 1
    return max(steps)


def test_a_killed_save_leaves_the_checkpoint_before_it(pool, tmp_path):
    drawn = random.Random(7)
    for number in range(5):
        kill_and_look(pool, tmp_path / str(number), drawn.uniform(0.0, 0.1))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_fifty_killed_saves(pool, tmp_path):
    drawn = random.Random(8)
    steps = [kill_and_look(pool, tmp_path / str(n), drawn.uniform(0.0, 0.2)) for n in range(50)]
    assert len(set(steps)) > 3  # at different moments


def test_a_run_goes_on_from_what_a_killed_one_left(pool, tmp_path):
    step = kill_and_look(pool, tmp_path, 0.05)
    trainer = Run(None, tmp_path).trainer(max_steps=step + 1, max_epochs=-1)
    trainer.fit(Large(), train_loader(), ckpt_path=str(tmp_path / "last.ckpt"))
    assert trainer.global_step == step + 1


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "last.ckpt"
    io = WholeFileIO()
    io.save_checkpoint({"step": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        io.save_checkpoint({"step": 2, "lambda": lambda: 0}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
