"""From groups to stages: which devices stand together, in which order, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lightning_edge.plan.group_settings import Group
from lightning_edge.plan.problems import Problem, shown

__all__: list[str] = []


class Arrangement(NamedTuple):
    """The devices of each stage with their shares, the reasons, and what stands against it."""

    stages: list[dict[int, float]]
    reasons: list[str]
    problems: list[Problem]


def arrange(
    groups: Sequence[Group], across: str, most_stages: int, wanted_stages: int | None
) -> Arrangement:
    """Turn groups into stages.

    Args:
        groups: At least one, all sound.
        across: How they combine: "auto", "pipeline" or "data".
        most_stages: Number of blocks the model can be cut into.
        wanted_stages: Number of stages that the cut points asked for make, if any.
    """
    if len(groups) == 1 and groups[0].parallelism == "auto" and across != "data":
        result = _free(groups[0], most_stages, wanted_stages)
    elif across == "data":
        result = _side_by_side(groups, [])
    else:
        result = _in_a_row(groups)
        settled = across == "pipeline" or any(g.parallelism == "pipeline" for g in groups)
        if len(groups) > 1 and len(result.stages) > most_stages and not settled:
            reason = (
                f'across is "data": the model has {_cut_points(most_stages - 1)}, too few for a '
                f"pipeline of {len(groups)} groups"
            )
            result = _side_by_side(groups, [reason])
        elif len(groups) > 1 and across == "auto":
            reason = 'across is "pipeline": between groups then travel activations'
            result.reasons.insert(0, f"{reason} instead of the gradients of all parameters")
    return _limit(result, most_stages, wanted_stages)


def _free(group: Group, most_stages: int, wanted_stages: int | None) -> Arrangement:
    """Arrange devices about which nothing was said."""
    ranks = list(group.shares)
    number = wanted_stages or min(len(ranks), most_stages)
    if len(ranks) == 1:
        return Arrangement([group.shares], [], [])
    if number == 1:
        reason = f"data parallelism on {len(ranks)} devices: "
        reason += "the model cannot be cut" if most_stages == 1 else "no cut points were asked for"
        return Arrangement([group.shares], [reason], [])
    if number > len(ranks):
        made = f"{_cut_points(number - 1)} for {number} stages"
        text = f"{made}, but there are only {len(ranks)} devices"
        return Arrangement([], [], [Problem(("split_points",), text)])
    reason = (
        f"a pipeline of {number} stages: each of the {len(ranks)} devices then holds a part of the "
        "model only, and sends activations instead of the gradients of all parameters"
    )
    if number < len(ranks):
        why = "asked for" if wanted_stages else "in the model"
        reason += f"; there are no more cut points {why}, so devices share stages"
    return Arrangement(_deal(ranks, number), [reason], [])


def _in_a_row(groups: Sequence[Group]) -> Arrangement:
    """Make groups consecutive segments of one pipeline."""
    stages: list[dict[int, float]] = []
    reasons = []
    for group in groups:
        if group.parallelism == "pipeline":
            stages += [{rank: 1.0} for rank in group.shares]
            continue
        if group.parallelism == "auto" and len(group.shares) > 1:
            reasons.append(
                f"group {shown(group.name)} works in data parallelism: its devices are taken to be "
                "alike and close, and a pipeline inside would wait for more transfers"
            )
        stages.append(group.shares)
    return Arrangement(stages, reasons, [])


def _side_by_side(groups: Sequence[Group], reasons: list[str]) -> Arrangement:
    """Let every group hold the whole model: one stage, as long as no group is a pipeline."""
    problems = [
        Problem(
            ("groups", group.name, "parallelism"),
            '"pipeline" with across="data" means pipelines side by side, which are not supported '
            'yet: write "data" here or across="pipeline"',
        )
        for group in groups
        if group.parallelism == "pipeline" and len(groups) > 1
    ]
    if len(groups) == 1 and groups[0].parallelism == "pipeline":
        return _in_a_row(groups)
    total = sum(len(group.shares) for group in groups)
    shares = {
        rank: share * len(group.shares) / total
        for group in groups
        for rank, share in group.shares.items()
    }
    return Arrangement([shares], reasons, problems)


def _limit(result: Arrangement, most_stages: int, wanted_stages: int | None) -> Arrangement:
    """Add what the model and the cut points asked for do not allow."""
    number = len(result.stages)
    if result.problems:
        return result
    if wanted_stages is not None and wanted_stages != number:
        text = f"{_cut_points(wanted_stages - 1)} given, but the groups make {number} stages"
        text += f": {_cut_points(number - 1)} needed"
        result.problems.append(Problem(("split_points",), text))
    elif number > most_stages:
        text = f"they make {number} stages, but the model has {_cut_points(most_stages - 1)}"
        remedy = 'make groups "data" instead of "pipeline", or write across="data"'
        result.problems.append(Problem(("groups",), f"{text}: {remedy}"))
    return result


def _cut_points(number: int) -> str:
    return f"{number or 'no'} cut point{'' if number == 1 else 's'}"


def _deal(ranks: Sequence[int], number: int) -> list[dict[int, float]]:
    """Divide devices among stages in order; earlier stages get the spare ones."""
    size, spare = divmod(len(ranks), number)
    stages = []
    first = 0
    for stage in range(number):
        members = ranks[first : first + size + (stage < spare)]
        stages.append({rank: 1 / len(members) for rank in members})
        first += len(members)
    return stages
