"""What the whole run will take, told from its beginning."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_edge.energy.budget import JOULES_PER_KWH, carbon_g


@dataclass(frozen=True)
class Forecast:
    """The expected account of a run.

    Args:
        energy_j: Joules at its end.
        uncertainty_j: Standard uncertainty of that, from the instruments alone.
        duration_s: Seconds from its start to its end.
        carbon_g: Grams of CO2 equivalent; None without an intensity.
        budget_step: Optimizer step at which the joule budget will be spent; None if it lasts.
    """

    energy_j: float
    uncertainty_j: float
    duration_s: float
    carbon_g: float | None = None
    budget_step: int | None = None

    def __str__(self) -> str:
        hours, minutes = divmod(round(self.duration_s / 60), 60)
        time = f"{hours} h {minutes} min" if self.duration_s >= 90 else f"{self.duration_s:.0f} s"
        text = (
            f"about {self.energy_j:.4g} J +- {self.uncertainty_j:.2g} J "
            f"({self.energy_j / JOULES_PER_KWH:.3g} kWh) in {time}"
        )
        if self.carbon_g is not None:
            text += f", {self.carbon_g:.3g} g CO2e"
        if self.budget_step is not None:
            text += f"; the energy budget will be spent at step {self.budget_step}"
        return text


def forecast(
    energy_j: float,
    uncertainty_j: float,
    duration_s: float,
    steps: int,
    total_steps: float,
    *,
    carbon_g_per_kwh: float | None = None,
    budget_j: float | None = None,
) -> Forecast | None:
    """Extend an account of the first `steps` to `total_steps`; None if either is unknown.

    The first epoch holds what repeats: training, its evaluation and its checkpoints.
    """
    if steps <= 0 or not 0 < total_steps < float("inf") or energy_j <= 0:
        return None
    scale = max(total_steps / steps, 1.0)
    total_j = energy_j * scale
    spent_at = None if budget_j is None else int(budget_j / energy_j * steps)
    return Forecast(
        total_j,
        uncertainty_j * scale,
        duration_s * scale,
        None if carbon_g_per_kwh is None else carbon_g(total_j, carbon_g_per_kwh),
        spent_at if spent_at is not None and spent_at < total_steps else None,
    )
