"""Repeating until the mean is known: on busy, throttled and clock-shifting machines alike.

A share of a processor is given in slices, so that single short passes take either the time of a
slice or that of a pause. Passes are therefore put together into stretches of a fifth of a second,
and stretches in which something else got in between are left out.

    passes    | | |||| | | ||| ||   |  ...
    stretches [  .21   ][  .20  ][ .34 ][ .20 ]   -> .34 is out, .203 +- .003
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightning_edge.profile.marks import Seconds

__all__: list[str] = []

OUTLIER = 1.3  # a stretch this much slower than the median one was disturbed


@dataclass(frozen=True)
class Effort:
    """How much may be spent on a measurement.

    Attributes:
        seconds: For the whole model on one device; one pass more may be needed to find out.
        spread: Relative standard error of the mean that is good enough.
        stretches: The fewest, and the most.
        stretch_s: Seconds of one, at least.
    """

    seconds: float = 10.0
    spread: float = 0.015
    stretches: tuple[int, int] = (3, 10)
    stretch_s: float = 0.2


def repeat(
    run: Callable[[], Seconds],
    effort: Effort,
    budget_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Seconds:
    """Run passes until their mean is steady or the time is over, and return the mean pass.

    Args:
        run: One pass.
        effort: What is good enough.
        budget_s: Seconds to spend; at least one pass is made.
        clock: Monotonic seconds.
    """
    begun = clock()
    stretches: list[Seconds] = []
    while True:
        stretch = run()
        while stretch.total_s < effort.stretch_s and clock() - begun < budget_s:
            stretch.add(run())
        stretches.append(stretch)
        good = undisturbed(stretches)
        fewest, most = effort.stretches
        if len(stretches) >= fewest and (_error(good) <= effort.spread or len(stretches) >= most):
            return mean(good)
        spent = clock() - begun
        if spent + spent / len(stretches) > budget_s:
            return mean(good)


def undisturbed(stretches: Sequence[Seconds]) -> list[Seconds]:
    """Leave out what took much longer than the median."""
    middle = statistics.median(_pace(stretch) for stretch in stretches)
    return [stretch for stretch in stretches if _pace(stretch) <= OUTLIER * middle]


def mean(stretches: Sequence[Seconds]) -> Seconds:
    """Return the mean pass of all of them."""
    whole = Seconds(list(stretches[0].forward_s), list(stretches[0].backward_s))
    whole.prefix_s, whole.passes = stretches[0].prefix_s, stretches[0].passes
    for stretch in stretches[1:]:
        whole.add(stretch)
    n = whole.passes
    return Seconds(
        [s / n for s in whole.forward_s], [s / n for s in whole.backward_s], whole.prefix_s / n
    )


def _pace(stretch: Seconds) -> float:
    return stretch.total_s / stretch.passes


def _error(stretches: Sequence[Seconds]) -> float:
    """Relative standard error of the mean pass."""
    if len(stretches) < 2:
        return float("inf")
    paces = [_pace(stretch) for stretch in stretches]
    middle = statistics.fmean(paces)
    return statistics.stdev(paces) / len(paces) ** 0.5 / middle if middle > 0 else 0.0
