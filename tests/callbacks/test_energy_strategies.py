"""EnergyLogger with several devices: a strategy's offers, DDP, edge_collab."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from lightning_edge import EdgeCollabStrategy
from lightning_edge.callbacks import EnergyLogger
from lightning_edge.energy import EnergyMeter, HostEnv, Scope
from lightning_edge.energy.budget import EnergyBudget
from lightning_edge.errors import PeerError
from tests.callbacks.fits import ROWS, Model, logged, meter_of, trainer_of
from tests.energy import trees
from tests.energy.fakes import FakeSource, domain, steady
from tests.train.test_transparency import plan_of
from tests.trainers import Module, loaders

pytestmark = pytest.mark.thorough

VERBS = ("validate", "test", "predict")
QUIET = {"verbose": False}


class Pipeline(SingleDeviceStrategy):
    """What a strategy may offer: its own gather, whole batches, and how a batch was spent."""

    def __init__(self) -> None:
        super().__init__(device="cpu")
        self.step_phases: list[tuple[float, float, dict[str, float]]] = []
        self.batch_rows = 2 * ROWS
        self.gathered = 0

    def all_gather_object(self, obj: Any) -> list[Any]:
        json.dumps(obj)  # plain values only
        self.gathered += 1
        peer = json.loads(json.dumps(obj))
        peer |= {"rank": 1, "host": "another machine", "device": "peer"}
        return [obj, peer]

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        begin_s = time.perf_counter()
        time.sleep(0.004)
        self.step_phases = [(begin_s, begin_s + 0.003, {"waiting": 0.002, "communication": 0.001})]
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
    spent = pool.accounts[0].phase_s
    assert spent["waiting"] == pytest.approx(0.012, rel=1e-3)
    assert spent["communication"] == pytest.approx(0.006, rel=1e-3)
    assert spent["compute"] > 0.005  # what a step takes beside
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


def _ddp(rank: int, world_size: int, folder: str, budget_j: float = 1e9) -> dict[str, Any]:
    root = Path(folder)
    shared = steady(time.monotonic, {"board": 10.0})
    own = FakeSource(
        time.monotonic,
        [domain(f"gpu:GPU-{rank}", scope=Scope.GPU)],
        lambda: {f"gpu:GPU-{rank}": 50.0 * own.now_s},
    )
    with meter_of(root, shared, own) as meter:
        energy = EnergyLogger(meter, budget=EnergyBudget(energy_j=budget_j))
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
            "step": trainer.global_step,
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


@pytest.mark.multiproc
def test_budget_stops_all_ranks_of_ddp(pool: Any, tmp_path: Path) -> None:
    elastic = {"TORCHELASTIC_RUN_ID": "energy", "LOCAL_WORLD_SIZE": "2"}
    found = pool.run(_ddp, 2, str(tmp_path), 1e-6, env=elastic)
    # Accounts are taken every 2 steps, and all ranks decide from the same: of 3 steps, 2 are done.
    assert [one["step"] for one in found] == [2, 2]
    kept = torch.load(tmp_path / "energy_budget.ckpt", weights_only=True)
    assert kept["global_step"] == 2


def _edge(rank: int, world_size: int, folder: str, ending: str) -> dict[str, Any]:
    """A pipeline of two boards, one of 10 W and one of 20 W, through every verb of the Trainer."""
    root = Path(folder)
    trees.write(root / f"host{rank}", {"/proc/sys/kernel/random/boot_id": f"board-{rank}"})
    host = HostEnv(sysroot=root / f"host{rank}", environ={})
    source = steady(time.monotonic, {"board": 10.0 * (rank + 1)})
    L.seed_everything(3, verbose=False)
    module = Module({"model": "tiny", "fail_at": (2, 0) if ending == "fails" else None})
    strategy = EdgeCollabStrategy(plan_of((0,), (1,), cuts=("net.blocks.2",), micro_batches=2))
    with EnergyMeter([source], host=host, period_s=0.02) as meter:
        budget = EnergyBudget(energy_j=1e-6) if ending == "budget" else None
        energy = EnergyLogger(meter, budget=budget, every_n_steps=1, report_dir=root)
        trainer = trainer_of(root, energy, strategy=strategy, max_epochs=1)
        train, val = loaders({"model": "tiny", "rows": 20, "batch": 4})
        found: dict[str, Any] = {"error": ""}
        try:
            trainer.fit(module, train, val)
        except (ValueError, PeerError) as error:
            return {"error": str(error)}
        pools = {"train": energy.report("train"), "validate": energy.report("validate")}
        found["step"] = trainer.global_step
        if ending == "ends":
            for verb in VERBS:
                getattr(trainer, verb)(module, val, **({} if verb == "predict" else QUIET))
                pools[f"{verb} alone"] = energy.report(verb)
    trainer.strategy.disconnect()
    found["phases"] = sorted(meter.phases.seconds(0.0, time.monotonic()))
    for name, pool in pools.items():
        assert pool is not None, name
        found[name] = {
            "energy_j": pool.energy_j,
            "truth_j": sum(10.0 * (a.rank + 1) * a.report.duration_s for a in pool.accounts),
            "samples": pool.samples,
            "devices": (pool.devices_measured, len(pool.accounts)),
        }
    return found


@pytest.mark.multiproc
def test_every_verb_of_a_pipeline(pool: Any, tmp_path: Path) -> None:
    first, second = pool.run(_edge, 2, str(tmp_path), "ends")
    stages = {"train": 20, "validate": 10, **{f"{v} alone": 10 for v in VERBS}}
    for name, samples in stages.items():
        assert first[name] == second[name]  # all ranks know the account of all
        assert first[name]["energy_j"] == pytest.approx(first[name]["truth_j"], rel=0.02)
        assert first[name]["samples"] == samples
        assert first[name]["devices"] == (2, 2)
    assert {"compute", "waiting", "evaluation"} <= set(first["phases"])
    for verb in ("", *(f"-{verb}" for verb in VERBS)):
        content = json.loads((tmp_path / f"energy{verb}.json").read_text())
        assert {rank["host"] for rank in content["stages"].popitem()[1]["ranks"]} == {
            "board-0", "board-1",
        }  # fmt: skip
    names = {name for row in logged(tmp_path) for name in row}
    assert {"train/energy_j", "train/joules_per_sample", "validate/energy_j"} <= names
    assert sum(name.endswith("/energy_j") for name in names if "train/device/" in name) == 2


@pytest.mark.multiproc
def test_budget_stops_all_devices_of_a_pipeline(pool: Any, tmp_path: Path) -> None:
    found = pool.run(_edge, 2, str(tmp_path), "budget")
    assert [one["step"] for one in found] == [1, 1]
    kept = torch.load(tmp_path / "energy_budget.ckpt", weights_only=True)
    assert kept["global_step"] == 1
    assert set(kept["state_dict"]) == set(Module({"model": "tiny"}).state_dict())


@pytest.mark.multiproc
def test_a_failed_pipeline_keeps_the_last_account_of_every_device(
    pool: Any, tmp_path: Path
) -> None:
    pool.run(_edge, 2, str(tmp_path), "fails")
    for name, silent in (("energy.json", [1]), ("energy-rank1.json", [0])):
        train = json.loads((tmp_path / name).read_text())["stages"]["train"]
        assert train["silent_ranks"] == silent
        assert len(train["ranks"]) == 2
        assert train["energy_j"] > 0
