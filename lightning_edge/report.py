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


@dataclass(frozen=True)
class Report:
    """All devices' parts, in the order of ranks."""

    devices: Sequence[DeviceReport]

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {"devices": [asdict(device) for device in self.devices]}

    @staticmethod
    def from_parts(parts: Sequence[Mapping[str, Any]]) -> Report:
        """The inverse of `to_dict` for a list of devices."""
        return Report(
            [DeviceReport(**{**part, "measured": Measured(**part["measured"])}) for part in parts]
        )

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
        return out.getvalue()
