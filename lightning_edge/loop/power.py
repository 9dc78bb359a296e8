"""Watts while idle, while the links are measured, and while the model is: from the energy meter.

Where nothing measures, the meter's estimate comes from the table of boards; such watts are priors.
Under the testbed they are what the testbed was told to pretend: declared.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from lightning_edge.energy.domain import Provenance
from lightning_edge.energy.host import HostEnv
from lightning_edge.energy.meter import EnergyMeter
from lightning_edge.energy.power_modes import current_mode
from lightning_edge.energy.report import EnergyReport
from lightning_edge.errors import EnergyError
from lightning_edge.plan.participants import Device, PowerMode

__all__: list[str] = []

IDLE_S = 1.0
_NOT_MEASURED = {Provenance.MODEL: "prior", Provenance.EMULATED: "declared"}


class Watts:
    """Measures this device's power in some stretches of time.

    Args:
        host: The machine.

    Attributes:
        meters: What was read, with its machine; ranks with the same one share its watts.
    """

    def __init__(self, host: HostEnv | None = None) -> None:
        self.host = host or HostEnv()
        self.meters: list[str] = [self.host.boot_id]
        self._found: dict[str, float] = {}
        self._provenance = "measured"
        self._meter: EnergyMeter | None = EnergyMeter(host=self.host)
        try:
            self._meter.start()
        except EnergyError:
            self._meter = None

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """Around a stretch: ``idle_w``, ``compute_w`` or ``communication_w``."""
        if self._meter is None:
            yield
            return
        with self._meter.window(name) as window:
            yield
        self._keep(name, window.report)

    def idle(self, seconds: float = IDLE_S) -> None:
        """Measure while nothing happens."""
        with self.during("idle_w"):
            time.sleep(seconds if self._meter is not None else 0.0)

    def _keep(self, name: str, report: EnergyReport) -> None:
        if not report.energy_j or report.duration_s <= 0 or report.is_lower_bound:
            return
        self._found[name] = report.energy_j / report.duration_s
        self.meters = sorted(f"{self.host.boot_id}:{e.domain.id}" for e in report.counted)
        for kind in report.by_provenance:
            self._provenance = _NOT_MEASURED.get(kind, self._provenance)

    def mode(self, mode: PowerMode, *, ranks_here: int, busy_links: float) -> PowerMode:
        """Return a power mode with what was measured.

        Args:
            mode: The device's current one.
            ranks_here: Ranks that read the same meter; each is given its part.
            busy_links: Part of the time in which this device's links were in use.
        """
        idle_w = self._found.get("idle_w")
        if idle_w is None or "compute_w" not in self._found:
            return mode
        compute_w = max(self._found["compute_w"], idle_w)
        mean_w = self._found.get("communication_w", idle_w)
        communication_w = idle_w + max(mean_w - idle_w, 0.0) / max(busy_links, 1e-3)
        names = ("idle_w", "compute_w", "communication_w")
        return replace(
            mode,
            idle_w=round(idle_w / ranks_here, 4),
            compute_w=round(compute_w / ranks_here, 4),
            communication_w=round(min(communication_w, compute_w) / ranks_here, 4),
            provenance=dict.fromkeys(names, self._provenance) | {"all": "measured"},
        )

    def close(self) -> None:
        """Give the meter back."""
        if self._meter is not None:
            self._meter.close()


def ranks_at(meters: Sequence[str], of_all: Sequence[Sequence[str]]) -> int:
    """Number of ranks, this one included, that read any meter that this one reads.

    Args:
        meters: `Watts.meters` of this rank.
        of_all: Those of all ranks.
    """
    return sum(not set(meters).isdisjoint(others) for others in of_all)


def check_mode(wanted: str | None, name: str, host: HostEnv | None = None) -> None:
    """Warn if this device is not in the power mode that the plan was made for.

    Args:
        wanted: The plan's; None if it says nothing.
        name: The device's.
        host: The machine.
    """
    current = current_mode(host or HostEnv()) or "default"
    if wanted is not None and wanted != current:
        warnings.warn(
            f"{name} is in power mode {current}, and the plan says {wanted}: its time and watts"
            " will differ from what the plan expects. `lightning-edge train device.power_mode=plan`"
            " sets it for the time of a run; so does sudo nvpmodel -m NUMBER before",
            stacklevel=2,
        )


def with_mode(device: Device, mode: PowerMode) -> Device:
    """Return a device whose current power mode has other numbers."""
    modes = tuple(mode if known.name == device.mode else known for known in device.modes)
    return replace(device, modes=modes)
