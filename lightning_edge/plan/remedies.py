"""What would make an infeasible request feasible."""

from __future__ import annotations

from lightning_edge.plan.judge import Judge, Verdict
from lightning_edge.plan.memory import peak_bytes
from lightning_edge.plan.prediction import seconds, size

__all__: list[str] = []


def remedies(judge: Judge, best: Verdict) -> list[str]:
    """Return one sentence per limit that the least bad plan breaks, each with a way out."""
    costs, found = judge.costs, []
    assignment = best.assignment
    for index, part in enumerate(assignment.parts):
        peaks = peak_bytes(assignment, index, costs)
        for rank, peak in zip(part.ranks, peaks, strict=True):
            limit = costs.devices[rank].memory_bytes
            if limit is not None and round(peak) > limit:
                found.append(
                    f"{size(peak - limit)} short on stage {index} ({costs.devices[rank].name} needs"
                    f" {size(peak)} and has {size(limit)})"
                )
    if judge.max_step_s is not None and best.step_s > judge.max_step_s:
        found.append(
            f"the fastest plan takes {seconds(best.step_s)} per step, more than the"
            f" {seconds(judge.max_step_s)} allowed: allow that"
        )
    return found or ["no plan holds all limits"]
