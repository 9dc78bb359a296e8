"""How far a run is, with a line per device: live in a terminal, plain lines elsewhere.

epoch 3/6 ━━━━━━━━━━━━━╸────────── 60/138   79 ms/step   6 s left
train_loss 0.377   val_loss 0.406   val_accuracy 0.875
device   stage         speed   computes   waits   sends    power
orin         0    431 rows/s       42 %    49 %     8 %   7.85 W
laptop       1    862 rows/s       71 %    22 %     6 %        -
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from typing_extensions import override

from lightning_edge.app.screen import Deferred, DeviceLine, Moment, Screen, plain
from lightning_edge.callbacks.batch_size import batch_samples
from lightning_edge.strategy import EdgeCollabStrategy

__all__ = ["Progress"]


class Progress(Callback):
    """Shows progress; all ranks tell it of themselves every `log_every_n_steps` steps.

    In a terminal on each machine, by its first process; what its other processes print meanwhile
    comes when the picture is gone. Without a terminal rank 0 alone prints lines.

    Args:
        every_s: Seconds between two plain lines, where output is no terminal.
    """

    def __init__(self, every_s: float = 10.0) -> None:
        super().__init__()
        self._every_s = every_s
        self._console = Console(highlight=False)
        self._screen: Screen | Deferred | None = None
        self._told_s = -math.inf
        self._pace = _Pace()
        self._spent = _Spent()
        self._moment = Moment()

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._pace = _Pace(trainer.global_step)
        if self._console.is_terminal:
            first = os.environ.get("LOCAL_RANK", "0") == "0"
            self._screen = Screen(self._console) if first else Deferred()
            self._screen.start()

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self._spent.add(trainer.strategy, batch)
        every = max(1, int(getattr(trainer, "log_every_n_steps", 50)))
        if trainer.global_step % every == 0:
            self._renew(trainer)
            self._show(trainer)

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if isinstance(self._screen, Screen) and not trainer.sanity_checking:
            self._screen.show(self._moment.validating())

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._pace.skip()
        head = self._head(trainer) if trainer.is_global_zero else {"doing": ""}
        head.pop("powers_w", None)
        self._moment = replace(self._moment, **head)
        self._show(trainer, now=True)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    @override
    def on_exception(self, trainer: L.Trainer, *_: Any) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._screen is not None:
            self._screen.stop()
            self._screen = None

    def _renew(self, trainer: L.Trainer) -> None:
        """Hear of all devices; collective. Rank 0 says what is the same for all."""
        strategy = trainer.strategy
        self._pace.renew(trainer.global_step)
        own: list[Any] = [trainer.global_rank, self._spent.take(), {}]
        if trainer.is_global_zero:
            own[2] = self._head(trainer)
        if not isinstance(strategy, EdgeCollabStrategy) or strategy.plan is None:
            self._moment = Moment(**own[2])
            return
        told = strategy.all_gather_object(own)
        stages = {
            rank: index
            for index, stage in enumerate(strategy.plan.stages)
            for rank in stage.devices
        }
        head = dict(told[0][2])
        powers_w = head.pop("powers_w")
        names = strategy.device_names
        devices = []
        for rank, spent, _ in told:
            speed, computes, waits, sends = spent
            power_w = powers_w.get(names[rank])
            stage = stages.get(rank)
            devices.append(DeviceLine(names[rank], stage, speed, computes, waits, sends, power_w))
        self._moment = Moment(**head, devices=devices)

    def _head(self, trainer: L.Trainer) -> dict[str, Any]:
        total = trainer.estimated_stepping_batches
        found: dict[str, Any] = {
            "epoch": trainer.current_epoch + 1,
            "epochs": trainer.max_epochs if (trainer.max_epochs or -1) > 0 else None,
            "step": trainer.global_step,
            "steps": round(total) if math.isfinite(total) else None,
            "step_s": self._pace.step_s,
            "metrics": {k: float(v) for k, v in trainer.progress_bar_metrics.items()},
        }
        if isinstance(trainer.strategy, EdgeCollabStrategy) and trainer.strategy.plan is not None:
            watts = trainer.logged_metrics
            keys = {name: f"train/device/{name}/power_w" for name in trainer.strategy.device_names}
            found["powers_w"] = {n: float(watts[k]) for n, k in keys.items() if k in watts}
        return found

    def _show(self, trainer: L.Trainer, *, now: bool = False) -> None:
        if isinstance(self._screen, Screen):
            self._screen.show(self._moment)
            return
        time_s = time.monotonic()
        due = now or time_s - self._told_s >= self._every_s
        if due and self._screen is None and trainer.is_global_zero:
            self._told_s = time_s
            print(plain(self._moment), flush=True)


class _Pace:
    """Seconds per optimizer step: a running mean that forgets, without the time of validation."""

    def __init__(self, step: int = 0) -> None:
        self.step_s: float | None = None
        self._last = step, time.monotonic()

    def renew(self, step: int) -> None:
        before, since_s = self._last
        if step <= before:
            return
        now_s = time.monotonic()
        found_s = (now_s - since_s) / (step - before)
        self.step_s = found_s if self.step_s is None else 0.5 * (self.step_s + found_s)
        self._last = step, now_s

    def skip(self) -> None:
        """The time since the last call was not for steps."""
        self._last = self._last[0], time.monotonic()


class _Spent:
    """What this device did since the last time it was asked."""

    def __init__(self) -> None:
        self._rows = 0
        self._seconds: Counter[str] = Counter()

    def add(self, strategy: Any, batch: Any) -> None:
        """Count one batch."""
        self._rows += batch_samples(batch)
        for start_s, stop_s, spent in getattr(strategy, "step_phases", ()):
            self._seconds["all"] += stop_s - start_s
            for phase, duration_s in spent.items():
                self._seconds[phase] += duration_s

    def take(self) -> list[float | None]:
        """Rows per second, and the shares of computing, waiting and sending; starts anew."""
        rows, seconds = self._rows, self._seconds
        self._rows, self._seconds = 0, Counter()
        total_s = seconds["all"]
        if total_s <= 0:
            return [None, None, None, None]
        shares = seconds["waiting"] / total_s, seconds["communication"] / total_s
        return [rows / total_s, 1 - sum(shares), *shares]
