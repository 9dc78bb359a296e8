"""Run by test_testbed.py on each emulated device: a fit whose stages compute in turn.

Argument: a folder for the report. Prints what the device's own meter said where the account of
training began and ended, and how much of the processor was used in between.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[2]))

import lightning_edge
from lightning_edge.energy import EnergyMeter, HostEnv
from lightning_edge.energy.domain import Reading
from lightning_edge.energy.sources.emulated import EmulatedSource

STEPS, ROWS, BURN_S = 20, 4, 0.2
PLAN = {
    "pipelines": [{"stages": [{"devices": [0]}, {"start": "layers.1", "devices": [1]}]}],
    "micro_batches": 1,
}


class Burning(nn.Module):
    """A layer that keeps one core busy, in seconds of the core's own time."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        until_s = time.thread_time() + BURN_S
        while type(x) is Tensor and time.thread_time() < until_s:
            pass
        return self.linear(x).relu()


class Model(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(Burning(), Burning())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.layers(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Recorded(EmulatedSource):
    """The testbed's meter, which keeps what it told the training thread."""

    told_j: list[float]

    def read(self) -> Reading:
        reading = super().read()
        if threading.current_thread() is threading.main_thread():
            vars(self).setdefault("told_j", []).append(sum(reading.energy_j.values()))
        return reading


class Watch(L.Callback):
    """Called before the EnergyLogger: its next reading opens or ends the account."""

    def __init__(self, source: Recorded) -> None:
        self.source = source
        self.at: dict[str, tuple[int, float]] = {}

    def on_train_start(self, *_: Any) -> None:
        self.at["start"] = len(self.source.told_j), time.process_time()

    def on_train_end(self, *_: Any) -> None:
        self.at["stop"] = len(self.source.told_j), time.process_time()

    def found(self) -> dict[str, float]:
        (start, start_s), (stop, stop_s) = self.at["start"], self.at["stop"]
        told_j = self.source.told_j
        return {"energy_j": told_j[stop] - told_j[start], "cpu_s": stop_s - start_s}


torch.set_num_threads(1)
source = Recorded.probe(HostEnv())
watch = Watch(source)
with EnergyMeter([source]) as meter:
    energy = lightning_edge.EnergyLogger(meter, report_dir=sys.argv[1])
    trainer = L.Trainer(
        accelerator="cpu", devices=1, strategy=lightning_edge.EdgeCollabStrategy(plan=PLAN),
        callbacks=[watch, energy], max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Model(), DataLoader(TensorDataset(torch.randn(STEPS * ROWS, 8)), ROWS))
print(f"FOUND {os.environ['RANK']} {json.dumps(watch.found())}", flush=True)
