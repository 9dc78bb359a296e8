"""Good plans of every shape, by dynamic programming over blocks and devices.

The devices stand in some order; a stage is a stretch of blocks on consecutive devices of it, and
devices may be left out. From the last block backwards, with W(b, j) for blocks b.. on devices j..:

    blocks    0    a         b             K       W(a, i) = min over b, j of the largest of
              +----+---------+-------------+
    devices   |    | i ... j | W(b, j)     |         M c + r          the stage computes and sums
              +----+---------+-------------+         c + x + W(b, j)  it waits for the rest
                      stage     the rest             M x              its messages on the way

with M micro-batches, c seconds of one forward and backward of the stage's slowest device, x of one
message each way, r of summing gradients. This is Asteroid's recursion without its fixed device set,
with tables of seconds, and with memory counted for the depth that the stage will have.

For joules every stage adds its own, given the step's seconds t: the dynamic watts while it computes
and the idle watts for t. The sum is minimised for some values of t, under the limit M c + r <= t.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_edge.plan.assignment import Assignment
from lightning_edge.plan.rules import Rules
from lightning_edge.plan.seeds import mode_sets, orders
from lightning_edge.plan.segments import Segments
from lightning_edge.plan.shaping import Draft, Shaper

__all__: list[str] = []

Array = NDArray[np.float64]
_SLACKS = (1.0, 1.05, 1.15, 1.3, 1.6, 2.0, 3.0, 5.0)  # step seconds to plan joules for
_WORK = 6e7  # matrix entries to look at, in all: some tenths of a second


class Solution(NamedTuple):
    """Where the stages end, from the first device and block on."""

    value: float
    stages: tuple[tuple[int, int, int, int], ...]
    """(first device, device behind the last, first edge, edge behind the last) of each."""


def construct(
    shaper: Shaper, rules: Rules, numbers: Sequence[int], joules: bool
) -> Iterator[Assignment]:
    """Yield assignments that the rules allow.

    Args:
        shaper: Completes drafts.
        rules: What is allowed.
        numbers: Numbers of micro-batches to choose from.
        joules: Whether energy matters as well.
    """
    costs = shaper.costs
    edges = [0, *(rules.legal if rules.cuts is None else rules.cuts), len(costs.blocks)]
    size = len(rules.ranks) ** 2 * len(edges) ** 2 * (4 if joules else 1)
    runs = max(4, int(_WORK / size / 4))
    for modes in mode_sets(costs, rules)[: 2 if joules else 1]:
        for number in _few(numbers, len(rules.ranks), 4 if runs > 40 else 3):
            for order in orders(costs, rules, modes)[: max(1, runs // 6)]:
                segments = Segments(shaper, rules, order, modes, number, edges)
                found = fastest(segments, rules)
                if joules and found:
                    least = min(solution.value for solution in found)
                    for slack in _SLACKS:
                        found += thriftiest(segments, rules, slack * least)
                for solution in found:
                    yield from _completed(solution, segments, shaper, rules)


def _few(numbers: Sequence[int], devices: int, count: int) -> list[int]:
    """Numbers of micro-batches around what a pipeline of all devices would have."""
    wanted = [devices * 2, devices * 4, 4, 1, devices][:count]
    return sorted({min(numbers, key=lambda n: abs(n - w)) for w in wanted}, reverse=True)


def _completed(
    solution: Solution, segments: Segments, shaper: Shaper, rules: Rules
) -> Iterator[Assignment]:
    drafts = []
    for i, j, a, b in solution.stages:
        ranks = tuple(sorted(segments.order[i:j]))
        modes = tuple(segments.modes[rank] for rank in ranks)
        drafts.append(Draft(segments.edges[a], segments.edges[b], ranks, modes))
    found = shaper.complete(drafts, segments.number)
    if found is not None and rules.allow(found):
        yield found


def fastest(segments: Segments, rules: Rules) -> list[Solution]:
    """Return the best solutions for time that begin in different ways."""
    return _solve(segments, rules, None)


def thriftiest(segments: Segments, rules: Rules, step_s: float) -> list[Solution]:
    """Return the best solutions for joules with steps of about `step_s`."""
    return _solve(segments, rules, step_s)[:1]


def _solve(segments: Segments, rules: Rules, step_s: float | None, most: int = 3) -> list[Solution]:
    count, last = len(segments.order), len(segments.edges) - 1
    worth = np.full((count + 1, last + 1), np.inf)
    worth[:, last] = 0.0
    depth = np.zeros((count + 1, last + 1), dtype=np.int64)  # stages of the rest
    choice = np.zeros((count + 1, last + 1, 2), dtype=np.int64)
    openings: list[tuple[float, int, int, int]] = []
    for i in range(count - 1, -1, -1):
        rank = segments.order[i]
        if rank not in rules.keep:
            worth[i, :last] = worth[i + 1, :last]
            depth[i, :last] = depth[i + 1, :last]
            choice[i, :last] = choice[i + 1, :last]
        else:
            worth[i, last] = np.inf  # a device that has to take part is never left over
        for j in segments.ends(i):
            stage = segments.stage(i, j, depth[j])
            if stage is None:
                continue
            values = stage.values(worth[j], step_s)
            best = np.argmin(values, axis=1)
            least = values[np.arange(last), best]
            better = least < worth[i, :last] * (1 - 1e-12)
            worth[i, :last][better] = least[better]
            depth[i, :last][better] = depth[j][best[better]] + 1
            choice[i, :last][better] = np.stack([np.full(last, j), best], axis=1)[better]
            # remember who stands at i, as entries may be taken over from device to device
            segments.owner[i, :last][better] = i
            if rank in rules.first and np.isfinite(least[0]):
                openings.append((float(least[0]), i, j, int(best[0])))
        if rank not in rules.keep:
            kept = segments.owner[i, :last] != i
            segments.owner[i, :last][kept] = segments.owner[i + 1, :last][kept]
    must = [p for p, rank in enumerate(segments.order) if rank in rules.keep]
    openings = [o for o in openings if not must or o[1] <= must[0]]
    found = []
    for value, i, j, b in sorted(openings)[:most]:
        stages = [(i, j, 0, b)]
        while b < last:
            start = int(segments.owner[j, b])
            after, to = map(int, choice[start, b])
            stages.append((start, after, b, to))
            j, b = after, to
        found.append(Solution(value, tuple(stages)))
    return found
