"""The same scenario in one process with plain Lightning and on ranks of the pool, held together.

A scenario is a module-level function. It makes its Trainers with `run.trainer(...)` and returns
plain values and tensors: whatever a user could see. Every rank has to see what one process saw::

    def early_stop(run):
        trainer = run.trainer(max_epochs=9, callbacks=[EarlyStopping("val_loss")])
        trainer.fit(Net(), *loaders())
        return {"stopped at": trainer.current_epoch}

    both(pool, tmp_path, early_stop)        # raises where a rank differs
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor

import lightning_edge
from tests.pool import Pool

PIPELINE = {  # two devices share the first stage, a third has the rest and the loss
    "pipelines": [
        {
            "stages": [
                {"devices": {0: 0.625, 1: 0.375}},
                {"start": "blocks.1", "devices": [2]},
            ]
        }
    ],
    "micro_batches": 2,
}
TWO = {
    "pipelines": [{"stages": [{"devices": [0]}, {"start": "blocks.1", "devices": [1]}]}],
    "micro_batches": 2,
}
REPLICAS = {"pipelines": [{"stages": [{"devices": {0: 0.75, 1: 0.25}}]}]}
PLANS = [
    pytest.param(PIPELINE, id="pipeline"),
    pytest.param(REPLICAS, id="replicas", marks=pytest.mark.slow),
]
QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "max_epochs": 2,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
}


class Run:
    """One rank of a scenario, or plain Lightning's only process.

    Args:
        plan: None for plain Lightning.
        folder: For files; one for all ranks.
        rank: This one.
    """

    def __init__(self, plan: Any, folder: Path, rank: int = 0) -> None:
        self.plan, self.folder, self.rank = plan, folder, rank
        self.trainers: list[L.Trainer] = []

    def trainer(self, **options: Any) -> L.Trainer:
        """A quiet Trainer with the scenario's strategy; options are the Trainer's."""
        edge = options.pop("edge", {})
        strategy: Any = "auto"
        if self.plan is not None:
            strategy = lightning_edge.EdgeCollabStrategy(self.plan, **edge)
        settings = {**QUIET, "default_root_dir": str(self.folder), **options}
        trainer = L.Trainer(strategy=strategy, **settings)
        self.trainers.append(trainer)
        L.seed_everything(4, verbose=False)
        return trainer

    def end(self) -> None:
        """Leave the other ranks in order."""
        if self.plan is not None:
            for trainer in self.trainers:
                trainer.strategy.disconnect()  # type: ignore[attr-defined]


def run_one(
    rank: int, world_size: int, scenario: Callable[..., Any], plan: Any, folder: str, args: Any
) -> Any:
    """Run a scenario here; what a rank of the pool is told to do."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    run = Run(plan, Path(folder), rank)
    found = scenario(run, *args)
    run.end()
    return found


def ranks_of(plan: Mapping[str, Any]) -> int:
    """How many ranks a plan in its mapping form has."""
    return 1 + max(rank for stage in plan["pipelines"][0]["stages"] for rank in stage["devices"])


def both(
    pool: Pool,
    folder: Path,
    scenario: Callable[..., Any],
    *args: Any,
    plan: Mapping[str, Any] = PIPELINE,
    tolerance: float = 3e-6,
    timeout: float = 60,
) -> tuple[Any, list[Any]]:
    """Run a scenario in one process and on all ranks of a plan, and hold the results together.

    Returns:
        What one process saw, and what each rank saw.
    """
    for name in ("one", "many"):
        (folder / name).mkdir()
    with ThreadPoolExecutor(1) as thread:  # the ranks wait for each other most of the time
        ranks = thread.submit(
            pool.run,
            run_one,
            ranks_of(plan),
            scenario,
            plan,
            str(folder / "many"),
            args,
            timeout=timeout,
            env={"PL_GLOBAL_SEED": None},
        )
        one = run_one(0, 1, scenario, None, str(folder / "one"), args)
        many = ranks.result()
    for rank, found in enumerate(many):
        same(found, one, tolerance, f"rank {rank}")
    return one, many


def same(found: Any, expected: Any, tolerance: float, where: str) -> None:
    """Raise where two trees of plain values and tensors differ; numbers may by `tolerance`."""
    if isinstance(expected, Tensor):
        assert isinstance(found, Tensor), f"{where}: {type(found).__name__} for a tensor"
        assert found.dtype == expected.dtype, where
        assert found.shape == expected.shape, where
        torch.testing.assert_close(
            found.double(),
            expected.double(),
            rtol=tolerance,
            atol=tolerance,
            msg=lambda text: f"{where}: {text}",
        )
    elif isinstance(expected, Mapping):
        assert list(found) == list(expected), where
        for key in expected:
            same(found[key], expected[key], tolerance, f"{where}/{key}")
    elif isinstance(expected, Sequence) and not isinstance(expected, str | bytes):
        if all(isinstance(item, str | int) for item in expected):
            assert list(found) == list(expected), f"{where}: {first_difference(found, expected)}"
            return
        assert len(found) == len(expected), f"{where}: {len(found)} items for {len(expected)}"
        for place, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
            same(mine, theirs, tolerance, f"{where}[{place}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=tolerance, abs=tolerance), where
    else:
        assert found == expected, where


def first_difference(found: Sequence[Any], expected: Sequence[Any]) -> str:
    """Where two lists begin to differ, with what is around."""
    pairs = enumerate(zip(found, expected, strict=False))
    place = next((i for i, (a, b) in pairs if a != b), min(len(found), len(expected)))
    part = slice(max(0, place - 3), place + 4)
    return f"from [{place}] on {list(found[part])} for {list(expected[part])}"
