from __future__ import annotations

import csv
import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_edge.callbacks import EnergyLogger, JoulesPerSample
from lightning_edge.energy import EnergyMeter
from lightning_edge.errors import EnergyError
from tests.callbacks.fits import ROWS, Model, logged, meter_of, trainer_of
from tests.energy.fakes import FakeSource, domain


def test_metrics_of_a_fit(tmp_path: Path, meter: EnergyMeter) -> None:
    energy = EnergyLogger(meter, carbon_g_per_kwh=300.0)
    trainer_of(tmp_path, energy).fit(Model())
    rows = logged(tmp_path)
    train = [row for row in rows if "train/energy_j" in row]
    # Steps 2, 4, 6 of each epoch, each epoch's end, and the end of the fit.
    assert len({row["step"] for row in train}) >= 6
    last = train[-1]
    assert last["train/joules_per_sample"] == pytest.approx(last["train/energy_j"] / (12 * ROWS))
    assert last["train/energy_measured_fraction"] == 1.0
    assert last["train/carbon_g"] == pytest.approx(last["train/energy_j"] / 3.6e6 * 300)
    assert [r["train/energy_j"] for r in train] == sorted(r["train/energy_j"] for r in train)
    names = {name for row in rows for name in row}
    assert {"train/power_w", "validate/energy_j", "validate/joules_per_sample"} <= names
    assert "train/joules_per_token" not in names  # no tokens: left out, not 0
    assert "train/battery_pct" not in names
    device = next(name for name in names if name.startswith("train/device/"))
    assert device.endswith(("/energy_j", "/power_w"))
    powers = [row["train/power_w"] for row in train if "train/power_w" in row]
    assert powers == pytest.approx([10.0] * len(powers), rel=0.01)


def test_validation_is_an_account_of_its_own(tmp_path: Path, meter: EnergyMeter) -> None:
    energy = EnergyLogger(meter)
    trainer_of(tmp_path, energy).fit(Model())
    train, validate = energy.report("train"), energy.report("validate")
    assert train is not None
    assert validate is not None
    assert (train.samples, validate.samples) == (12 * ROWS, 12 * ROWS)  # no sanity-check batches
    for pool in (train, validate):
        report = pool.accounts[0].report
        assert report.energy_j == pytest.approx(10.0 * report.duration_s, rel=0.01)


def test_report_without_a_logger(
    tmp_path: Path, meter: EnergyMeter, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        trainer_of(tmp_path, EnergyLogger(meter), logger=False).fit(Model())
    content = json.loads((tmp_path / "energy.json").read_text())
    assert set(content["stages"]) == {"train", "validate"}
    assert content["stages"]["train"]["energy_j"] > 0
    assert content["step"] == 12
    rows = list(csv.DictReader((tmp_path / "energy.csv").open()))
    assert [(row["stage"], row["domain"]) for row in rows] == [
        ("train", "board"), ("validate", "board"),
    ]  # fmt: skip
    assert (tmp_path / "energy.png").read_bytes()[:4] == b"\x89PNG"
    text = caplog.text
    assert "Energy: train" in text
    assert "1 of 1 devices measured" in text
    assert "Energy forecast for the whole run" in text


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_other_verbs_have_reports_of_their_own(
    tmp_path: Path, meter: EnergyMeter, verb: str
) -> None:
    energy = EnergyLogger(meter, report_dir=tmp_path / "reports")
    getattr(trainer_of(tmp_path, energy, logger=False), verb)(Model())
    content = json.loads((tmp_path / "reports" / f"energy-{verb}.json").read_text())
    assert list(content["stages"]) == [verb]
    assert content["stages"][verb]["samples"] == 6 * ROWS
    assert not (tmp_path / "energy.json").exists()


def test_no_files_when_not_wanted(tmp_path: Path, meter: EnergyMeter) -> None:
    trainer_of(tmp_path, EnergyLogger(meter, report_dir=False), logger=False).fit(Model())
    assert list(tmp_path.glob("energy*")) == []


def test_what_is_not_measured_is_left_out(tmp_path: Path) -> None:
    source = FakeSource(time.monotonic, [domain("board")], lambda: OSError("no"))
    with meter_of(tmp_path, source) as meter:
        energy = EnergyLogger(meter)
        trainer_of(tmp_path, energy, max_epochs=1).fit(Model())
        metric = JoulesPerSample(energy.owned_energy_j)
        metric.update(4)
    assert not (tmp_path / "logs" / "metrics.csv").exists()  # nothing was logged
    content = json.loads((tmp_path / "logs" / "energy.json").read_text())
    assert content["stages"]["train"]["energy_j"] is None
    assert content["stages"]["train"]["ranks"][0]["power_series"] == []
    assert torch.isnan(metric.compute())


def test_own_meter_is_found_and_closed(tmp_path: Path) -> None:
    energy = EnergyLogger()
    trainer_of(tmp_path, energy, max_epochs=1, limit_val_batches=0).fit(Model())
    assert energy.meter is None
    pool = energy.report()
    assert pool is not None
    assert pool.energy_j is not None  # at least an estimate, on any Linux machine


def test_accumulated_batches_are_one_step(tmp_path: Path, meter: EnergyMeter) -> None:
    energy = EnergyLogger(meter, every_n_steps=1)
    trainer_of(tmp_path, energy, accumulate_grad_batches=3, limit_val_batches=0).fit(Model())
    pool = energy.report()
    assert pool is not None
    assert pool.samples == 12 * ROWS
    # 4 optimizer steps, 2 epoch ends, the end: no account in between.
    assert len([row for row in logged(tmp_path) if "train/energy_j" in row]) <= 7


def test_progress_bar_and_tokens(tmp_path: Path, meter: EnergyMeter) -> None:
    class Tokens(Model):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch["x"], batch_idx)

        def train_dataloader(self) -> Any:
            mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
            batches = [{"x": torch.randn(2, 32), "attention_mask": mask} for _ in range(6)]
            return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    energy = EnergyLogger(meter, prog_bar=True)
    trainer = trainer_of(tmp_path, energy, max_epochs=1, limit_val_batches=0)
    trainer.fit(Tokens())
    pool = energy.report()
    assert pool is not None
    assert (pool.samples, pool.tokens) == (12, 18)
    assert "train/joules_per_sample" in trainer.progress_bar_metrics
    last = [row for row in logged(tmp_path) if "train/joules_per_token" in row][-1]
    assert last["train/joules_per_token"] == pytest.approx(last["train/energy_j"] / 18)


def test_phases_without_any_help(tmp_path: Path, meter: EnergyMeter) -> None:
    energy = EnergyLogger(meter)
    saver = ModelCheckpoint(tmp_path / "ckpt", every_n_train_steps=3)
    trainer_of(tmp_path, energy, saver, enable_checkpointing=True).fit(Model())
    pool = energy.report()
    assert pool is not None
    account = pool.accounts[0]
    assert account.phase_s["compute"] > 0
    assert {"data", "checkpoint"} & set(account.phase_s)
    assert "evaluation" not in account.phase_s  # an account of its own


def test_use_outside_of_a_trainer() -> None:
    energy = EnergyLogger()
    assert energy.report() is None
    assert energy.owned_energy_j() is None
    with pytest.raises(EnergyError, match="was not set up"):
        energy.on_train_batch_start(None, None, None, 0)  # type: ignore[arg-type]
