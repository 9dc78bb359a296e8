"""Looking at every plan, where there are few: who stands where, cuts, shares, modes, micro-batches.

Plans are taken in the order of a bound that none can beat, so that the first one whose bound is not
better than the best plan found ends the search:

    bounds       1.0  1.1  1.2  1.2 | 1.3  1.4 ...
    simulated    1.6  1.3  1.5  1.25|            nothing behind the bar can be better than 1.25
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, product
from math import comb

from lightning_edge.plan.assignment import Assignment, Part
from lightning_edge.plan.judge import Judge, Verdict
from lightning_edge.plan.memory import peak_bytes
from lightning_edge.plan.shaping import depths

__all__: list[str] = []

Team = tuple[int, ...]
MOST_PLANS = 20_000
_MOST_DEVICES = 4
_MOST_DEPTHS = 40


def exhaust(
    judge: Judge, numbers: Sequence[int], rows: int, piece: int, best: Verdict
) -> Verdict | None:
    """Return the best of all plans, or None if there are too many to look at.

    Args:
        judge: Of the objective.
        numbers: Numbers of micro-batches to choose from.
        rows: Of the batch.
        piece: Rows are shared out in such pieces.
        best: The best plan known, which the result is not worse than.
    """
    teams = _teams(judge) if len(judge.rules.ranks) <= _MOST_DEVICES else []
    if not teams or _count(judge, teams, len(numbers), rows // piece) > MOST_PLANS:
        return None
    plans = []
    for number in numbers:
        for assignment in _assignments(judge, teams, number, rows, piece):
            if judge.rules.allow(assignment):
                plans.append((judge.promise(assignment), assignment))
    plans.sort(key=lambda plan: plan[0])
    for promise, assignment in plans:
        if best.excess <= 0 and promise >= best.value:
            break
        for complete in _complete(judge, assignment):
            verdict = judge.judge(complete, best)
            if verdict[:2] < best[:2]:
                best = verdict
    return best


def _teams(judge: Judge) -> list[tuple[Team, ...]]:
    """All ways to put devices one after another, several in one place included."""
    found: list[tuple[Team, ...]] = []

    def extend(line: tuple[Team, ...], left: Team) -> None:
        if line and len(line) <= judge.rules.most_stages:
            found.append(line)
        for size in range(1, len(left) + 1):
            for team in combinations(left, size):
                extend((*line, team), tuple(rank for rank in left if rank not in team))

    extend((), judge.rules.ranks)
    return found


def _count(judge: Judge, teams: Sequence[tuple[Team, ...]], numbers: int, pieces: int) -> int:
    devices, legal = judge.costs.devices, len(judge.rules.legal)
    total = 0
    for line in teams:
        plans = 1 if judge.rules.cuts is not None else comb(legal, len(line) - 1)
        for team in line:
            plans *= comb(pieces - 1, len(team) - 1)
            if judge.rules.free_modes:
                for rank in team:
                    plans *= len(devices[rank].modes)
        total += plans * numbers
    return total


def _assignments(
    judge: Judge, teams: Sequence[tuple[Team, ...]], number: int, rows: int, piece: int
) -> Iterator[Assignment]:
    rules, costs = judge.rules, judge.costs
    for line in teams:
        modes = [
            range(len(costs.devices[rank].modes))
            if rules.free_modes
            else (costs.mode_index(rank, None),)
            for team in line
            for rank in team
        ]
        asked = [rules.cuts] if rules.cuts is not None else combinations(rules.legal, len(line) - 1)
        for cuts in asked:
            if len(cuts) != len(line) - 1:
                continue
            edges = [0, *cuts, len(costs.blocks)]
            for shares in product(*(list(_shares(len(team), rows, piece)) for team in line)):
                for chosen in product(*modes):
                    parts, at = [], 0
                    for index, team in enumerate(line):
                        mine = chosen[at : at + len(team)]
                        at += len(team)
                        parts.append(
                            Part(edges[index], edges[index + 1], team, shares[index], mine)
                        )
                    yield Assignment(tuple(parts), number)


def _shares(devices: int, rows: int, piece: int) -> Iterator[tuple[int, ...]]:
    """All ways to share rows out in whole pieces; what is left over goes to the first device."""
    pieces = rows // piece
    for places in combinations(range(1, pieces), devices - 1):
        edges = (0, *places, pieces)
        found = [piece * (b - a) for a, b in zip(edges, edges[1:], strict=False)]
        found[0] += rows - sum(found)
        yield tuple(found)


def _complete(judge: Judge, assignment: Assignment) -> Iterator[Assignment]:
    """All depths, or only those that grow evenly if there are many."""
    stages, number = len(assignment.parts), assignment.micro_batches
    levels: set[tuple[int, ...]]
    if comb(number + stages - 1, stages) <= _MOST_DEPTHS:
        levels = {
            found
            for found in product(range(number, 0, -1), repeat=stages)
            if all(a >= b for a, b in zip(found, found[1:], strict=False))
        }
    else:
        levels = {tuple(depths(stages, number, growth)) for growth in (1, 2, 3, 4, number)}
    for level in sorted(levels):
        parts = tuple(p._replace(depth=k) for p, k in zip(assignment.parts, level, strict=True))
        deep = Assignment(parts, number)
        yield Assignment(tuple(_fitted(judge, deep, i) for i in range(stages)), number)


def _fitted(judge: Judge, assignment: Assignment, index: int) -> Part:
    """Let a stage compute activations again if it does not fit otherwise."""
    part = assignment.parts[index]
    peaks = peak_bytes(assignment, index, judge.costs)
    for rank, peak in zip(part.ranks, peaks, strict=True):
        limit = judge.costs.devices[rank].memory_bytes
        if limit is not None and round(peak) > limit:
            return part._replace(checkpoint=True)
    return part
