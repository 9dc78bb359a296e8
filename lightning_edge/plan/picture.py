"""A step as a picture: one row per device, predicted above measured."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_edge.plan.prediction import Event, Prediction

__all__: list[str] = []

# Told apart by people who do not see red and green apart, and on paper without colours.
COLOURS = {
    "forward": "#4c92c3",
    "backward": "#1b4f72",
    "step": "#8e6bb0",
    "communication": "#f0a94c",
    "waiting": "#e8e8e8",
}
_KINDS = {"send": "communication", "receive": "communication", "reduce": "communication"}


def plot(
    prediction: Prediction, path: str | os.PathLike[str], measured: Sequence[Event] | None
) -> None:
    """Write the picture; messages are drawn as a thin line below what is computed."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    sources = [("predicted", prediction.timeline)]
    if measured is not None:
        sources.append(("measured", measured))
    rows = [(r, label, events) for r in prediction.devices for label, events in sources]
    figure = Figure(figsize=(11, 1.2 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    end = max((e.end_s for _, _, events in rows for e in events), default=1.0)
    for place, (rank, _, events) in enumerate(rows):
        axes.broken_barh([(0, end)], (place - 0.35, 0.7), color=COLOURS["waiting"])
        _bars(axes, place, [event for event in events if event.rank == rank])
    axes.set_yticks(range(len(rows)))
    axes.set_yticklabels(
        [
            f"{rank} {prediction.devices[rank].name}" + (f", {label}" if measured else "")
            for rank, label, _ in rows
        ]
    )
    axes.invert_yaxis()
    axes.set_xlim(0, end)
    axes.set_xlabel("seconds")
    axes.set_title(f"{prediction.step_s:.3g} s per step of {prediction.rows} rows")
    axes.legend(
        handles=[Patch(color=colour, label=name) for name, colour in COLOURS.items()],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.35 if len(rows) < 4 else -0.16),
        ncols=len(COLOURS),
        frameon=False,
    )
    figure.savefig(path, dpi=150)


def _bars(axes: Any, place: int, events: Sequence[Event]) -> None:
    for kind in COLOURS:
        spans = [
            (event.start_s, event.end_s - event.start_s)
            for event in events
            if _KINDS.get(event.kind, event.kind) == kind
        ]
        low, height = (place + 0.18, 0.17) if kind == "communication" else (place - 0.35, 0.53)
        axes.broken_barh(
            spans, (low, height), color=COLOURS[kind], edgecolor="white", linewidth=0.3
        )
