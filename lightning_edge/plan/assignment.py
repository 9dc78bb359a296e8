"""A plan in whole numbers: blocks, rows, ranks. What the simulator runs and the search changes.

    Plan        start="layers.5", devices={2: 0.625, 0: 0.375}, power_modes={2: "15W"}
    Assignment  blocks 6..12, ranks (2, 0), rows (20, 12) of 32, modes (1, 0)

Rows are those of the whole batch; how they fall on micro-batches is the layout's affair.
"""

from __future__ import annotations

from typing import NamedTuple

from lightning_edge.errors import PlanError
from lightning_edge.plan.costs import Costs
from lightning_edge.plan.depth import resolve_depths
from lightning_edge.plan.plan import Pipeline, Plan, Stage
from lightning_edge.plan.problems import did_you_mean, shown
from lightning_edge.plan.rows import whole_rows

__all__: list[str] = []


class Part(NamedTuple):
    """A stage.

    Attributes:
        first: Its first block; likewise `stop`, the one behind its last.
        ranks: Its devices, in the order of their rows.
        rows: Of the batch, for each of them.
        modes: Index of each one's power mode.
        depth: Most micro-batches in flight.
        checkpoint: Whether activations are computed again.
    """

    first: int
    stop: int
    ranks: tuple[int, ...]
    rows: tuple[int, ...]
    modes: tuple[int, ...]
    depth: int = 1
    checkpoint: bool = False


class Assignment(NamedTuple):
    """All stages in order, and the number of micro-batches."""

    parts: tuple[Part, ...]
    micro_batches: int

    @property
    def ranks(self) -> tuple[int, ...]:
        """All devices that have work."""
        return tuple(rank for part in self.parts for rank in part.ranks)

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return sum(self.parts[0].rows)


def from_plan(plan: Plan, costs: Costs, rows: int) -> Assignment:
    """Return what a plan means for a profile and a batch.

    Raises:
        PlanError: If the plan does not fit the profile's devices and blocks.
    """
    profile = costs.profile
    plan = plan.resolve(profile.names, profile.model.cuts)
    assert plan.micro_batches != "auto"
    micro_batches = min(plan.micro_batches, rows)
    starts = [0] + [profile.model.index(s.start) for s in plan.stages if s.start is not None]
    problems, parts = [], []
    for stage, first, stop in zip(
        plan.stages, starts, [*starts[1:], len(costs.blocks)], strict=True
    ):
        ranks = tuple(rank for rank in stage.devices if isinstance(rank, int))
        modes = []
        for rank in ranks:
            name = plan.power_modes.get(rank)
            known = [mode.name for mode in profile.devices[rank].modes]
            if name is not None and name not in known:
                problems.append(
                    f"power_modes: {profile.names[rank]} has no mode {shown(name)} in the profile"
                    f" (known: {', '.join(known)}){did_you_mean(name, known)}"
                )
                name = None
            modes.append(costs.mode_index(rank, name))
        counts = tuple(whole_rows(tuple(stage.devices.values()), rows))
        depth = min(int(stage.in_flight), micro_batches)
        parts.append(Part(first, stop, ranks, counts, tuple(modes), depth, stage.checkpoint))
    if problems:
        raise PlanError(problems)
    return Assignment(tuple(parts), micro_batches)


def to_plan(assignment: Assignment, costs: Costs) -> Plan:
    """Return the plan that says the same; modes other than the current ones are written down."""
    stages, modes = [], {}
    for part in assignment.parts:
        total = sum(part.rows)
        shares = {rank: count / total for rank, count in zip(part.ranks, part.rows, strict=True)}
        start = costs.blocks[part.first].name if part.first else None
        stages.append(Stage(shares, start, "data", part.depth, part.checkpoint))
        for rank, mode in zip(part.ranks, part.modes, strict=True):
            if mode != costs.mode_index(rank, None):
                modes[rank] = costs.devices[rank].modes[mode].name
    return Plan([Pipeline(stages)], assignment.micro_batches, modes)


def auto_depths(number: int, micro_batches: int) -> tuple[int, ...]:
    """The depths that a plan with "auto" gets."""
    return resolve_depths(["auto"] * number, micro_batches)
