"""The source of last resort: idle power plus a part that grows with utilisation.

An estimate, never a measurement.

::

    P = P_idle + (P_full - P_idle) x u^a     u: share of busy CPU time, or of GPU time if greater

With a = 1 by default. `fit_power_model` finds the three numbers from readings of a wall meter.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import psutil
from scipy.optimize import least_squares

from lightning_edge.boards import find_model
from lightning_edge.energy.domain import Domain, Provenance, Reading, Scope
from lightning_edge.energy.host import HostEnv
from lightning_edge.energy.power_modes import current_mode
from lightning_edge.energy.source import SourceError, Unavailable
from lightning_edge.energy.sources.boards import IDLE_SHARE, WATTS_PER_THREAD
from lightning_edge.errors import EnergyError

EXPONENTS = (0.7, 3.0)
"""Range of the exponent in published fits."""


@dataclass(frozen=True)
class PowerModel:
    """Power by utilisation.

    Args:
        idle_w: Watts at rest.
        full_w: Watts under full load.
        exponent: How the power between them grows.
        rel_uncertainty: Relative standard uncertainty of its joules.
        whole_platform: Whether the watts are of the whole machine, not of its processor alone.
        origin: Where the numbers come from.
    """

    idle_w: float
    full_w: float
    exponent: float = 1.0
    rel_uncertainty: float = 0.4
    whole_platform: bool = True
    origin: str = "given"

    def __post_init__(self) -> None:
        if not 0 <= self.idle_w <= self.full_w:
            raise EnergyError(
                f"a power model needs 0 <= idle_w <= full_w, not {self.idle_w} and {self.full_w}"
            )
        if not EXPONENTS[0] <= self.exponent <= EXPONENTS[1]:
            raise EnergyError(
                f"exponent={self.exponent} is outside {EXPONENTS[0]} to {EXPONENTS[1]}"
            )

    def power_w(self, utilisation: float) -> float:
        """Watts at a utilisation from 0 to 1."""
        busy = min(max(utilisation, 0.0), 1.0)
        return self.idle_w + (self.full_w - self.idle_w) * float(busy**self.exponent)


def fit_power_model(points: Sequence[tuple[float, float]]) -> PowerModel:
    """Fit a model to ``(utilisation 0..1, watts)`` read off a meter.

    Raises:
        EnergyError: With fewer than three points, or all at one utilisation.
    """
    if len(points) < 3 or np.ptp([u for u, _ in points]) < 0.2:
        raise EnergyError(
            f"{len(points)} calibration points do not fix three numbers; "
            "measure at rest, at about half and at full load"
        )
    u = np.clip(np.array([point[0] for point in points], dtype=float), 0.0, 1.0)
    watts = np.array([point[1] for point in points], dtype=float)
    start = (watts.min(), max(np.ptp(watts), 1e-3), 1.0)
    bounds = ((0.0, 0.0, EXPONENTS[0]), (np.inf, np.inf, EXPONENTS[1]))
    fit = least_squares(lambda x: x[0] + x[1] * u ** x[2] - watts, start, bounds=bounds)
    idle_w, dynamic_w, exponent = (float(value) for value in fit.x)
    spread = float(np.sqrt(np.mean(fit.fun**2)) / watts.mean())
    origin = f"fitted to {len(points)} points"
    # A fit is as good as its own scatter, but no better than a wall meter and another load make it.
    return PowerModel(idle_w, idle_w + dynamic_w, exponent, max(spread, 0.15), origin=origin)


def default_model(host: HostEnv) -> PowerModel:
    """The model from the table of boards, else from the processor's own power limit.

    Else by a rule of thumb.
    """
    board = find_model(host.board, current_mode(host)) or find_model(host.board)
    if board is not None:
        mode = f" in {board.mode}" if board.mode else ""
        origin = f"{board.model}{mode}, {board.quality}: {board.source}"
        return PowerModel(board.idle_w, board.busy_w, origin=origin)
    limit_w = _power_limit_w(host)
    if limit_w:
        origin = f"the processor's own power limit of {limit_w:.0f} W"
        return PowerModel(IDLE_SHARE * limit_w, limit_w, whole_platform=False, origin=origin)
    threads = os.cpu_count() or 1
    full_w = WATTS_PER_THREAD * threads
    origin = f"a guess: {WATTS_PER_THREAD:.0f} W for each of {threads} threads"
    return PowerModel(
        IDLE_SHARE * full_w, full_w, rel_uncertainty=0.6, whole_platform=False, origin=origin
    )


class ModelSource:
    """Estimates joules from utilisation.

    Args:
        host: The machine.
        model: Its power model.
    """

    kind: ClassVar[str] = "model"

    def __init__(self, host: HostEnv, model: PowerModel) -> None:
        self._host, self.model = host, model
        self._gpu_load = _find_gpu_load(host)
        self._energy_j, self._share = 0.0, 0.0
        self._last = (host.clock(), *_cpu_seconds(host))
        self._id = "model:platform" if model.whole_platform else "model:cpu"
        scope = Scope.PLATFORM if model.whole_platform else Scope.PACKAGE
        part = "whole device" if model.whole_platform else "processor alone"
        self.domains: Sequence[Domain] = (
            Domain(
                self._id,
                f"{part}, estimate from {model.origin}",
                scope,
                Provenance.MODEL,
                "model",
                update_period_s=0.1,
                rel_uncertainty=model.rel_uncertainty,
            ),
        )

    @classmethod
    def probe(cls, host: HostEnv, model: PowerModel | None = None) -> ModelSource:
        """Read the utilisation once."""
        try:
            return cls(host, model or default_model(host))
        except SourceError as error:
            raise Unavailable(str(error)) from None

    def read(self) -> Reading:
        """Joules since the probe.

        The model's power at the mean utilisation since the last reading.
        """
        now_s = self._host.clock()
        busy_s, total_s = _cpu_seconds(self._host)
        last_s, last_busy_s, last_total_s = self._last
        passed_s = now_s - last_s
        # The kernel counts in ticks of 10 ms: over less than a few of them a share means nothing.
        if total_s - last_total_s < 0.02 * (os.cpu_count() or 1) and passed_s < 1.0:
            share = self._share
        else:
            grown_s = total_s - last_total_s
            share = (busy_s - last_busy_s) / grown_s if grown_s > 0 else 0.0
            self._share = share
        utilisation = max(share, _read_load(self._gpu_load))
        self._energy_j += self.model.power_w(utilisation) * max(passed_s, 0.0)
        self._last = (now_s, busy_s, total_s)
        return Reading(now_s, energy_j={self._id: self._energy_j}, aux={"utilisation": utilisation})

    def close(self) -> None:
        """Nothing is held open."""


def _cpu_seconds(host: HostEnv) -> tuple[float, float]:
    """Busy and total CPU seconds since boot, over all cores."""
    line: list[str] = []
    with suppress(OSError), host.path("/proc/stat").open() as file:
        line = file.readline().split()  # the first line is the sum; others are many on many cores
    if line[:1] == ["cpu"] and len(line) >= 5:
        ticks = [int(value) for value in line[1:9]]
        idle = ticks[3] + (ticks[4] if len(ticks) > 4 else 0)
        return (sum(ticks) - idle) / 100.0, sum(ticks) / 100.0
    if host.sysroot.as_posix() != "/":
        raise SourceError("there is no /proc/stat to take the utilisation from")
    times = psutil.cpu_times()
    idle_s = times.idle + getattr(times, "iowait", 0.0)
    return sum(times) - idle_s, sum(times)


def _find_gpu_load(host: HostEnv) -> Path | None:
    """The file with the load of a Jetson's GPU; None on other machines."""
    files = [
        host.path("/sys/devices/gpu.0/load"),
        host.path("/sys/devices/platform/gpu.0/load"),
        *(f / "device" / "load" for f in host.path("/sys/class/devfreq").glob("*.g*")),
    ]
    return next((file for file in files if file.exists()), None)


def _read_load(file: Path | None) -> float:
    """Load from 0 to 1; 0 where nothing tells it."""
    try:
        return 0.0 if file is None else int(file.read_text()) / 1000.0
    except (OSError, ValueError):
        return 0.0


def _power_limit_w(host: HostEnv) -> float | None:
    """Sum of the long-term limits of all packages, which anyone may read."""
    limits = []
    for zone in host.path("/sys/class/powercap").glob("intel-rapl:?"):
        try:
            if (zone / "name").read_text().startswith("package"):
                limits.append(int((zone / "constraint_0_power_limit_uw").read_text()) / 1e6)
        except (OSError, ValueError):
            continue
    return sum(limits) or None
