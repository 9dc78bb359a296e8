"""How far a run is, with a line per device: live in a terminal, plain lines elsewhere.

epoch 1/3  step 120/1875  0.59 s/step  train_loss 2.31
orin    stage 0  computes 86 %  waits 13 %  sends 1 %  7.8 W
laptop  stage 1  computes 88 %  waits  6 %  sends 6 %
"""

from __future__ import annotations

import math
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.live import Live
from rich.text import Text
from typing_extensions import override

from lightning_edge.strategy import EdgeCollabStrategy

__all__ = ["Progress"]


class Progress(Callback):
    """Shows progress on rank 0; all ranks tell it of themselves every `log_every_n_steps` steps.

    Args:
        every_s: Seconds between two plain lines, where output is no terminal.
    """

    def __init__(self, every_s: float = 10.0) -> None:
        super().__init__()
        self._every_s = every_s
        self._console = Console(highlight=False)
        self._live: Live | None = None
        self._told_s = -math.inf
        self._last = (0, 0.0)
        self._devices: list[str] = []

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last = (trainer.global_step, time.monotonic())
        if trainer.is_global_zero and self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4)
            self._live.start()

    @override
    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        every = max(1, int(getattr(trainer, "log_every_n_steps", 50)))
        if trainer.global_step % every:
            return
        self._ask(trainer)
        if trainer.is_global_zero:
            self._show(trainer)

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero and not trainer.sanity_checking:
            self._show(trainer, now=True)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    @override
    def on_exception(self, trainer: L.Trainer, *_: Any) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _ask(self, trainer: L.Trainer) -> None:
        """Hear of all devices; collective."""
        strategy = trainer.strategy
        if not isinstance(strategy, EdgeCollabStrategy) or strategy.plan is None:
            return
        seconds = {"all": 0.0, "waiting": 0.0, "communication": 0.0}
        for start_s, stop_s, spent in strategy.step_phases:
            seconds["all"] += stop_s - start_s
            for phase, duration_s in spent.items():
                seconds[phase] += duration_s
        own = [strategy.global_rank, seconds]
        ranks = strategy.all_gather_object(own)
        stages = {
            rank: index
            for index, stage in enumerate(strategy.plan.stages)
            for rank in stage.devices
        }
        names = strategy.device_names
        width = max(len(name) for name in names)
        watts = trainer.logged_metrics
        self._devices = [
            _line(names[rank].ljust(width), stages.get(rank), seconds,
                  watts.get(f"train/device/{names[rank]}/power_w"))
            for rank, seconds in ranks
        ]  # fmt: skip

    def _show(self, trainer: L.Trainer, *, now: bool = False) -> None:
        time_s = time.monotonic()
        if self._live is None and not now and time_s - self._told_s < self._every_s:
            return
        step, since_s = self._last
        steps = trainer.global_step - step
        pace = f"  {(time_s - since_s) / steps:.3g} s/step" if steps else ""
        if steps:
            self._last = (trainer.global_step, time_s)
        self._told_s = time_s
        total = trainer.estimated_stepping_batches
        of = f"/{total:.0f}" if math.isfinite(total) else ""
        epochs = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        shown = "".join(f"  {k} {float(v):.4g}" for k, v in trainer.progress_bar_metrics.items())
        head = f"epoch {trainer.current_epoch + 1}{epochs}  step {trainer.global_step}{of}{pace}"
        lines = [head + shown, *(f"  {line}" for line in self._devices)]
        if self._live is not None:
            self._live.update(Text("\n".join(lines)))
        else:
            print("\n".join(lines), flush=True)


def _line(name: str, stage: int | None, seconds: dict[str, float], watts: Any) -> str:
    total = seconds["all"]
    if stage is None or not total:
        return f"{name}  no work"
    waits, sends = seconds["waiting"] / total, seconds["communication"] / total
    power = "" if watts is None else f"  {float(watts):.3g} W"
    return (
        f"{name}  stage {stage}  computes {1 - waits - sends:4.0%}  waits {waits:4.0%}"
        f"  sends {sends:4.0%}{power}"
    )
