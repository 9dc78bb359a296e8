"""`save_on_failure`: what is left of a failed run is kept, goes together again, and goes on."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lightning_edge.loop.parts import WHOLE
from tests.lightning.both import PIPELINE, TWO, Run, same
from tests.lightning.nets import Net, train_loader, weights
from tests.pool import Died

pytestmark = [pytest.mark.thorough, pytest.mark.multiproc]


class FailingNet(Net):
    """Fails in its step: on one rank, once so many optimizer steps are done."""

    def __init__(self, at: tuple[int, int] | None, how: str, options: dict[str, Any]) -> None:
        super().__init__(optimizer=adam, **options.get("net", {}))
        self.at, self.how, self.batch = at, how, options.get("batch", 0)
        self.late = options.get("late", False)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        here = (self.trainer.global_step, self.trainer.global_rank)
        fails = self.at == here and batch_idx >= self.batch
        if fails and not self.late:
            fail(self.how)
        loss = super().training_step(batch, batch_idx)  # what is in front of the loss leaves here
        if fails:
            fail(self.how)
        return loss


class FailsAfter(Callback):
    def __init__(self, at: tuple[int, int], how: str) -> None:
        self.at, self.how = at, how

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if self.at == (trainer.global_step, trainer.global_rank):
            fail(self.how)


def adam(net: Any) -> Any:
    return torch.optim.AdamW(net.parameters(), lr=0.05)


def fail(how: str) -> None:
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ValueError("row 7 is missing")


def run(
    rank: int,
    world_size: int,
    folder: str,
    options: dict[str, Any],
    at: tuple[int, int] | None = None,
    how: str = "kill",
    resume: str | None = None,
) -> Any:
    """Fit on this rank, in a folder of its own as if it had a disk of its own."""
    own = Path(folder) / f"disk-{rank}"
    own.mkdir(parents=True, exist_ok=True)
    os.chdir(own)
    trainer_options = dict(options.get("trainer", {}))
    callbacks: list[Any] = []
    keep = options.get("keep", 0)
    if keep:
        name = {"dirpath": "kept", "filename": "{step}", "auto_insert_metric_name": False}
        callbacks.append(ModelCheckpoint(every_n_train_steps=keep, save_top_k=-1, **name))
    after = options.get("after", False) and at is not None
    if after:
        callbacks.append(FailsAfter(at, how))
    trainer = Run(options.get("plan", PIPELINE), own, rank).trainer(
        edge={"save_on_failure": "rescued"},
        callbacks=callbacks,
        enable_checkpointing=bool(keep),
        **{"max_epochs": 2, **trainer_options},
    )
    net = FailingNet(None if after else at, how, options)
    try:
        trainer.fit(net, train_loader(shuffle=False), ckpt_path=resume)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    trainer.strategy.disconnect()
    return trainer.global_step, weights(net)


def reference(pool: Any, folder: Path, options: dict[str, Any], step: int) -> tuple[Any, Any]:
    """An ordinary checkpoint of that step by the same plan, and the end of a run that goes on."""
    pool.run(run, 3, str(folder), {**options, "keep": 1})
    path = folder / "disk-0" / "kept" / f"{step}.ckpt"
    ends = pool.run(run, 3, str(folder), options, None, "", str(path))
    return torch.load(path, weights_only=True), ends[0]


def alike(found: dict[str, Any], expected: dict[str, Any]) -> None:
    # behind an epoch's last step others may have begun the next epoch already
    for key in ("global_step", "state_dict", "optimizer_states", "lr_schedulers"):
        same(found[key], expected[key], 1e-6, key)


TWO_EACH = {"accumulate_grad_batches": 2}
CASES = {
    "a replica is killed": ({}, (4, 1), "kill"),
    "the only holder raises": ({"net": {"norm": True}, "late": True}, (4, 2), "raise"),
    "rank 0 is killed, and the store with it": ({}, (1, 0), "kill"),
    "in the middle of an accumulation": (
        {"trainer": {"accumulate_grad_batches": 2}},
        (3, 1),
        "kill",
    ),
    "behind the step": ({"after": True}, (2, 1), "raise"),
    "behind an epoch's last step": ({"after": True}, (3, 1), "kill"),
}
DEFAULT = ("the only holder raises", "a replica is killed")


@pytest.mark.parametrize(
    "case", [c if c in DEFAULT else pytest.param(c, marks=pytest.mark.slow) for c in CASES]
)
def test_what_is_left_goes_on_as_an_ordinary_checkpoint(pool, tmp_path, case):
    options, at, how = CASES[case]
    expected, (steps, end) = reference(pool, tmp_path / "ordinary", options, at[0])
    folder = tmp_path / "failed"
    texts = pool.run(
        run, 3, str(folder), options, at, how, timeout=90, may_die=[at[1]] if how == "kill" else []
    )
    if how == "kill":
        assert texts[at[1]] == Died(-signal.SIGKILL)
    told = [text for text in texts if isinstance(text, str) and text.startswith("PeerError")]
    assert len(told) == 2
    for text in told:
        assert f"rank {at[1]}" in text.splitlines()[0]
        if at[1] != 0:
            assert f"The state after step {at[0]} is kept, in parts, on the disks of rank" in text
        else:
            assert "The run's store is gone" in text
        path = re.search(r"ckpt_path='([^']*)'", text)
        assert path is not None
    goes_on = pool.run(run, 3, str(folder), options, None, "", path[1], timeout=90)
    whole = list((folder / "disk-0").glob(f"rescued/*/{WHOLE}"))
    assert len(whole) == 1
    alike(torch.load(whole[0], weights_only=True), expected)
    for found_steps, found in goes_on:
        assert found_steps == steps
        same(found, end, 1e-6, "at the end")
    if case in DEFAULT:  # all parts copied to one disk, for other devices
        for part in folder.glob("disk-*/rescued/*/*.part"):
            shutil.copy(part, tmp_path)
        other = {**options, "plan": TWO}
        for found_steps, found in pool.run(run, 2, str(folder), other, None, "", str(tmp_path)):
            assert found_steps == steps
            same(found, end, 1e-5, "at the end on two devices")


def test_what_only_the_dead_held_is_lost_and_the_last_checkpoint_is_whole(pool, tmp_path):
    options = {"keep": 2}
    texts = pool.run(run, 3, str(tmp_path), options, (3, 2), "kill", may_die=[2])
    last = tmp_path / "disk-0" / "kept" / "2.ckpt"
    content = hashlib.sha256(last.read_bytes()).hexdigest()
    for text in texts[:2]:
        assert "What only rank 2 (" in text
        assert ") held is lost: go on from the last whole checkpoint, of step 2: " in text
        assert "kept/2.ckpt'" in text
    assert not list(tmp_path.glob("**/*.part.part"))
    answers = pool.run(run, 3, str(tmp_path), {}, None, "", "rescued")
    for answer in answers:
        assert answer.startswith("CheckpointError: rescued is no state to go on from: of step 3 (")
        assert "the part of rank 2 (" in answer
    assert hashlib.sha256(last.read_bytes()).hexdigest() == content
    assert torch.load(last, weights_only=True)["global_step"] == 2
