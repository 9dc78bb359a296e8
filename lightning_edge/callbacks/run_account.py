"""The energy account of a run on this rank, and what all ranks make of theirs together."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer

from lightning_edge.callbacks.stage_account import StageAccount
from lightning_edge.energy.budget import carbon_g
from lightning_edge.energy.export import per
from lightning_edge.energy.host import HostEnv
from lightning_edge.energy.meter import EnergyMeter
from lightning_edge.energy.pool import Gather, Ledger, PoolReport, RankAccount, alone
from lightning_edge.energy.telemetry import battery_pct, temperature_c

__all__: list[str] = []

DEVICE_NAME = "LIGHTNING_EDGE_DEVICE"
PHASES_EVERY_S = 60.0
"""The division by phase takes some 0.1 s of CPU time: once a minute is cheap enough."""


def host_of(device: torch.device) -> HostEnv:
    """This machine as one rank uses it: of several GPUs, only the rank's own counts."""
    environ = dict(os.environ)
    if device.type == "cuda":
        uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
        if uuid is not None:
            environ["CUDA_VISIBLE_DEVICES"] = f"GPU-{uuid}".replace("GPU-GPU-", "GPU-")
    else:
        environ["CUDA_VISIBLE_DEVICES"] = ""
    return HostEnv(environ=environ)


def gather_of(trainer: Trainer) -> Gather:
    """How ranks hand in their accounts under this Trainer's strategy."""
    own = getattr(trainer.strategy, "all_gather_object", None)
    if own is not None:
        return own  # type: ignore[no-any-return]
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return alone

    def gather(obj: Any) -> list[Any]:
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, obj)
        return found

    return gather


def passes_of(trainer: Trainer) -> int:
    """Through how many ranks each sample goes: the stages of a plan, else one."""
    return len(getattr(getattr(trainer.strategy, "plan", None), "stages", ())) or 1


class RunAccount:
    """Accounts per stage, and the newest of every rank.

    Args:
        meter: The running meter.
        rank: This rank.
        earlier: State of the runs that this one continues, by stage.
        passes: Number of ranks that each sample passes.
    """

    def __init__(
        self, meter: EnergyMeter, rank: int, earlier: Mapping[str, Any], passes: int = 1
    ) -> None:
        self.meter, self.rank, self.passes = meter, rank, passes
        self.stages: dict[str, StageAccount] = {}
        self.begin_s = meter.read()
        self._ledgers: dict[str, Ledger] = {}
        self._logged: dict[tuple[str, int], tuple[float, float]] = {}
        self._phases_s = self.begin_s
        for name, state in earlier.items():
            self.ledger(name).load_state_dict(state)

    def ledger(self, stage: str) -> Ledger:
        """The accounts of all ranks in a stage."""
        return self._ledgers.setdefault(stage, Ledger())

    def open(self, stage: str) -> None:
        """Begin or go on with a stage."""
        self.stages.setdefault(stage, StageAccount(self.meter, stage)).open()

    def close(self, stage: str) -> None:
        """Pause a stage."""
        if stage in self.stages:
            self.stages[stage].close()

    def mark_step(self, strategy: Any) -> None:
        """Mark how a strategy spent its last batch, if it tells (see `PhaseMarks.insert`)."""
        stretches = getattr(strategy, "step_phases", ())
        shift_s = self.meter.host.clock() - time.perf_counter()
        for start_s, stop_s, seconds in stretches:
            self.meter.phases.insert(start_s + shift_s, stop_s + shift_s, seconds)

    def collect(self, stage: str, gather: Gather, *, final: bool = False) -> PoolReport:
        """Hand in this rank's account and take those of all; `final` adds phases and curves."""
        return self.ledger(stage).update(gather(self._account(stage, final=final).to_mapping()))

    def collect_alone(self, stage: str) -> PoolReport:
        """Renew this rank's account only: the others' are the last that they handed in."""
        return self.ledger(stage).update([self._account(stage, final=True).to_mapping()])

    def phases_due(self) -> bool:
        """Whether it is time to divide by phase again."""
        return self.meter.host.clock() - self._phases_s > PHASES_EVERY_S

    def _account(self, stage: str, *, final: bool = False) -> RankAccount:
        account, host = self.stages[stage], self.meter.host
        report = account.report
        spent: dict[str, Any] = {}
        if final:
            stop_s = self._phases_s = self.meter.read()
            table = self.meter.phases.table()
            spent = {
                "power_series": self.meter.power_series(self.begin_s, stop_s),
                "phase_series": table.series(self.begin_s, stop_s),
            }
            if stage == "train":
                phases = self.meter.attribute(self.begin_s, stop_s)
                # Powers from all readings there are, joules of training alone.
                seconds = spent["phase_s"] = account.phase_seconds(stop_s)
                spent["phase_j"] = phases.part(seconds, report.energy_j or 0.0)
                spent["phase_note"] = phases.reason
        return RankAccount(
            rank=self.rank,
            device=os.environ.get(DEVICE_NAME) or platform.node() or "device",
            host=host.boot_id,
            report=report,
            samples=float(account.samples),
            tokens=account.tokens,
            whole_samples=account.whole_samples,
            passes=self.passes,
            battery_pct=battery_pct(host),
            temperature_c=temperature_c(host, self.meter.aux),
            **spent,
        )

    def metrics(
        self, stage: str, pool: PoolReport, carbon_g_per_kwh: float | None
    ) -> dict[str, float]:
        """What is logged; unknown values are left out. Powers are means since the last call."""
        found: dict[str, float | None] = {
            "energy_j": pool.energy_j,
            "energy_measured_fraction": pool.measured_fraction,
            "joules_per_sample": per(pool.energy_j, pool.samples),
            "joules_per_token": per(pool.energy_j, pool.tokens),
        }
        if carbon_g_per_kwh is not None and pool.energy_j is not None:
            found["carbon_g"] = carbon_g(pool.energy_j, carbon_g_per_kwh)
        charges = [a.battery_pct for a in pool.accounts if a.battery_pct is not None]
        heats = [a.temperature_c for a in pool.accounts if a.temperature_c is not None]
        found["battery_pct"] = min(charges, default=None)
        found["temperature_c"] = max(heats, default=None)
        powers_w = []
        for rank, name in pool.device_names().items():
            energy_j = pool.device_energy_j(rank)
            if energy_j is None:
                continue
            duration_s = next(a.report.duration_s for a in pool.accounts if a.rank == rank)
            before_j, before_s = self._logged.get((stage, rank), (0.0, 0.0))
            self._logged[(stage, rank)] = (energy_j, duration_s)
            found[f"device/{name}/energy_j"] = energy_j
            if duration_s > before_s:
                power_w = max(energy_j - before_j, 0.0) / (duration_s - before_s)
                found[f"device/{name}/power_w"] = power_w
                powers_w.append(power_w)
        found["power_w"] = sum(powers_w) if powers_w else None
        for phase, joules in (pool.phase_j() or {}).items():
            found[f"phase/{phase}_j"] = joules
        return {f"{stage}/{name}": value for name, value in found.items() if value is not None}

    def state_dict(self) -> dict[str, Any]:
        """The newest accounts of all ranks, so that any number of ranks can continue them."""
        for stage in self.stages:
            known = {a.rank: a for a in self.ledger(stage).pool().accounts}
            known[self.rank] = self._account(stage)
            self.ledger(stage).update([account.to_mapping() for account in known.values()])
        return {stage: ledger.state_dict() for stage, ledger in self._ledgers.items()}
