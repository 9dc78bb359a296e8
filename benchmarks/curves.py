"""Curves of a validation loss over seconds and joules: a table, and a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.contest import Block

HEADER = ("task", "contestant", "steps", "last loss", "loss to reach", "seconds", "joules")


@dataclass(frozen=True)
class Curve:
    """What a contestant had reached at the end of each turn.

    Attributes:
        metric: Name of the validation loss.
        seconds: Since the start of its own training, without what others did meanwhile.
        joules: Of its devices, by their emulated meters, likewise.
        losses: At those moments.
    """

    task: str
    metric: str
    contestant: str
    every: int
    seconds: list[float]
    joules: list[float]
    losses: list[float]

    @classmethod
    def of(
        cls,
        task: str,
        metric: str,
        contestant: str,
        every: int,
        blocks: Sequence[Block],
        losses: Sequence[float],
        devices: int,
    ) -> Curve:
        """Add up a contestant's turns; it uses the first ``devices`` devices."""
        seconds, joules = [0.0], [0.0]
        for block in blocks:
            assert block.observed is not None
            before, after = block.observed
            used = sum(after[rank].energy_j - before[rank].energy_j for rank in range(devices))
            seconds.append(seconds[-1] + sum(block.steps_s))
            joules.append(joules[-1] + used)
        kept = list(losses[: len(blocks)])
        return cls(task, metric, contestant, every, seconds[1:], joules[1:], kept)

    def at(self, loss: float) -> tuple[float, float] | None:
        """Return the seconds and joules at which a loss was reached, between the measured ones."""
        if self.losses[0] <= loss:
            return self.seconds[0], self.joules[0]
        for i in range(1, len(self.losses)):
            high, low = self.losses[i - 1], self.losses[i]
            if low <= loss < high:
                part = (high - loss) / (high - low)
                return tuple(  # type: ignore[return-value]
                    row[i - 1] + part * (row[i] - row[i - 1]) for row in (self.seconds, self.joules)
                )
        return None

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def common_loss(curves: Sequence[Curve]) -> float:
    """Return the best loss that all have reached."""
    return max(min(curve.losses) for curve in curves)


def show(curves: Sequence[Curve], setting: str) -> str:
    """Print the table, and return it in Markdown."""
    rows = []
    for task in dict.fromkeys(curve.task for curve in curves):
        own = [curve for curve in curves if curve.task == task]
        goal = common_loss(own)
        for curve in own:
            reached = curve.at(goal) or (math.nan, math.nan)
            steps = len(curve.losses) * curve.every
            row = [task, curve.contestant, str(steps), f"{curve.losses[-1]:.4f}", f"{goal:.4f}"]
            rows.append([*row, f"{reached[0]:.1f}", f"{reached[1]:.0f}"])
    table = Table(*HEADER, title=f"convergence, {setting}")
    for row in rows:
        table.add_row(*row)
    Console(width=140).print(table)
    lines = [list(HEADER), ["---"] * len(HEADER), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Draw each task's losses over seconds and over joules."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = list(dict.fromkeys(curve.task for curve in curves))
    figure, axes = pyplot.subplots(len(tasks), 2, figsize=(11, 4 * len(tasks)), squeeze=False)
    for row, task in enumerate(tasks):
        for curve in (curve for curve in curves if curve.task == task):
            for axis, values in zip(axes[row], (curve.seconds, curve.joules), strict=True):
                axis.plot(values, curve.losses, marker="o", label=curve.contestant)
                axis.set_ylabel(f"{task}: {curve.metric}")
        axes[row][0].set_xlabel("seconds of training and validation")
        axes[row][1].set_xlabel("joules (emulated)")
        axes[row][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
