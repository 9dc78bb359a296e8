"""Temperature and charge of this machine: what budgets watch beside joules."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_edge.energy.host import HostEnv
from lightning_edge.energy.sources.battery import battery_pct

__all__ = ["battery_pct", "temperature_c"]

ABSURD_C = (-40.0, 150.0)
"""Offline zones of a Jetson say -256."""


def temperature_c(host: HostEnv, aux: Mapping[str, float]) -> float | None:
    """The hottest thermal zone or GPU in degrees Celsius; None if nothing tells."""
    found = [value for key, value in aux.items() if key.endswith("temp_c")]
    for zone in host.path("/sys/class/thermal").glob("thermal_zone*"):
        try:
            found.append(int((zone / "temp").read_text()) / 1000.0)
        except (OSError, ValueError):
            continue
    return max((t for t in found if ABSURD_C[0] < t < ABSURD_C[1]), default=None)
