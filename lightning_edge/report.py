"""What was decided and measured, per device: a table to read and a mapping to store."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table

from lightning_edge.comparison import Line, compare, plain, shown
from lightning_edge.train.executor import StepTimes
from lightning_edge.train.job import Batch

__all__ = ["DeviceReport", "Report"]


@dataclass
class Measured:
    """Sums over the training batches of one device; seconds."""

    batches: int = 0
    rows: int = 0
    compute_s: float = 0.0
    wait_s: float = 0.0
    communication_s: float = 0.0
    total_s: float = 0.0

    def add(self, times: StepTimes, batch: Batch) -> None:
        """Count one batch."""
        self.batches += 1
        self.rows += batch.own
        self.compute_s += times.compute_s
        self.wait_s += times.wait_s
        self.communication_s += times.communication_s
        self.total_s += times.total_s


def peak_memory_bytes() -> int:
    """The most memory this process has had in RAM (`ru_maxrss`: KiB on Linux, bytes on macOS)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True)
class DeviceReport:
    """One device's part.

    Attributes:
        rank: Its rank.
        name: Its name.
        stage: Index of its stage, None for a device without work.
        start: The module its stage begins with.
        parameters: Parameter entries it holds.
        share: Of its stage's rows.
        measured: Sums over training batches.
        sent_bytes: Of messages, by receiving rank.
        reduced_bytes: Of gradients that were summed with other holders.
        peak_memory_bytes: Of its process.
        step_s: Median seconds from one training step to the next; None if there were too few.
        training_bytes: The most memory that training itself took; None if unknown.
        energy_j: Joules of training by an `EnergyLogger`; None without.
    """

    rank: int
    name: str
    stage: int | None
    start: str | None
    parameters: int
    share: float
    measured: Measured
    sent_bytes: Mapping[int, int] = field(default_factory=dict)
    reduced_bytes: int = 0
    peak_memory_bytes: int = 0
    step_s: float | None = None
    training_bytes: int | None = None
    energy_j: float | None = None

    def per_step(self) -> dict[str, Any]:
        """What it did in a mean step, in the terms of a prediction."""
        n = max(self.measured.batches, 1)
        # Between two steps of the executor lie the optimizer and the loop: computing, too.
        between_s = max((self.step_s or 0.0) - self.measured.total_s / n, 0.0)
        sent = sum(self.sent_bytes.values()) + self.reduced_bytes
        return {
            "rank": self.rank,
            "name": self.name,
            "compute_s": self.measured.compute_s / n + between_s,
            "communication_s": self.measured.communication_s / n,
            "waiting_s": self.measured.wait_s / n,
            "sent_bytes": sent / n,
            "peak_bytes": self.training_bytes,
            "energy_j": None if self.energy_j is None else self.energy_j / n,
        }


@dataclass(frozen=True)
class Report:
    """What was decided, predicted and measured.

    Attributes:
        devices: All devices' parts, in the order of ranks.
        predicted: The prediction of a step as a mapping; None if nothing was profiled.
    """

    devices: Sequence[DeviceReport]
    predicted: Mapping[str, Any] | None = None

    @property
    def step_s(self) -> float | None:
        """Median seconds of a training step, of the device that waits least for the others."""
        found = [device.step_s for device in self.devices if device.step_s is not None]
        return max(found) if found else None

    def compared(self) -> list[Line]:
        """A step predicted and measured, number by number; empty without a prediction."""
        if self.predicted is None:
            return []
        working = [device.per_step() for device in self.devices if device.stage is not None]
        return compare(self.predicted, self.step_s, working)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {
            "step_s": self.step_s,
            "devices": [asdict(device) for device in self.devices],
            "predicted": None if self.predicted is None else dict(self.predicted),
            "compared": plain(self.compared()),
        }

    @staticmethod
    def from_parts(
        parts: Sequence[Mapping[str, Any]], predicted: Mapping[str, Any] | None = None
    ) -> Report:
        """Put the devices' parts, as `to_dict` gives them, into one report."""
        devices = [
            DeviceReport(**{**part, "measured": Measured(**part["measured"])}) for part in parts
        ]
        return Report(devices, predicted)

    def __str__(self) -> str:
        table = Table(title="What each device did", title_justify="left")
        table.add_column("device", no_wrap=True)
        for name in (
            "stage",
            "begins at",
            "parameters",
            "rows",
            "compute",
            "wait",
            "comm.",
            "sent",
            "summed",
            "peak memory",
        ):
            table.add_column(name, justify="left" if name == "begins at" else "right")
        for device in self.devices:
            measured = device.measured
            table.add_row(
                f"{device.rank} {device.name}",
                "-" if device.stage is None else str(device.stage),
                device.start or ("the step" if device.stage == 0 else "-"),
                f"{device.parameters / 1e6:.2f} M",
                f"{measured.rows} ({device.share:.0%})",
                f"{measured.compute_s:.1f} s",
                f"{measured.wait_s:.1f} s",
                f"{measured.communication_s:.1f} s",
                f"{sum(device.sent_bytes.values()) / 1e6:.1f} MB",
                f"{device.reduced_bytes / 1e6:.1f} MB",
                f"{device.peak_memory_bytes / 1e6:.0f} MB",
            )
        out = StringIO()
        Console(file=out, width=120).print(table)
        lines = self.compared()
        return out.getvalue() + (f"\n{shown(lines)}" if lines else "")
