"""Planning with what a configuration says: a search, or the prediction of a plan that is given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lightning_edge.app.failure import CommandError
from lightning_edge.errors import PlanError
from lightning_edge.plan.objective import Objective
from lightning_edge.plan.plan import Plan
from lightning_edge.plan.prediction import Prediction
from lightning_edge.plan.profile import Profile
from lightning_edge.plan.search import Choice, search
from lightning_edge.plan.simulate import simulate
from lightning_edge.plan.table import table

__all__: list[str] = []

SETTINGS = ("across", "micro_batches", "split_points")


@dataclass(frozen=True)
class Outcome:
    """A plan with what it is expected to do.

    Attributes:
        plan: With ranks and numbers.
        prediction: Of one step.
        profile: What it is based on.
        choice: With alternatives and reasons; None if the plan was given.
    """

    plan: Plan
    prediction: Prediction
    profile: Profile
    choice: Choice | None

    def __str__(self) -> str:
        if self.choice is not None:
            head = str(self.choice)
        else:
            head = f"{table(self.plan, self.profile.names)}\n\n{self.prediction}"
        return f"{head}\n\nOne step:\n\n{self.prediction.draw()}"

    def save(self, folder: Path) -> None:
        """Write everything that `report` and `train` can use."""
        self.plan.to_yaml(folder / "plan.yaml")
        self.profile.to_yaml(folder / "profile.yaml")
        found = {"prediction": self.prediction.to_dict()} if self.choice is None else None
        text = json.dumps(found or (self.choice and self.choice.to_dict()), indent=1)
        (folder / "prediction.json").write_text(text)
        (folder / "plan.txt").write_text(f"{self}\n")
        self.prediction.plot(folder / "timeline.png")
        self.prediction.chrome_trace(folder / "timeline.json")

    def metrics(self) -> dict[str, Any]:
        """What a sweep's table shows."""
        found = self.prediction
        return {
            "devices": len(found.devices),
            "stages": len(self.plan.stages),
            "step_s": found.step_s,
            "rows_per_s": found.rows_per_s,
            "energy_j": found.energy_j,
            "peak_gb": max(device.peak_bytes for device in found.devices.values()) / 1e9,
        }


def plan_for(profile: Profile, rows: int, settings: Mapping[str, Any]) -> Outcome:
    """Return the best plan, or what is to be expected of the plan that is given.

    Args:
        profile: What there is to plan with.
        rows: Of a batch.
        settings: The node `strategy`, as a plain mapping.

    Raises:
        EdgeError: It cannot be planned, or the given plan does not fit.
    """
    given = settings.get("plan", "auto")
    data = settings.get("data", "owner")
    owner = 0 if data == "owner" else data["owner"] if isinstance(data, Mapping) else None
    if given != "auto":
        plan = Plan.from_mapping(given) if isinstance(given, Mapping) else Plan.from_yaml(given)
        plan = plan.resolve(profile.names, profile.model.cuts)
        prediction = simulate(plan, profile, rows=rows, owner=owner)
        if not prediction.fits:
            full = [d for d in prediction.devices.values() if not d.fits]
            raise PlanError(
                [
                    f"{d.name} needs {d.peak_bytes / 1e9:.2f} GB and has"
                    f" {(d.memory_bytes or 0) / 1e9:.2f} GB: give it fewer blocks, rows or"
                    " micro-batches in flight"
                    for d in full
                ]
            )
        return Outcome(plan, prediction, profile, None)
    fixed = {name: settings.get(name) for name in SETTINGS}
    objective = settings.get("objective", "time")
    if not isinstance(objective, Mapping) or "power_modes" not in objective:
        fixed["power_modes"] = "keep"  # training changes none; +objective.power_modes=auto asks
    goal = Objective.parse(objective, groups=settings.get("groups") or None, **fixed)
    choice = search(profile, rows=rows, objective=goal, owner=owner)
    return Outcome(choice.plan, choice.prediction, profile, choice)


def rows_of(config: DictConfig) -> int:
    """Rows of a batch.

    Raises:
        CommandError: Nothing says how many.
    """
    rows = config.planning.rows
    rows = config.data.get("batch_rows") if rows is None else rows
    if not isinstance(rows, int) or rows < 1:
        raise CommandError(
            f"planning.rows={rows} is not a number of rows from 1 up: set planning.rows to the"
            " rows of a batch on all devices together",
            status=2,
        )
    return rows
