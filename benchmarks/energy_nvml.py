"""The meter against NVML's own counter on a real GPU: accuracy, overhead, and the doctor's word.

    python -m benchmarks.energy_nvml                # about three minutes on one NVIDIA GPU
    python -m benchmarks.energy_nvml --seconds 10   # a quick look

1. The doctor's findings.
2. A minute of training with Lightning and EnergyLogger. NVML's counter, read directly before the
   first and after the last step, must agree within 1 %.
3. Seconds per step with and without EnergyLogger, in turns; the median of the pairs must not differ
   by more than 0.5 %.
4. Phases: bursts of matrix products and pauses of known length, the division by phase.

Exits with 1 if a limit is missed. Needs no network.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_edge.callbacks.energy_logger import EnergyLogger
from lightning_edge.callbacks.run_account import host_of
from lightning_edge.energy import EnergyMeter, doctor

ACCURACY, OVERHEAD = 0.01, 0.005
WIDTH, DEPTH, ROWS = 4096, 12, 4096


class Training(L.LightningModule):
    """Steps of some 10 ms on a large GPU, none of them bound by the host."""

    def __init__(self) -> None:
        super().__init__()
        layers = [layer for _ in range(DEPTH) for layer in (nn.Linear(WIDTH, WIDTH), nn.GELU())]
        self.net = nn.Sequential(*layers)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = self.net(batch[0]).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


class Counter(L.Callback):
    """NVML's own counter and the time, at the same moments as the account of training."""

    def __init__(self, device: torch.device) -> None:
        import pynvml

        pynvml.nvmlInit()
        uuid = host_of(device).environ["CUDA_VISIBLE_DEVICES"]
        self._nvml, self._handle = pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid)
        self.joules: list[float] = []
        self.times: list[float] = []

    def _read(self) -> None:
        torch.cuda.synchronize()
        self.joules.append(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1e3)
        self.times.append(time.monotonic())

    def on_train_start(self, *_: Any) -> None:
        self._read()

    def on_train_end(self, *_: Any) -> None:
        self._read()


class StopAfter(L.Callback):
    """Ends training after so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._until_s = time.monotonic() + seconds

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.should_stop = time.monotonic() > self._until_s


class StepTimes(L.Callback):
    """Seconds per step over a fit, without the first steps."""

    def __init__(self, steps: int) -> None:
        self._skip, self.seconds, self._begin_s = steps // 5, 0.0, 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self._skip:
            torch.cuda.synchronize()
            self._begin_s = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        torch.cuda.synchronize()
        passed_s = time.perf_counter() - self._begin_s
        self.seconds = passed_s / (trainer.global_step - self._skip)


def fit(callbacks: list[L.Callback], folder: Path, max_steps: int = -1) -> None:
    batches = [[torch.randn(ROWS, WIDTH).pin_memory()] for _ in range(8)]
    loader = DataLoader(batches, batch_size=None)  # type: ignore[arg-type, var-annotated]
    trainer = L.Trainer(
        accelerator="gpu",
        devices=1,
        precision="bf16-mixed",
        max_epochs=-1,
        max_steps=max_steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=50,
        default_root_dir=folder,
        callbacks=callbacks,
    )
    trainer.fit(Training(), loader)


def accuracy(seconds: float, folder: Path) -> bool:
    """Joules of a stretch of training: ours against the counter's."""
    device = torch.device("cuda", 0)
    meter = EnergyMeter("nvml", host=host_of(device))
    with meter:
        energy, counter = EnergyLogger(meter), Counter(device)
        # The counter reads before our window opens and after it closes, or the other way round:
        # either way within a millisecond.
        fit([energy, counter, StopAfter(seconds)], folder)
        feed = meter.feeds[0]
        cost = f"{1e6 * feed.cost_s:.0f} us CPU per reading, every {1e3 * feed.interval_s:.0f} ms"
    pool = energy.report()
    assert pool is not None
    ours_j = pool.energy_j or 0.0
    truth_j = counter.joules[-1] - counter.joules[0]
    error = abs(ours_j / truth_j - 1.0)
    duration_s = counter.times[-1] - counter.times[0]
    print(f"training for {duration_s:.1f} s on {torch.cuda.get_device_name(0)}")
    print(f"NVML's counter {truth_j:.1f} J, EnergyLogger {ours_j:.1f} J: {error:.3%} apart"
          f" (limit {ACCURACY:.0%})")  # fmt: skip
    print(f"stated uncertainty {pool.uncertainty_j or 0.0:.1f} J; {cost}")
    account = pool.accounts[0]
    print(f"phases: {account.phase_j} ({account.phase_note})")
    content = json.loads((folder / "energy.json").read_text())
    print("joules per sample:", content["stages"]["train"]["joules_per_sample"])
    return error <= ACCURACY


def overhead(pairs: int, steps: int, folder: Path) -> bool:
    """Seconds per step with and without EnergyLogger, in turns."""
    ratios = []
    fit([StepTimes(steps)], folder, steps)  # warm-up
    for number in range(pairs):
        found: dict[bool, float] = {}
        for with_energy in (number % 2 == 0, number % 2 == 1):
            times = StepTimes(steps)
            extra: list[L.Callback] = [EnergyLogger(report_dir=False)] if with_energy else []
            fit([times, *extra], folder, steps)
            found[with_energy] = times.seconds
        ratios.append(found[True] / found[False] - 1.0)
        print(f"step {1e3 * found[False]:.3f} ms without, {1e3 * found[True]:.3f} ms with: "
              f"{ratios[-1]:+.2%}")  # fmt: skip
    middle = statistics.median(ratios)
    spread = statistics.quantiles(ratios, n=4)
    print(f"overhead {middle:+.2%} in the median of {pairs} pairs (limit {OVERHEAD:.1%}), "
          f"quartiles {spread[0]:+.2%} to {spread[2]:+.2%}")  # fmt: skip
    return middle <= OVERHEAD


def phases(seconds: float) -> None:
    """Bursts and pauses of 50 to 250 ms: watts of each, as the division by phase sees them."""
    random = torch.Generator().manual_seed(0)
    a = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    with EnergyMeter("nvml", host=host_of(torch.device("cuda", 0))) as meter:
        begin_s = meter.read()
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            with meter.phase("compute"):
                end_s = time.monotonic() + 0.05 + 0.2 * float(torch.rand(1, generator=random))
                while time.monotonic() < end_s:
                    a @ a
                    torch.cuda.synchronize()
            with meter.phase("waiting"):
                time.sleep(0.05 + 0.2 * float(torch.rand(1, generator=random)))
        report = meter.attribute(begin_s, meter.read())
    print(f"bursts and pauses: {report.power_w} W; {report.reason}; late by {report.lag_s}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=600)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here", file=sys.stderr)
        return 2
    host = host_of(torch.device("cuda", 0))
    print("## doctor\n")
    print(doctor.text(doctor.examine(host, "auto", 2.0), 110))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("## accuracy\n")
        accurate = accuracy(arguments.seconds, folder)
        print("\n## overhead\n")
        light = overhead(arguments.pairs, arguments.steps, folder)
    print("\n## phases\n")
    phases(max(arguments.seconds / 3, 10.0))
    print("\nall limits held" if accurate and light else "\nA LIMIT WAS MISSED")
    return 0 if accurate and light else 1


if __name__ == "__main__":
    sys.exit(main())
