"""Limits on what a run may spend, and what is left of them."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_edge.energy.pool import PoolReport
from lightning_edge.errors import EnergyError

JOULES_PER_KWH = 3.6e6


def carbon_g(energy_j: float, g_per_kwh: float) -> float:
    """Grams of CO2 equivalent of `energy_j` joules at a grid intensity in g/kWh."""
    return energy_j / JOULES_PER_KWH * g_per_kwh


@dataclass(frozen=True)
class EnergyBudget:
    """Limits after which training stops gracefully.

    Args:
        energy_j: Joules of all devices together.
        carbon_g: Grams of CO2 equivalent; needs an intensity.
        battery_pct: The lowest charge that any device may reach, in per cent.
        temperature_c: The highest temperature that any device may reach, in degrees Celsius.
    """

    energy_j: float | None = None
    carbon_g: float | None = None
    battery_pct: float | None = None
    temperature_c: float | None = None

    def __post_init__(self) -> None:
        wrong = [
            f"{name}={value} must be above 0"
            for name, value in vars(self).items()
            if value is not None and not value > 0
        ]
        if wrong:
            raise EnergyError("EnergyBudget: " + "; ".join(wrong))

    def exceeded(self, pool: PoolReport, carbon_g_per_kwh: float | None) -> str | None:
        """Which limit is reached, in a sentence; None if none is."""
        spent_j = pool.energy_j
        names = pool.device_names()
        if self.energy_j is not None and spent_j is not None and spent_j >= self.energy_j:
            return f"the energy budget of {self.energy_j:.6g} J is spent ({spent_j:.6g} J)"
        if self.carbon_g is not None and carbon_g_per_kwh is not None and spent_j is not None:
            emitted_g = carbon_g(spent_j, carbon_g_per_kwh)
            if emitted_g >= self.carbon_g:
                return f"the carbon budget of {self.carbon_g:.6g} g is spent ({emitted_g:.6g} g)"
        for account in pool.accounts:
            charge, heat = account.battery_pct, account.temperature_c
            who = names[account.rank]
            if self.battery_pct is not None and charge is not None and charge <= self.battery_pct:
                return f"{who}'s battery is down to {charge:.0f} % (limit {self.battery_pct:.0f} %)"
            if self.temperature_c is not None and heat is not None and heat >= self.temperature_c:
                return f"{who} is {heat:.0f} C hot (limit {self.temperature_c:.0f} C)"
        return None
