"""What a run leaves in its folder, written by rank 0."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf
from typing_extensions import override

from lightning_edge.app.chosen import plan_for, rows_of
from lightning_edge.app.pool import profile_of_pool
from lightning_edge.app.report import text
from lightning_edge.app.sheets import compared, devices
from lightning_edge.callbacks import EnergyLogger
from lightning_edge.errors import ProfileError
from lightning_edge.plan.profile import Profile
from lightning_edge.plan.table import table
from lightning_edge.strategy import EdgeCollabStrategy

__all__: list[str] = []

SIDE = 512  # of the matrices whose products tell a device's speed
TRIES = 200


def write(trainer: L.Trainer, folder: Path, seconds: float, rows: int) -> None:
    """Leave what `lightning-edge report` and a sweep's table show; rank 0 alone."""
    found: dict[str, Any] = {"seconds": seconds, "steps": trainer.global_step}
    found |= {name: float(value) for name, value in trainer.callback_metrics.items()}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        energy = callback.report() if isinstance(callback, EnergyLogger) else None
        if energy is not None:
            found["energy_j"] = energy.energy_j
    strategy = trainer.strategy
    if isinstance(strategy, EdgeCollabStrategy):
        found["batch_rows"] = rows
        report = strategy.report()
        (folder / "report.json").write_text(json.dumps(report.to_dict(), indent=1))
        (folder / "report.txt").write_text(str(report))
    (folder / "metrics.json").write_text(json.dumps(found, indent=1))
    for sheet in (devices(folder), compared(folder)):
        if sheet is not None and sheet.rows:
            print(text(sheet))


class Decided(Callback):
    """Keeps what was decided, while the strategy still has it, in the run's folder.

    Args:
        folder: Of the run.
        only: Do not train then.
    """

    def __init__(self, folder: Path, *, only: bool) -> None:
        super().__init__()
        self._folder, self._only = folder, only
        self.batch_rows = 0
        self.profile: Profile | None = None

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._only:
            trainer.fit_loop.max_epochs = 0
        strategy = trainer.strategy
        if not trainer.is_global_zero or not isinstance(strategy, EdgeCollabStrategy):
            return
        if strategy.plan is not None:
            strategy.plan.to_yaml(self._folder / "plan.yaml")
            names = strategy.device_names
            (self._folder / "plan.txt").write_text(f"{table(strategy.plan, names)}\n")
        profile = getattr(strategy, "profile", None)
        if isinstance(profile, Profile):
            profile.to_yaml(self._folder / "profile.yaml")
            self.profile = profile

    @override
    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if isinstance(trainer.strategy, EdgeCollabStrategy):
            self.batch_rows = max(self.batch_rows, trainer.strategy.batch_rows)


def show(mode: str, config: DictConfig, profile: Profile | None, folder: Path) -> None:
    """Print and keep what was found out without training.

    Args:
        mode: "plan" or "profile".
        config: Resolved.
        profile: What was measured.
        folder: Of the run.

    Raises:
        EdgeError: Nothing was measured, or nothing can be planned.
    """
    if profile is None:
        raise ProfileError("nothing could be measured; the lines above say why")
    if mode == "profile":
        print(profile)
        found: dict[str, Any] = {"devices": len(profile.devices)}
        (folder / "metrics.json").write_text(json.dumps(found))
        return
    pool: Any = OmegaConf.to_container(config.profile)
    if "devices" in pool:
        profile = profile_of_pool(pool, profile.model, profile.devices[0], gflops())
    settings: Any = OmegaConf.to_container(config.strategy)
    outcome = plan_for(profile, rows_of(config), settings)
    print(outcome)
    outcome.save(folder)
    (folder / "metrics.json").write_text(json.dumps(outcome.metrics(), indent=1))


def gflops() -> float:
    """GFLOP/s of this process in products of FP32 matrices; the best of many, as others disturb."""
    left, right = torch.ones(SIDE, SIDE), torch.ones(SIDE, SIDE)
    best_s = float("inf")
    for _ in range(TRIES):
        start_s = time.perf_counter()
        left @ right
        best_s = min(best_s, time.perf_counter() - start_s)
    return 2 * SIDE**3 / best_s / 1e9
