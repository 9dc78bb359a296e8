"""Cutting a row of blocks into consecutive stages that carry about the same load.

    blocks   [ 8 | 2 | 2 | 2 | 4 ]     loads
    1 + 1 devices:   8 | 2 2 2 4       heaviest load per device 10
    2 + 1 devices:   8 2 2 | 2 4       heaviest load per device  6 (a stage of d devices counts 1/d)

Two passes of dynamic programming over (stages so far, blocks so far). The first finds the lightest
possible heaviest stage. Often many cuts reach it, as one block alone (an embedding) is heaviest;
the second pass takes the most even of them, the one with the smallest sum of squares.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__: list[str] = []


def balance(loads: Sequence[float], devices: Sequence[int]) -> tuple[int, ...]:
    """Return how many blocks each stage gets, at least one.

    Args:
        loads: Load of each block, 0 or more, in the order of execution.
        devices: Number of devices of each stage; they share its load equally.
    """
    if not 1 <= len(devices) <= len(loads):
        raise ValueError(f"cannot cut {len(loads)} blocks into {len(devices)} stages")
    before = np.concatenate([[0.0], np.cumsum(np.asarray(loads, dtype=np.float64))])
    heaviest = float(_best(before, devices, np.inf, np.maximum, 1)[0])
    ends = _best(before, devices, heaviest * (1 + 1e-12), np.add, 2)[1]
    return tuple(int(count) for count in np.diff([0, *ends]))


def _best(
    before: NDArray[np.float64], devices: Sequence[int], limit: float, combine: Any, power: int
) -> tuple[float, list[int]]:
    """Return the least cost of all stages and the block behind the end of each stage.

    A stage costs (load / devices) ** power, or infinity above `limit`; `combine` adds up costs.
    `before[i]` is the load of the first i blocks.
    """
    blocks = len(before) - 1
    cost = np.where(np.arange(blocks + 1) == 0, 0.0, np.inf)
    choices = []
    for count in devices:
        next_cost = np.full(blocks + 1, np.inf)
        choice = np.zeros(blocks + 1, dtype=np.int64)
        for end in range(1, blocks + 1):
            load = (before[end] - before[:end]) / count
            costs = combine(cost[:end], np.where(load <= limit, load**power, np.inf))
            choice[end] = np.argmin(costs)
            next_cost[end] = costs[choice[end]]
        cost = next_cost
        choices.append(choice)
    ends = [blocks]
    for choice in reversed(choices[1:]):
        ends.append(int(choice[ends[-1]]))
    return float(cost[blocks]), ends[::-1]
