from __future__ import annotations

import csv
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader

from lightning_edge.callbacks import EnergyLogger, JoulesPerSample
from lightning_edge.callbacks.batch_size import batch_samples, batch_tokens
from lightning_edge.energy import EnergyMeter, HostEnv, Scope
from lightning_edge.energy.budget import EnergyBudget
from lightning_edge.errors import EnergyError
from tests.energy.fakes import FakeSource, domain, steady

ROWS = 4


class Model(BoringModel):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(RandomDataset(32, 6 * ROWS), batch_size=ROWS)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


def meter_of(tmp_path: Path, *sources: FakeSource) -> EnergyMeter:
    """A meter on sources of known power, on a machine with nothing else to tell."""
    chosen = sources or (steady(time.monotonic, {"board": 10.0}),)
    return EnergyMeter(list(chosen), host=HostEnv(sysroot=tmp_path / "root"), period_s=0.02)


@pytest.fixture
def meter(tmp_path: Path) -> Iterator[EnergyMeter]:
    made = meter_of(tmp_path)
    yield made
    made.close()


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


class Pipeline(SingleDeviceStrategy):
    """What a strategy may offer: its own gather, whole batches, and phase marks."""

    def __init__(self) -> None:
        super().__init__(device="cpu")
        self.phase_marks: Any = None
        self.batch_rows = 2 * ROWS
        self.gathered = 0
        self.seen: list[str] = []

    def all_gather_object(self, obj: Any) -> list[Any]:
        json.dumps(obj)  # plain values only
        self.gathered += 1
        peer = json.loads(json.dumps(obj))
        peer |= {"rank": 1, "host": "another machine", "device": "peer"}
        return [obj, peer]

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        assert self.phase_marks.current == "compute"
        with self.phase_marks.phase("waiting"):
            time.sleep(0.002)
        self.seen.append(self.phase_marks.current)
        return super().training_step(*args, **kwargs)


def test_strategy_with_devices_that_share_a_batch(tmp_path: Path, meter: EnergyMeter) -> None:
    strategy = Pipeline()
    energy = EnergyLogger(meter)
    trainer = trainer_of(
        tmp_path, energy, strategy=strategy, devices="auto", limit_val_batches=0, max_epochs=1
    )
    trainer.fit(Model())
    pool = energy.report()
    assert pool is not None
    own_j = pool.accounts[0].report.energy_j
    assert pool.energy_j == pytest.approx(2 * (own_j or 0.0))
    assert pool.samples == 6 * 2 * ROWS
    assert strategy.gathered == 5  # steps 2, 4, 6, the epoch's end, the end
    assert pool.accounts[0].phase_s["waiting"] >= 0.012
    assert strategy.phase_marks is None
    assert strategy.seen == ["compute"] * 6
    names = {name for row in logged(tmp_path) for name in row}
    assert "train/device/peer/energy_j" in names


def test_samples_of_a_pipeline_count_once(tmp_path: Path, meter: EnergyMeter) -> None:
    strategy = Pipeline()
    strategy.batch_rows = None  # type: ignore[assignment]
    strategy.plan = SimpleNamespace(stages=("first", "last"))  # type: ignore[attr-defined]
    energy = EnergyLogger(meter, tokens_fn=lambda batch: 10 * len(batch))
    trainer_of(
        tmp_path, energy, strategy=strategy, devices="auto", limit_val_batches=0, max_epochs=1
    ).fit(Model())
    pool = energy.report()
    assert pool is not None
    # Two stages, each of which saw all rows.
    assert pool.samples == 6 * ROWS
    assert pool.tokens == 60 * ROWS


def test_budget_writes_a_checkpoint_and_stops(
    tmp_path: Path, meter: EnergyMeter, recwarn: pytest.WarningsRecorder
) -> None:
    energy = EnergyLogger(meter, budget=EnergyBudget(energy_j=1e-6), every_n_steps=2)
    trainer = trainer_of(tmp_path, energy, limit_val_batches=0)
    trainer.fit(Model())
    assert trainer.global_step == 2
    path = tmp_path / "logs" / "energy_budget.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == 2
    assert any("the energy budget of 1e-06 J is spent" in str(w.message) for w in recwarn)


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
    spent = pool.accounts[0].phase_s
    assert spent["compute"] > 0
    assert {"data", "evaluation", "checkpoint"} & set(spent)


def test_carbon_budget_needs_an_intensity() -> None:
    with pytest.warns(UserWarning, match="needs EnergyLogger"):
        EnergyLogger(budget=EnergyBudget(carbon_g=3.0))


def test_use_outside_of_a_trainer() -> None:
    energy = EnergyLogger()
    assert energy.report() is None
    assert energy.owned_energy_j() is None
    with pytest.raises(EnergyError, match="was not set up"):
        energy.on_train_batch_start(None, None, None, 0)  # type: ignore[arg-type]


class TestMetric:
    def test_joules_since_the_update_before(self) -> None:
        joules = iter([100.0, 106.0, 109.0, 200.0, 201.0])
        metric = JoulesPerSample(lambda: next(joules))
        metric.update(4)
        metric.update(2)
        assert metric.compute().item() == pytest.approx(9.0 / 6)
        metric.skip()  # a validation run
        metric.reset()
        metric.update(1)
        assert metric.compute().item() == pytest.approx(1.0)

    def test_unknown_is_nan(self) -> None:
        metric = JoulesPerSample(lambda: None)
        metric.update(3)
        assert torch.isnan(metric.compute())

    def test_forward_counts_once(self) -> None:
        joules = iter([0.0, 6.0, 9.0])
        metric = JoulesPerSample(lambda: next(joules))
        assert metric(2).item() == pytest.approx(3.0)
        assert metric(1).item() == pytest.approx(3.0)
        assert metric.compute().item() == pytest.approx(3.0)

    def test_small_updates_on_top_of_a_long_run(self) -> None:
        joules = iter([0.0, 1e9, *(1e9 + 0.5 * i for i in range(1, 101))])
        metric = JoulesPerSample(lambda: next(joules))
        metric.update(0)
        for _ in range(100):
            metric.update(1)
        assert metric.energy_mj.item() == 1_000_000_050_000


def test_batch_sizes() -> None:
    class Encoding:  # as transformers' BatchEncoding: its tensors are in `data`
        data = {"input_ids": torch.zeros(3, 7), "attention_mask": torch.ones(3, 7)}

    assert batch_samples((torch.tensor(1.0), torch.zeros(5, 2))) == 5
    assert batch_samples({"a": ["x"], "b": torch.zeros(4)}) == 4
    assert batch_samples(["a", "b", "c"]) == 3
    assert batch_samples("text") == 1
    assert batch_samples(None) == 0
    assert batch_samples(Encoding()) == 3
    assert batch_tokens(Encoding()).item() == 21
    assert batch_tokens({"input_ids": torch.zeros(2, 5)}) == 10
    assert batch_tokens(torch.zeros(2, 5)) is None


def _ddp(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    root = Path(folder)
    shared = steady(time.monotonic, {"board": 10.0})
    own = FakeSource(
        time.monotonic,
        [domain(f"gpu:GPU-{rank}", scope=Scope.GPU)],
        lambda: {f"gpu:GPU-{rank}": 50.0 * own.now_s},
    )
    with meter_of(root, shared, own) as meter:
        energy = EnergyLogger(meter, budget=EnergyBudget(energy_j=1e9))
        trainer = trainer_of(
            root, energy, strategy="ddp", devices=world_size, max_epochs=1, logger=False,
            use_distributed_sampler=True,
        )  # fmt: skip
        trainer.fit(Model())
        pool = energy.report()
        assert pool is not None
        return {
            "energy_j": pool.energy_j,
            "seconds": [account.report.duration_s for account in pool.accounts],
            "owned": {r: sorted(entries) for r, entries in pool.owned.items()},
            "samples": pool.samples,
            "own_j": energy.owned_energy_j(),
        }


@pytest.mark.multiproc
@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_of_one_board_count_it_once(pool: Any, tmp_path: Path, world_size: int) -> None:
    elastic = {"TORCHELASTIC_RUN_ID": "energy", "LOCAL_WORLD_SIZE": str(world_size)}
    found = pool.run(_ddp, world_size, str(tmp_path), env=elastic)
    first = found[0]
    assert all(other["energy_j"] == first["energy_j"] for other in found)
    owners = [rank for rank, keys in first["owned"].items() if "board" in keys]
    assert len(owners) == 1
    gpus = [key for keys in first["owned"].values() for key in keys if key != "board"]
    assert sorted(gpus) == [f"gpu:GPU-{rank}" for rank in range(world_size)]
    truth_j = 10.0 * first["seconds"][owners[0]] + 50.0 * sum(first["seconds"])
    assert first["energy_j"] == pytest.approx(truth_j, rel=0.01)
    assert first["samples"] == pytest.approx(6 * ROWS, abs=ROWS)
    assert (tmp_path / "energy.json").exists()
    assert os.listdir(tmp_path).count("energy.json") == 1
