"""Small fits with an EnergyLogger on sources whose power the test knows."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from lightning_edge.energy import EnergyMeter, HostEnv
from tests.energy.fakes import FakeSource, steady

ROWS = 4


class Model(BoringModel):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(RandomDataset(32, 6 * ROWS), batch_size=ROWS)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


def meter_of(tmp_path: Path, *sources: FakeSource) -> EnergyMeter:
    """A meter on sources of known power, on a machine with nothing else to tell."""
    chosen = sources or (steady(time.monotonic, {"board": 10.0}),)
    return EnergyMeter(list(chosen), host=HostEnv(sysroot=tmp_path / "root"), period_s=0.02)


def trainer_of(tmp_path: Path, *callbacks: L.Callback, **settings: Any) -> L.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "log_every_n_steps": 2,
        "logger": CSVLogger(tmp_path, name="", version="logs"),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": tmp_path,
    }
    return L.Trainer(callbacks=list(callbacks), **{**defaults, **settings})


def logged(tmp_path: Path) -> list[dict[str, float]]:
    with (tmp_path / "logs" / "metrics.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
