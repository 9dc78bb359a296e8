"""What a plan is expected to do: seconds, bytes and joules, as a value to show and to keep."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lightning_edge.plan import chart, traces
from lightning_edge.plan.profile_table import grid

__all__: list[str] = []


class Event(NamedTuple):
    """Something that takes a device or its connection for a while.

    Attributes:
        rank: The device.
        kind: "forward", "backward", "step"; "reduce" (gradients being summed with other holders);
            "send", "receive" (a message on its way, seen from either end).
        micro_batch: Of a forward, backward or message; None for what has none.
        start_s: Since the step's start; likewise `end_s`.
        peer: The other end of a message.
        bytes: Of the message or sum.
    """

    rank: int
    kind: str
    micro_batch: int | None
    start_s: float
    end_s: float
    peer: int | None = None
    bytes: float = 0.0


@dataclass(frozen=True)
class Energy:
    """Joules of one device in one step, by what it does meanwhile."""

    compute_j: float
    communication_j: float
    waiting_j: float

    @property
    def total_j(self) -> float:
        """All of them."""
        return self.compute_j + self.communication_j + self.waiting_j


@dataclass(frozen=True)
class DeviceForecast:
    """One device's part of a step. Seconds add up to the step's.

    Attributes:
        name: Of the device.
        mode: Its power mode.
        stage: Index of its stage.
        compute_s: Forwards, backwards, the optimizer's step.
        communication_s: Packing and unpacking, and sending or receiving while not computing.
        waiting_s: The rest of the step.
        energy: Joules; None if the profile does not know the watts.
        peak_bytes: Needed at the fullest moment.
        memory_bytes: What training may use; None if unknown.
        bytes_sent: By receiving rank; in a sum of gradients to the next device of the ring.
    """

    name: str
    mode: str
    stage: int
    compute_s: float
    communication_s: float
    waiting_s: float
    energy: Energy | None
    peak_bytes: int
    memory_bytes: int | None
    bytes_sent: Mapping[int, float]

    @property
    def energy_j(self) -> float | None:
        """All joules of the step."""
        return None if self.energy is None else self.energy.total_j

    @property
    def fits(self) -> bool:
        """Whether it has the memory, as far as that is known."""
        return self.memory_bytes is None or self.peak_bytes <= self.memory_bytes


@dataclass(frozen=True)
class Prediction:
    """One training step.

    Attributes:
        step_s: From one step to the next while training goes on: the longest time that any device
            needs from its first instruction to its last. The end of a step on one device overlaps
            the beginning of the next on others.
        makespan_s: From the first instruction of all to the last one, when all start together.
        rows: Of the global batch.
        devices: By rank, those that have work.
        timeline: Of a step in which all start together, by rank and time.
    """

    step_s: float
    makespan_s: float
    rows: int
    devices: Mapping[int, DeviceForecast]
    timeline: Sequence[Event]

    @property
    def energy_j(self) -> float | None:
        """Joules of all devices that have work; None if those of some are unknown."""
        total = 0.0
        for device in self.devices.values():
            if device.energy_j is None:
                return None
            total += device.energy_j
        return total

    @property
    def rows_per_s(self) -> float:
        """Rows of the batch per second."""
        return self.rows / self.step_s if self.step_s else float("inf")

    @property
    def fits(self) -> bool:
        """Whether every device has the memory."""
        return all(device.fits for device in self.devices.values())

    def __str__(self) -> str:
        energy = self.energy_j
        head = f"{seconds(self.step_s)} per step of {self.rows} rows ({self.rows_per_s:.4g} rows/s)"
        if energy is not None:
            head += f", {energy:.4g} J ({energy / self.rows:.3g} J per row)"
        titles = ("device", "stage", "compute", "comm.", "waiting", "energy", "memory", "sent")
        return f"{head}\n\n" + grid(titles, [_cells(r, d) for r, d in self.devices.items()], 120)

    def draw(self, width: int = 100) -> str:
        """Return the timeline as text: one line per device, one column per piece of time."""
        return chart.draw(self, width)

    def plot(self, path: str | os.PathLike[str], measured: Sequence[Event] | None = None) -> None:
        """Write the timeline as a picture, predicted above measured; needs matplotlib.

        Args:
            path: File; its ending says which format.
            measured: Events of a real step, with seconds since its start.
        """
        from lightning_edge.plan import picture

        picture.plot(self, path, measured)

    def chrome_trace(self, path: str | os.PathLike[str]) -> None:
        """Write the timeline for chrome://tracing or ui.perfetto.dev."""
        Path(path).write_text(json.dumps(traces.chrome(self)), encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON; without the timeline."""
        return {
            "step_s": self.step_s,
            "makespan_s": self.makespan_s,
            "rows": self.rows,
            "energy_j": self.energy_j,
            "devices": {
                str(rank): {
                    **asdict(device),
                    "energy_j": device.energy_j,
                    "bytes_sent": {str(peer): sent for peer, sent in device.bytes_sent.items()},
                }
                for rank, device in self.devices.items()
            },
        }

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return `to_dict` as JSON text, and write it to `path` if one is given."""
        text = json.dumps(self.to_dict(), indent=1)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text


def seconds(value: float) -> str:
    """Write seconds as one reads them: `1.24 s`, `36.1 ms`."""
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def size(value: float) -> str:
    """Write bytes as one reads them: `1.3 GB`, `36 MB`."""
    if value >= 1e9:
        return f"{value / 1e9:.2f} GB"
    return f"{value / 1e6:.3g} MB" if value >= 1e5 else f"{value / 1e3:.3g} kB"


def _cells(rank: int, device: DeviceForecast) -> list[str]:
    memory = size(device.peak_bytes)
    if device.memory_bytes is not None:
        memory += f" of {size(device.memory_bytes)}" + ("" if device.fits else ": too little")
    energy = device.energy_j
    return [
        f"{rank} {device.name} ({device.mode})",
        str(device.stage),
        *(seconds(s) for s in (device.compute_s, device.communication_s, device.waiting_s)),
        "?" if energy is None else f"{energy:.3g} J",
        memory,
        size(sum(device.bytes_sent.values())),
    ]
