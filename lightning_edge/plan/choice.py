"""What a search found, as a value that explains itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_edge.plan.objective import Objective
from lightning_edge.plan.plan import Plan
from lightning_edge.plan.prediction import Prediction, seconds
from lightning_edge.plan.profile_table import grid
from lightning_edge.plan.table import table

__all__ = ["Choice", "Option"]


@dataclass(frozen=True)
class Option:
    """A plan and what it is expected to do.

    Attributes:
        plan: With ranks and numbers.
        prediction: Of one step.
        label: What it is in a few words, such as "laptop alone".
    """

    plan: Plan
    prediction: Prediction
    label: str


@dataclass(frozen=True)
class Choice:
    """The best plan found.

    Attributes:
        plan: With ranks and numbers.
        prediction: Of one step.
        objective: What it was chosen for.
        alternatives: The best plans of other shapes, best first; one device alone is among them.
        front: Plans that no other one beats in both time and joules; fastest first.
        limits: What keeps the step from being shorter, or the plan from being better.
        reasons: One line per decision.
        exhaustive: Whether every plan was looked at.
        names: Of the devices, by rank.
    """

    plan: Plan
    prediction: Prediction
    objective: Objective
    alternatives: tuple[Option, ...]
    front: tuple[Option, ...]
    limits: tuple[str, ...]
    reasons: tuple[str, ...]
    exhaustive: bool
    names: tuple[str, ...]

    def __str__(self) -> str:
        parts = [table(self.plan, self.names), str(self.prediction)]
        parts.append("\n".join(["Why:", *(f"- {reason}" for reason in self.reasons)]))
        if self.limits:
            parts.append("\n".join(["What limits it:", *(f"- {limit}" for limit in self.limits)]))
        if self.alternatives:
            parts.append("Other plans:\n\n" + _options(self.alternatives, self.prediction))
        if len(self.front) > 1:
            parts.append("Time against energy:\n\n" + _options(self.front, self.prediction))
        return "\n\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON."""
        return {
            "plan": self.plan.to_mapping(),
            "prediction": self.prediction.to_dict(),
            "alternatives": [_option(option) for option in self.alternatives],
            "front": [_option(option) for option in self.front],
            "limits": list(self.limits),
            "reasons": list(self.reasons),
            "exhaustive": self.exhaustive,
        }


def percent(ratio: float) -> str:
    """Write a ratio as one says it: 1.14 is "14 % more", 0.9 "10 % less"."""
    change = 100 * (ratio - 1)
    if abs(change) < 0.05:
        return "the same"
    digits = 1 if abs(change) < 9.95 else 0
    return f"{abs(change):.{digits}f} % {'more' if change > 0 else 'less'}"


def _options(options: Sequence[Option], chosen: Prediction) -> str:
    rows = []
    for option in options:
        found = option.prediction
        cells = [option.label, seconds(found.step_s), percent(found.step_s / chosen.step_s)]
        if found.energy_j is not None and chosen.energy_j:
            cells += [f"{found.energy_j:.4g} J", percent(found.energy_j / chosen.energy_j)]
        else:
            cells += ["?", ""]
        rows.append(cells)
    return grid(("plan", "step", "time", "energy", "energy"), rows, 120)


def _option(option: Option) -> dict[str, Any]:
    return {
        "label": option.label,
        "plan": option.plan.to_mapping(),
        "step_s": option.prediction.step_s,
        "energy_j": option.prediction.energy_j,
    }
