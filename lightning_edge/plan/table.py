"""A plan as a table that one wants to read, in plain text."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_edge.plan.plan import Pipeline, Plan, Stage

__all__ = ["table"]


def table(plan: Plan, names: Sequence[str] | None = None, width: int = 100) -> str:
    """Return a plan as text without colours, links or trailing blanks.

    Args:
        plan: Any plan, resolved or not.
        names: Name of each rank's device, shown beside the ranks.
        width: Most characters of a line; long cells continue in the next line.

    Example::

        2 stages on 3 devices; 8 micro-batches

        | stage | start          | devices                | parallelism | in flight |
        |-------|----------------|------------------------|-------------|-----------|
        | 0     | (first module) | 0 62.5% (15W), 1 37.5% | data        | 3         |
        | 1     | model.blocks.5 | 2 100%                 | data        | 1         |
    """
    devices = [d for pipeline in plan.pipelines for stage in pipeline.stages for d in stage.devices]
    if len(plan.pipelines) == 1:
        stages = _count(len(plan.pipelines[0].stages), "stage")
    else:
        stages = f"{len(plan.pipelines)} pipelines"
    parts = [f"{stages} on {_count(len(devices), 'device')}"]
    if plan.micro_batches == "auto":
        parts.append("micro-batches: auto")
    else:
        parts.append(_count(plan.micro_batches, "micro-batch"))
    idle = [f"{rank} {name}" for rank, name in enumerate(names or ()) if rank not in devices]
    if idle:
        parts.append(f"without work: {', '.join(idle)}")
    blocks = ["; ".join(parts)]
    for index, pipeline in enumerate(plan.pipelines):
        if len(plan.pipelines) > 1:
            share = 1 / len(plan.pipelines) if pipeline.share is None else pipeline.share
            blocks.append(f"pipeline {index}: {_percent(share)} of the rows")
        blocks.append(_grid(plan, pipeline, names, width))
    return "\n\n".join(blocks)


def _grid(plan: Plan, pipeline: Pipeline, names: Sequence[str] | None, width: int) -> str:
    # Imported here: rich is needed only where somebody reads.
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.MARKDOWN)
    saved = any(stage.checkpoint for stage in pipeline.stages)
    titles = ("stage", "start", "devices", "parallelism", "in flight")
    for title in (*titles, *(("checkpoint",) if saved else ())):
        grid.add_column(title, overflow="fold", no_wrap=title not in ("start", "devices"))
    for index, stage in enumerate(pipeline.stages):
        devices = _devices(plan, stage, names)
        start = "(first module)" if stage.start is None else stage.start
        cells = [str(index), start, devices, stage.parallelism, str(stage.in_flight)]
        if saved:
            cells.append("yes" if stage.checkpoint else "no")
        grid.add_row(*(Text(cell) for cell in cells))  # Text: "[0]" in a name is no markup
    page = io.StringIO()
    Console(file=page, width=max(width, 60), color_system=None, force_terminal=False).print(grid)
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines() if line.strip())


def _devices(plan: Plan, stage: Stage, names: Sequence[str] | None) -> str:
    entries = []
    for device, share in stage.devices.items():
        label = str(device)
        if names is not None and isinstance(device, int) and device < len(names):
            label += f" {names[device]}"
        mode = plan.power_modes.get(device)
        entries.append(f"{label} {_percent(share)}" + (f" ({mode})" if mode else ""))
    line = ", ".join(entries)
    return line if len(line) <= 40 else ",\n".join(entries)


def _percent(share: float) -> str:
    """Write 0.625 as 62.5% and 1 as 100%."""
    return f"{100 * share:.1f}".removesuffix(".0") + "%"


def _count(number: int, what: str) -> str:
    plural = "es" if what.endswith("ch") else "s"
    return f"{number} {what}{'' if number == 1 else plural}"
