"""Outcomes of the end-to-end benchmarks: one table, JSON and Markdown, and a picture."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.table import machine

HEADER = (
    "task",
    "devices",
    "links",
    "contestant",
    "devices that work",
    "samples/s",
    "of the compute bound",
    "J/sample",
    "without idle",
    "MB/step",
    "peak MiB",
    "predicted step",
)


@dataclass
class Outcome:
    """One contestant at one setting; medians over its turns.

    Attributes:
        bound_ratios: Speed over the sum of all devices' own speeds, one per turn.
        working: Devices that take part. One that is left out may sleep, so its joules do not count.
        joules_per_sample: Of the devices that take part, by their emulated meters.
        dynamic_joules_per_sample: The same without what they draw idle.
        sent_bytes: Per step, by all of them.
        predicted_s: What the planner said a step would take.
        losses: Of each step.
    """

    task: str
    devices: str
    link: str
    contestant: str
    working: int
    samples_per_s: float
    bound_ratios: list[float]
    joules_per_sample: float
    dynamic_joules_per_sample: float
    sent_bytes: float
    peak_bytes: int = 0
    predicted_s: float | None = None
    plan: Any = None
    losses: list[float] = field(default_factory=list)

    def add(self, result: dict[str, Any] | None, peak_bytes: int) -> None:
        """Add what the first rank returned, and the most memory that any rank ever had."""
        result = result or {}
        self.peak_bytes = peak_bytes
        self.losses = result.get("losses", [])
        self.plan = result.get("plan")
        self.predicted_s = result.get("predicted_s")

    def cells(self) -> list[str]:
        return [
            self.task,
            self.devices,
            self.link,
            self.contestant,
            str(self.working),
            f"{self.samples_per_s:.2f}",
            f"{statistics.median(self.bound_ratios):.2f}",
            f"{self.joules_per_sample:.2f}",
            f"{self.dynamic_joules_per_sample:.2f}",
            f"{self.sent_bytes / 1e6:.1f}",
            f"{self.peak_bytes / 2**20:.0f}",
            "" if self.predicted_s is None else f"{self.predicted_s:.2f} s",
        ]


def show(outcomes: Sequence[Outcome]) -> None:
    table = Table(*HEADER, title="training end to end, emulated devices")
    for outcome in outcomes:
        table.add_row(*outcome.cells())
    Console(width=180).print(table)


def write(outcomes: Sequence[Outcome], path: Path, seconds: float) -> None:
    """Write JSON with the machine and the date, and a Markdown table beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [HEADER, ["---"] * len(HEADER), *(outcome.cells() for outcome in outcomes)]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    path.with_suffix(".md").write_text(table + "\n")
    content = {
        "machine": machine(),
        "seconds": round(seconds, 1),
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Draw speed and joules, one column of bars per kind of link."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rates = list(dict.fromkeys(outcome.link for outcome in outcomes))
    figure, axes = pyplot.subplots(
        2, len(rates), figsize=(5 * len(rates), 7), squeeze=False, sharey="row"
    )
    for column, rate in enumerate(rates):
        own = [outcome for outcome in outcomes if outcome.link == rate]
        names = [outcome.contestant for outcome in own]
        colors = ["tab:green" if "edge_collab" in name else "tab:gray" for name in names]
        for row, (label, values) in enumerate(
            (
                ("samples per second", [outcome.samples_per_s for outcome in own]),
                ("joules per sample (emulated)", [outcome.joules_per_sample for outcome in own]),
            )
        ):
            axis = axes[row][column]
            axis.bar(range(len(own)), values, color=colors)
            axis.set_xticks(range(len(own)), names if row else [], rotation=60, ha="right")
            axis.set_title(rate if row == 0 else "")
            axis.set_ylabel(label if column == 0 else "")
    figure.suptitle(f"{outcomes[0].task}, devices of {outcomes[0].devices}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
