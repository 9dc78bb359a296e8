"""How runs with an EnergyLogger end before their time, and how they go on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_edge.callbacks import EnergyLogger
from lightning_edge.energy import EnergyMeter
from lightning_edge.energy.budget import EnergyBudget
from tests.callbacks.fits import ROWS, Model, meter_of, trainer_of
from tests.callbacks.test_energy_strategies import Pipeline
from tests.energy import trees

LIMITS = {
    "joules": (EnergyBudget(energy_j=1e-6), "the energy budget of 1e-06 J is spent"),
    "carbon": (EnergyBudget(carbon_g=1e-9), "the carbon budget of 1e-09 g is spent"),
    "battery": (EnergyBudget(battery_pct=75), "battery is down to 72 % .limit 75 %."),
    "temperature": (EnergyBudget(temperature_c=80), "is 84 C hot .limit 80 C."),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_budget_writes_a_checkpoint_and_stops(
    tmp_path: Path, limit: str, recwarn: pytest.WarningsRecorder
) -> None:
    root = tmp_path / "root"
    trees.laptop_battery(root)  # at 72 %
    trees.write(root, {"/sys/class/thermal/thermal_zone0/temp": 84_000})
    budget, reason = LIMITS[limit]
    with meter_of(tmp_path) as meter:
        energy = EnergyLogger(meter, budget=budget, every_n_steps=2, carbon_g_per_kwh=300.0)
        trainer = trainer_of(tmp_path, energy, limit_val_batches=0)
        trainer.fit(Model())
    assert trainer.global_step == 2
    path = tmp_path / "logs" / "energy_budget.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == 2
    assert any(re.search(reason, str(w.message)) for w in recwarn)
    # With more to spend the run goes on from there.
    with meter_of(tmp_path) as meter:
        trainer = trainer_of(tmp_path, EnergyLogger(meter), limit_val_batches=0)
        trainer.fit(Model(), ckpt_path=path, weights_only=True)
    assert trainer.global_step == 12


def test_carbon_budget_needs_an_intensity() -> None:
    with pytest.warns(UserWarning, match="needs EnergyLogger"):
        EnergyLogger(budget=EnergyBudget(carbon_g=3.0))


def test_resumed_run_goes_on_counting(tmp_path: Path) -> None:
    def fit(epochs: int, path: Path | None) -> EnergyLogger:
        with meter_of(tmp_path) as meter:
            energy = EnergyLogger(meter)
            saver = ModelCheckpoint(
                tmp_path / "ckpt", filename="last", enable_version_counter=False
            )
            trainer = trainer_of(
                tmp_path, energy, saver, max_epochs=epochs, enable_checkpointing=True,
                limit_val_batches=0, logger=False,
            )  # fmt: skip
            trainer.fit(Model(), ckpt_path=path, weights_only=False)
            return energy

    first = fit(1, None)
    before = first.report()
    second = fit(3, tmp_path / "ckpt" / "last.ckpt")
    pool = second.report()
    assert before is not None
    assert pool is not None
    assert pool.samples == 18 * ROWS
    own_j = pool.accounts[0].report.energy_j or 0.0
    carried_j = (pool.energy_j or 0.0) - own_j
    # What was saved at the end of the first epoch, a little before the fit's end.
    assert 0.0 < carried_j <= (before.energy_j or 0.0) * (1 + 1e-9)
    assert [earlier.samples for earlier in pool.earlier] == [6 * ROWS]


class Failing(Model):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 4:
            raise ValueError("out of luck")
        return super().training_step(batch, batch_idx)


def test_failed_run_is_reported_without_asking_others(tmp_path: Path, meter: EnergyMeter) -> None:
    strategy = Pipeline()
    strategy_gathers = strategy.all_gather_object
    energy = EnergyLogger(meter, every_n_steps=2)
    trainer = trainer_of(tmp_path, energy, strategy=strategy, devices="auto", limit_val_batches=0)
    with pytest.raises(ValueError, match="out of luck"):
        trainer.fit(Failing())
    assert strategy.gathered == 2
    assert strategy_gathers is not None
    content = json.loads((tmp_path / "logs" / "energy.json").read_text())
    train = content["stages"]["train"]
    assert train["silent_ranks"] == [1]
    assert len(train["ranks"]) == 2  # the last account of the other rank is kept
    assert train["energy_j"] > 0
