"""EnergyLogger: joules of every stage of a run, on every device, in the logger, a table, files."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override

from lightning_edge.callbacks.batch_size import batch_samples, batch_tokens
from lightning_edge.callbacks.run_account import RunAccount, gather_of, host_of, passes_of
from lightning_edge.energy.budget import EnergyBudget
from lightning_edge.energy.export import write_csv, write_json
from lightning_edge.energy.forecast import forecast
from lightning_edge.energy.meter import EnergyMeter
from lightning_edge.energy.picture import save
from lightning_edge.energy.pool import PoolReport
from lightning_edge.energy.table import summary
from lightning_edge.errors import EnergyError

log = logging.getLogger(__name__)


class EnergyLogger(Callback):
    """Logs the energy of training, validation, testing and prediction, and reports it at the end.

    Every number says whether it was measured or estimated; what was not measured is left out, never
    0. Metrics are named as in Lightning's ThroughputMonitor: ``train/energy_j``, ``train/power_w``,
    ``train/joules_per_sample``, ``train/joules_per_token``, ``train/energy_measured_fraction``,
    ``train/device/<name>/energy_j`` and ``power_w``, ``train/phase/<phase>_j``,
    ``train/battery_pct``, ``train/temperature_c``, ``train/carbon_g``; likewise for the other
    stages. Works on one device, under DDP and under ``edge_collab``, with or without a logger.

    Args:
        meter: A meter of your own, such as ``EnergyMeter(["rapl", "nvml"], strict=True)``; by
            default one that finds the best sources itself.
        every_n_steps: Optimizer steps between two accounts; the Trainer's ``log_every_n_steps`` by
            default. All devices take part in each.
        samples_fn: Number of samples in a batch; by default the first dimension of its first
            tensor.
        tokens_fn: Number of tokens in a batch; by default the sum of its ``attention_mask`` or the
            size of its ``input_ids``, if it has them.
        carbon_g_per_kwh: Your grid's intensity in grams of CO2 equivalent per kWh, for carbon.
        budget: Limits at which training writes a checkpoint and stops.
        prog_bar: Show joules per sample and watts in the progress bar.
        report_dir: Where ``energy.json``, ``energy.csv`` and ``energy.png`` go; by default the
            logger's directory, else the Trainer's ``default_root_dir``. False writes none.
        idle_baseline_s: Seconds to measure the idle power before training starts, which steadies
            the division by phase.

    Example::

        trainer = L.Trainer(callbacks=[EnergyLogger(budget=EnergyBudget(energy_j=5e5))])
    """

    def __init__(
        self,
        meter: EnergyMeter | None = None,
        *,
        every_n_steps: int | None = None,
        samples_fn: Callable[[Any], int] | None = None,
        tokens_fn: Callable[[Any], Any] | None = None,
        carbon_g_per_kwh: float | None = None,
        budget: EnergyBudget | None = None,
        prog_bar: bool = False,
        report_dir: str | os.PathLike[str] | bool | None = None,
        idle_baseline_s: float = 0.0,
    ) -> None:
        super().__init__()
        self.meter = meter
        self._own_meter = meter is None
        self._every_n_steps = every_n_steps
        self._samples_fn = samples_fn or batch_samples
        self._tokens_fn = tokens_fn or batch_tokens
        self._carbon_g_per_kwh = carbon_g_per_kwh
        self._budget, self._prog_bar, self._report_dir = budget, prog_bar, report_dir
        self._idle_baseline_s = idle_baseline_s
        self._run: RunAccount | None = None
        self._earlier: Mapping[str, Any] = {}
        self._directory: Path | None = None
        self._last_step = -1
        self._forecast_made = self._stopping = False
        if budget is not None and budget.carbon_g is not None and carbon_g_per_kwh is None:
            rank_zero_warn("EnergyBudget(carbon_g=...) needs EnergyLogger(carbon_g_per_kwh=...)")

    # -- what users may ask ------------------------------------------------------------------

    def report(self, stage: str = "train") -> PoolReport | None:
        """The newest account of a stage over all devices; None before the first."""
        if self._run is None or stage not in self._run.stages:
            return None
        return self._run.ledger(stage).pool()

    def owned_energy_j(self) -> float | None:
        """Cumulative joules of this rank in training, without what another rank counts."""
        if self._run is None or "train" not in self._run.stages:
            return None
        report = self._run.stages["train"].report
        owned = self._run.ledger("train").pool().owned
        if len(owned) < 2:
            return report.energy_j
        mine = [e.counted_j for e in report.counted if e.domain.id in owned[self._run.rank]]
        known = [joules for joules in mine if joules is not None]
        return sum(known) if known else None

    # -- set-up and end ----------------------------------------------------------------------

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.meter is None:
            self.meter = EnergyMeter(host=host_of(trainer.strategy.root_device))
        if not self.meter.running:
            self.meter.start()
            for choice in self.meter.choices:
                log.info("Energy source %s: %s. %s", choice.kind, choice.reason, choice.remedy)
            if self._idle_baseline_s > 0:
                self.meter.idle_baseline(self._idle_baseline_s)
        self._run = RunAccount(self.meter, trainer.global_rank, self._earlier)
        self._last_step = trainer.global_step
        self._directory = None
        self._forecast_made = self._stopping = False

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.meter is not None and self._own_meter:
            self.meter.close()
            self.meter = None

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Report what is known without asking other ranks, who may be gone."""
        if self._run is None or self.meter is None or not self.meter.running:
            return
        for stage in self._run.stages:
            self._run.close(stage)
            self._run.collect_alone(stage)
        if self._run.stages:
            self._publish(trainer, all_ranks=True)

    @override
    def state_dict(self) -> dict[str, Any]:
        running = self._run is not None and self.meter is not None and self.meter.running
        stages = self._run.state_dict() if running and self._run is not None else self._earlier
        return {"version": 1, "stages": dict(stages)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._earlier = state_dict["stages"]
        if self._run is not None:
            for stage, state in self._earlier.items():
                self._run.ledger(stage).load_state_dict(state)

    # -- training --------------------------------------------------------------------------

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open(trainer, "train", "data")

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._account.meter.phases.enter("compute")

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._account.mark_step(trainer.strategy)
        self._account.meter.phases.enter("data")
        self._count(trainer, "train", batch)
        step = trainer.global_step
        every = self._every_n_steps or getattr(trainer, "log_every_n_steps", 0) or 50
        if step == self._last_step or step % every:
            return
        self._last_step = step
        pool = self._collect(trainer, "train")
        metrics = self._log(trainer, "train", pool)
        if self._prog_bar:
            names = ("train/joules_per_sample", "train/power_w")
            shown = {name: metrics[name] for name in names if name in metrics}
            pl_module.log_dict(shown, prog_bar=True, logger=False)
        self._watch_budget(trainer, pool)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pool = self._collect(trainer, "train", final=self._account.phases_due())
        self._log(trainer, "train", pool)
        self._watch_budget(trainer, pool)
        if not self._forecast_made and not trainer.should_stop:
            self._forecast_made = True
            self._tell_forecast(trainer, pool)

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self.meter is not None and self.meter.running and trainer.training:
            self.meter.phases.enter("checkpoint")  # until the next batch or stage begins

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer, "train")

    # -- evaluation and prediction -----------------------------------------------------------

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        if trainer.state.fn == TrainerFn.FITTING:
            self._account.close("train")
        self._open(trainer, "validate", "evaluation")

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.sanity_checking:
            self._count(trainer, "validate", batch)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        if trainer.state.fn != TrainerFn.FITTING:
            self._finish(trainer, "validate")
            return
        self._log(trainer, "validate", self._collect(trainer, "validate"))
        self._account.close("validate")
        self._open(trainer, "train", "data")

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open(trainer, "test", "evaluation")

    @override
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._count(trainer, "test", batch)

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer, "test")

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open(trainer, "predict", "compute")

    @override
    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._count(trainer, "predict", batch)

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer, "predict")

    # -- the work ----------------------------------------------------------------------------

    @property
    def _account(self) -> RunAccount:
        if self._run is None:
            raise EnergyError("EnergyLogger was not set up; hand it to Trainer(callbacks=[...])")
        return self._run

    def _open(self, trainer: Trainer, stage: str, phase: str) -> None:
        if self._directory is None and self._report_dir is not False:
            # log_dir is agreed upon by all ranks: asked for here, where all of them are.
            chosen = trainer.log_dir if self._report_dir in (None, True) else self._report_dir
            self._directory = Path(str(chosen or trainer.default_root_dir))
        _wait_for_gpu(trainer)
        self._account.passes = passes_of(trainer)  # a plan may be made only after setup
        self._account.meter.phases.enter(phase)
        self._account.open(stage)

    def _count(self, trainer: Trainer, stage: str, batch: Any) -> None:
        whole = getattr(trainer.strategy, "batch_rows", None)
        self._account.stages[stage].count(self._samples_fn(batch), whole, self._tokens_fn(batch))

    def _collect(self, trainer: Trainer, stage: str, *, final: bool = False) -> PoolReport:
        _wait_for_gpu(trainer)
        return self._account.collect(stage, gather_of(trainer), final=final)

    def _log(self, trainer: Trainer, stage: str, pool: PoolReport) -> dict[str, float]:
        metrics = self._account.metrics(stage, pool, self._carbon_g_per_kwh)
        _log_metrics(trainer, metrics)
        return metrics

    def _finish(self, trainer: Trainer, stage: str) -> None:
        """The last account of a stage: logged, printed, written."""
        self._log(trainer, stage, self._collect(trainer, stage, final=True))
        self._account.close(stage)
        self._account.meter.phases.enter("other")
        self._publish(trainer)

    def _publish(self, trainer: Trainer, *, all_ranks: bool = False) -> None:
        """Print and write the accounts; after a failure each rank writes what it knows."""
        run = self._account
        stages = {stage: run.ledger(stage).pool() for stage in run.stages}
        if trainer.is_global_zero:
            columns = min(shutil.get_terminal_size((100, 24)).columns, 100)
            text = summary(stages, carbon_g_per_kwh=self._carbon_g_per_kwh, width=columns)
            rank_zero_info("%s", text)
        if self._directory is None or getattr(trainer, "fast_dev_run", False):
            return
        if trainer.is_global_zero or all_ranks:
            fn = trainer.state.fn
            name = "energy" if fn in (None, TrainerFn.FITTING) else f"energy-{fn.value}"
            name += "" if trainer.is_global_zero else f"-rank{run.rank}"
            extra = {"carbon_g_per_kwh": self._carbon_g_per_kwh, "step": trainer.global_step}
            write_json(self._directory / f"{name}.json", stages, extra)
            write_csv(self._directory / f"{name}.csv", stages)
            first = stages.get("train") or [*stages.values()][0]
            validation = stages.get("validate") if "train" in stages else None
            save(self._directory / f"{name}.png", first, validation)

    def _tell_forecast(self, trainer: Trainer, pool: PoolReport) -> None:
        """After the first epoch: what the whole run will take, its evaluations included."""
        if trainer.global_step >= trainer.estimated_stepping_batches:
            return
        evaluation = self.report("validate")
        pools = [pool] if evaluation is None else [pool, evaluation]
        spent_j = sum(p.energy_j or 0.0 for p in pools)
        expected = forecast(
            spent_j,
            sum(p.uncertainty_j or 0.0 for p in pools),
            self._account.meter.host.clock() - self._account.begin_s,
            trainer.global_step,
            float(trainer.estimated_stepping_batches),
            carbon_g_per_kwh=self._carbon_g_per_kwh,
            budget_j=self._budget.energy_j if self._budget is not None else None,
        )
        if expected is not None:
            rank_zero_info("Energy forecast for the whole run: %s", expected)
            _log_metrics(trainer, {"train/energy_forecast_j": expected.energy_j})

    def _watch_budget(self, trainer: Trainer, pool: PoolReport) -> None:
        """Stop gracefully at a limit.

        All ranks decide from the same accounts, so all decide alike.
        """
        if self._budget is None or self._stopping:
            return
        reason = self._budget.exceeded(pool, self._carbon_g_per_kwh)
        if reason is None:
            return
        self._stopping = True
        path = (self._directory or Path(trainer.default_root_dir)) / "energy_budget.ckpt"
        rank_zero_warn(f"Training stops: {reason}. Continue from {path} with a greater budget.")
        trainer.save_checkpoint(path)
        trainer.should_stop = True


def _wait_for_gpu(trainer: Trainer) -> None:
    """Kernels still in flight belong to the account that is about to be taken."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _log_metrics(trainer: Trainer, metrics: Mapping[str, float]) -> None:
    """To all loggers, at the step of everything else that is logged, as ThroughputMonitor does."""
    log_metrics: Callable[[dict[str, float]], None] = trainer._logger_connector.log_metrics  # type: ignore[assignment]
    log_metrics(dict(metrics))
