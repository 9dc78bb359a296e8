"""Power may go while a checkpoint is being written: there is always a whole one on the disk."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from torch import Tensor, nn

from lightning_edge.errors import EdgeError
from lightning_edge.loop.files import WholeFileIO
from tests.lightning.both import TWO, Run
from tests.lightning.nets import WIDTH, Net, train_loader
from tests.pool import Died

pytestmark = [pytest.mark.thorough, pytest.mark.multiproc]


KEPT: dict[str, Any] = {"save_last": True, "save_top_k": 2, "monitor": "step", "mode": "max"}


class Large(Net):
    """Writing it takes some milliseconds."""

    def __init__(self) -> None:
        super().__init__()
        self.extra: Any = nn.Parameter(torch.zeros(1 << 20))


class Late(Net):
    """The same, built in parts: no device has it as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.extra: Any = None

    def configure_model(self) -> None:
        if self.extra is None:
            self.extra = nn.Linear(WIDTH, 1 << 17)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.extra(x).mean(1, keepdim=True)


SAVES: dict[str, tuple[type[Net], Callable[[], list[Any]]]] = {  # the module, the plugins
    "streamed": (Large, list),
    "in parts": (Late, list),
    "in a thread": (Large, lambda: [AsyncCheckpointIO()]),
}


class Killed(Callback):
    """Kills this process some time after the second save of this run was begun."""

    def __init__(self, delay_s: float) -> None:
        self.delay_s, self.batches = delay_s, 0
        self.thread = threading.Thread(target=self._kill, daemon=True)

    def on_train_batch_end(self, *_: Any) -> None:
        self.batches += 1
        if self.batches == 2:
            self.thread.start()

    def _kill(self) -> None:
        time.sleep(self.delay_s)
        os.kill(os.getpid(), signal.SIGKILL)


def killed_rank(rank: int, world_size: int, folder: str, kind: str, delay_s: float) -> str:
    """Go on from the last checkpoint, if there is one, until rank 0 is killed."""
    run = Run(TWO, Path(folder), rank)
    make, plugins = SAVES[kind]
    keep = ModelCheckpoint(folder, every_n_train_steps=1, **KEPT)
    killed = Killed(delay_s)
    trainer = run.trainer(
        callbacks=[killed, keep] if rank == 0 else [keep],
        plugins=plugins(),
        enable_checkpointing=True,
        max_epochs=-1,
        # a large message to a dead device is given up after this only
        edge={"timeout": timedelta(seconds=8)},
    )
    last = Path(folder) / "last.ckpt"
    try:
        trainer.fit(make(), train_loader(), ckpt_path="last" if last.exists() else None)
    except EdgeError as error:
        if rank == 0:
            killed.thread.join(10)
        return str(error)
    return "went on"


def kill_and_look(pool: Any, folder: Path, kind: str, delay_s: float) -> int:
    """Kill rank 0 while it saves; return the step of the last checkpoint: all are whole."""
    found = pool.run(killed_rank, 2, str(folder), kind, delay_s, may_die={0})
    assert isinstance(found[0], Died)
    assert found[1] != "went on"
    written = {path.name: torch.load(path, weights_only=True) for path in folder.glob("*.ckpt")}
    step: int = written["last.ckpt"]["global_step"]
    return step


def kill_again_and_again(pool: Any, folder: Path, kind: str, times: int, seed: int) -> list[int]:
    """Each run goes on from what the one before has left, and gets at least as far."""
    drawn = random.Random(seed)
    steps = [0]
    for _ in range(times):
        steps.append(kill_and_look(pool, folder, kind, drawn.uniform(0.0, 0.1)))
        # the save at the first of this run's two steps was complete when the second began
        assert steps[-1] >= steps[-2] + (1 if kind != "in a thread" else 0), steps
    return steps


def test_a_killed_save_leaves_the_checkpoint_before_it(pool, tmp_path):
    step = kill_again_and_again(pool, tmp_path, "streamed", 2, seed=7)[-1]
    trainer = Run(None, tmp_path).trainer(max_steps=step + 1, max_epochs=-1)
    trainer.fit(Large(), train_loader(), ckpt_path=str(tmp_path / "last.ckpt"))
    assert trainer.global_step == step + 1


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("kind", "times"), [("streamed", 20), ("in parts", 15), ("in a thread", 15)]
)
def test_fifty_killed_saves(pool, tmp_path, kind, times):
    steps = kill_again_and_again(pool, tmp_path, kind, times, seed=8)
    assert len(set(np.diff(steps))) > 1  # at different moments


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "last.ckpt"
    io = WholeFileIO()
    io.save_checkpoint({"step": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        io.save_checkpoint({"step": 2, "lambda": lambda: 0}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
