"""Groups of devices become a plan.

    groups                          across="pipeline"                   across="data"
    orins: [0, 1]  data             stage 0: 0, 1                       one stage: 0, 1, 2, 3
    pis:   [2, 3]  pipeline         stage 1: 2                          (every group must be "data")
                                    stage 2: 3

Where the model is cut follows from `split_points`, or balances the stages by parameters as if all
devices were equal. Every decision that was left open comes back with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lightning_edge.plan import values
from lightning_edge.plan.arrange import arrange
from lightning_edge.plan.balance import balance
from lightning_edge.plan.group_settings import (
    check_across,
    check_split_points,
    label,
    read_groups,
)
from lightning_edge.plan.plan import Pipeline, Plan, Stage
from lightning_edge.plan.problems import Problem, refuse

__all__ = ["plan_from_groups"]


def plan_from_groups(
    groups: Mapping[str, Mapping[str, Any]] | None,
    across: str,
    names: Sequence[str],
    block_names: Sequence[str],
    block_parameters: Sequence[int],
    micro_batches: int | Literal["auto"] = "auto",
    split_points: Sequence[str] | Literal["auto"] = "auto",
) -> tuple[Plan, tuple[str, ...]]:
    """Return the plan that groups of devices ask for, and the reason of each decision taken.

    Args:
        groups: Group name -> `{"devices": [...], "parallelism": "auto" | "data" | "pipeline"}` in
            the order of the pipeline; devices by rank or name, in a "data" group also with shares.
            `None` for one group of all devices.
        across: How groups combine: "pipeline", "data" or "auto".
        names: Name of each rank's device.
        block_names: The model's legal cut points in the order of execution.
        block_parameters: Number of parameters in front of the first cut point, then from each cut
            point up to the next: one entry more than `block_names`.
        micro_batches: As in a `Plan`.
        split_points: The cut points to use, one less than stages, or "auto".

    Raises:
        PlanError: With every problem of these settings.
    """
    if len(block_parameters) != len(block_names) + 1:
        raise ValueError("block_parameters needs one entry more than block_names")
    asked, problems = read_groups(groups, names)
    problems += check_across(across)
    problems += check_split_points(split_points, block_names)
    count = values.count(("micro_batches",), micro_batches, "the number of micro-batches")
    if isinstance(count, Problem):
        problems.append(count)
    refuse(problems)
    wanted = None if isinstance(split_points, str) else len(split_points) + 1
    stages, reasons, problems = arrange(asked, across, len(block_parameters), wanted)
    refuse(problems)
    starts, why = _starts(stages, split_points, block_names, block_parameters)
    idle = [rank for rank in range(len(names)) if not any(rank in stage for stage in stages)]
    if idle:
        listed = ", ".join(label(rank, names) for rank in idle)
        why.append(f"without work, as in no group: device {listed}")
    pipeline = Pipeline([Stage(*stage) for stage in zip(stages, starts, strict=True)])
    return Plan([pipeline], micro_batches), (*reasons, *why)


def _starts(
    stages: Sequence[Mapping[int, float]],
    split_points: Sequence[str],
    block_names: Sequence[str],
    block_parameters: Sequence[int],
) -> tuple[list[str | None], list[str]]:
    """Return where each stage starts, and why."""
    if len(stages) == 1:
        return [None], []
    if not isinstance(split_points, str):
        return [None, *split_points], []
    counts = balance(block_parameters, [len(stage) for stage in stages])
    starts: list[str | None] = []
    loads = []
    first = 0
    for count in counts:
        starts.append(block_names[first - 1] if first else None)
        loads.append(f"{sum(block_parameters[first : first + count]):,}")
        first += count
    reason = (
        f"cut into {', '.join(loads)} parameters: balanced by parameters as if all devices were "
        "equal, as nothing was measured"
    )
    return starts, [reason]
