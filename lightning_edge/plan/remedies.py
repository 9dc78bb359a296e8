"""What would make an infeasible request feasible, tried out before it is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from lightning_edge.errors import PlanError
from lightning_edge.plan.judge import Judge, Verdict
from lightning_edge.plan.memory import peak_bytes
from lightning_edge.plan.objective import Objective
from lightning_edge.plan.prediction import seconds, size

__all__: list[str] = []

Attempt = Callable[[Objective, int], Verdict]
"""Searches with another objective and number of rows."""


def remedies(judge: Judge, best: Verdict, attempt: Attempt) -> str:
    """Return what the least bad plan lacks, and each single change that would do.

    Args:
        judge: Of the request.
        best: The least bad plan.
        attempt: Tries a change out.
    """
    ways: dict[str, str] = {}
    for kind, text, goal, rows in _changes(judge, best):
        if kind in ways:
            continue  # the least change of a kind is enough
        try:
            found = attempt(goal, rows)
        except PlanError:
            continue
        if found.excess <= 0:
            ways[kind] = text.format(seconds=seconds(found.step_s))
    wrong = "; ".join(_broken(judge, best))
    listed = list(ways.values()) or _more_memory(judge, best) or ["take a limit away"]
    return f"nothing fits: {wrong}: {', or '.join(listed)}"


def _broken(judge: Judge, best: Verdict) -> list[str]:
    """Say which limits the least bad plan breaks."""
    costs, found, assignment = judge.costs, [], best.assignment
    for index, part in enumerate(assignment.parts):
        peaks = peak_bytes(assignment, index, costs)
        for rank, peak in zip(part.ranks, peaks, strict=True):
            limit = costs.devices[rank].memory_bytes
            if limit is not None and round(peak) > limit:
                found.append(
                    f"{size(peak - limit)} short on stage {index} ({costs.devices[rank].name}"
                    f" needs {size(peak)}, has {size(limit)})"
                )
    if judge.max_step_s is not None and best.step_s > judge.max_step_s:
        found.append(
            f"the best plan takes {seconds(best.step_s)} per step,"
            f" {seconds(judge.max_step_s)} are allowed"
        )
    if not found:
        limited = [*judge.rules.caps_w, *judge.rules.budgets_j]
        names = sorted({costs.devices[rank].name for rank in limited})
        found.append(f"the power cap or battery of {', '.join(names)} does not suffice")
    return found


def _changes(judge: Judge, best: Verdict) -> Iterator[tuple[str, str, Objective, int]]:
    """Yield kind of change, what to say, and what to try; the least change of a kind first."""
    goal, rows = judge.objective, best.assignment.rows
    if judge.max_step_s is not None:
        free = replace(goal, max_step_s=None, max_slowdown=None)
        text = "allow {seconds} per step (max_step_s)"
        yield "max_step_s", text, replace(free, minimize="time"), rows
    if goal.micro_batches != "auto":
        number = 2 * goal.micro_batches
        while number <= rows:
            by = number // goal.micro_batches
            how = "halve the micro-batch" if by == 2 else f"divide the micro-batch by {by}"
            text = f"{how} (micro_batches: {number})"
            yield "micro_batches", text, replace(goal, micro_batches=number), rows
            number *= 2
    if goal.split_points != "auto":
        text = 'let the planner cut (split_points: "auto")'
        yield "split_points", text, replace(goal, split_points="auto"), rows
    if goal.groups is not None:
        text = "leave groups away"
        yield "groups", text, replace(goal, groups=None, across="auto"), rows
    if goal.exclude:
        yield "exclude", "exclude no device", replace(goal, exclude=()), rows
    if goal.first_stage_on:
        text = "let any device begin (first_stage_on)"
        yield "first_stage_on", text, replace(goal, first_stage_on=()), rows
    if goal.power_caps_w:
        yield "power_caps_w", "lift power_caps_w", replace(goal, power_caps_w={}), rows
    fewer = rows // 2
    while fewer >= 1:
        yield "rows", f"train on batches of {fewer} rows", goal, fewer
        fewer //= 2


def _more_memory(judge: Judge, best: Verdict) -> list[str]:
    found = []
    for index, part in enumerate(best.assignment.parts):
        peaks = peak_bytes(best.assignment, index, judge.costs)
        for rank, peak in zip(part.ranks, peaks, strict=True):
            limit = judge.costs.devices[rank].memory_bytes
            if limit is not None and round(peak) > limit:
                found.append(f"free {size(peak - limit)} on {judge.costs.devices[rank].name}")
    return [" and ".join(found)] if found else []
