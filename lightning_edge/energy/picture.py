"""The account of a run as a picture.

Power over time with phases, and joules per device and phase.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_edge.energy.phases import PHASES
from lightning_edge.energy.pool import PoolReport, RankAccount
from lightning_edge.energy.table import LABELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS: Mapping[str, str] = dict(
    zip(
        PHASES,
        ("#4477aa", "#ee6677", "#ccbb44", "#66ccee", "#228833", "#aa3377", "#bbbbbb"),
        strict=True,
    )
)
"""A palette that also people with colour-blindness tell apart (Paul Tol's "bright")."""


def draw(pool: PoolReport, evaluation: PoolReport | None = None) -> Figure:
    """Power over time per device above, joules per device and phase below.

    Each device's time starts at its own start: clocks of different machines are never compared.

    Args:
        pool: The account of training, or of another stage.
        evaluation: That of the validation runs in between, which are in the curves as well.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    names = pool.device_names()
    rows = max(len(pool.accounts), 1)
    figure = Figure(figsize=(10, 1.8 * rows + 3.0), layout="constrained")
    axes = figure.subplots(rows + 1, 1, height_ratios=[1.0] * rows + [0.5 + 0.35 * rows])
    top_w = max((w for a in pool.accounts for _, w in a.power_series), default=1.0)
    for axis, account in zip(axes, pool.accounts, strict=False):
        _power(axis, account, names[account.rank], 1.15 * top_w)
        axis.tick_params(labelbottom=account is pool.accounts[-1])
    axes[rows - 1].set_xlabel("s since this device's start")
    _bars(axes[rows], pool, names, evaluation)
    seen = {name for a in pool.accounts for _, spent in a.phase_series for name in spent}
    patches = [
        Patch(color=COLOURS[name], alpha=0.35, label=name) for name in PHASES if name in seen
    ]
    if patches:
        columns = len(patches)
        figure.legend(handles=patches, fontsize=7, loc="outside upper right", ncols=columns)
    return figure


def save(path: Path, pool: PoolReport, evaluation: PoolReport | None = None) -> None:
    """Draw and write; the kind of file follows from the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(pool, evaluation).savefig(path, dpi=120)


def _power(axis: Axes, account: RankAccount, name: str, top_w: float) -> None:
    _phase_background(axis, account.phase_series, top_w)
    if account.power_series:
        times, watts = zip(*account.power_series, strict=True)
        axis.plot(times, watts, color="black", linewidth=0.8)
        axis.set_xlim(0.0, max(times[-1], 1e-3))
    axis.set_ylim(0.0, top_w)
    axis.set_ylabel("W")
    kinds = account.report.by_provenance
    text = ", ".join(LABELS[kind] for kind in kinds) or "not measured"
    axis.set_title(f"{name}: {text}", loc="left", fontsize=9)


def _phase_background(
    axis: Axes, series: Sequence[tuple[float, Mapping[str, float]]], top_w: float
) -> None:
    """The share of each phase per interval, stacked from below over the full height."""
    if not series:
        return
    edges = [0.0, *(until_s for until_s, _ in series)]
    totals_s = [sum(spent.values()) or 1.0 for _, spent in series]
    bottom = [0.0] * len(series)
    for phase in PHASES:
        shares = [spent.get(phase, 0.0) / t for (_, spent), t in zip(series, totals_s, strict=True)]
        if any(shares):
            top = [low + top_w * share for low, share in zip(bottom, shares, strict=True)]
            axis.stairs(top, edges, baseline=bottom, fill=True, color=COLOURS[phase], alpha=0.35)
            bottom = top


def _bars(
    axis: Axes, pool: PoolReport, names: Mapping[int, str], evaluation: PoolReport | None
) -> None:
    """Joules per device, divided by phase where that is known; estimates are hatched."""
    for row, account in enumerate(pool.accounts):
        own_j = pool.device_energy_j(account.rank)
        if own_j is None:
            other = pool.counted_with(account.rank)
            text = f"counted with {other}" if other else "not measured"
            axis.text(0.0, row, f" {text}", va="center", fontsize=8)
            continue
        seen_j = account.report.energy_j or own_j
        parts = dict(account.phase_j or {"": seen_j})
        validated_j = evaluation.device_energy_j(account.rank) if evaluation is not None else None
        if validated_j is not None and own_j > 0:
            # Scaled below like the others, which another rank may count in part.
            parts["evaluation"] = parts.get("evaluation", 0.0) + validated_j * seen_j / own_j
        measured = bool(account.report.measured_fraction == 1.0)
        left = 0.0
        for phase, joules in parts.items():
            width = joules * own_j / seen_j
            axis.barh(
                row,
                width,
                left=left,
                height=0.6,
                color=COLOURS.get(phase, "#999999"),
                hatch=None if measured else "////",
                edgecolor="white",
            )
            left += width
        error_j = account.report.uncertainty_j
        if error_j:
            axis.errorbar(left, row, xerr=error_j * own_j / seen_j, color="black", capsize=3)
    axis.set_xlim(left=0.0)
    axis.set_yticks(range(len(pool.accounts)), [names[a.rank] for a in pool.accounts], fontsize=8)
    axis.set_ylim(len(pool.accounts) - 0.5, -0.5)  # the first device on top, and room for all
    axis.set_xlabel("J (hatched: estimate or emulated)")
