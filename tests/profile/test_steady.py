"""Means of passes: over stretches, without those in which something else got in between."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lightning_edge.profile.marks import Seconds
from lightning_edge.profile.steady import Effort, repeat


class Passes:
    """Passes of given lengths on a clock of their own."""

    def __init__(self, lengths: Iterator[float]) -> None:
        self._lengths, self.now_s, self.count = lengths, 0.0, 0

    def __call__(self) -> Seconds:
        length = next(self._lengths)
        self.now_s += length
        self.count += 1
        return Seconds([length / 4, length / 4], [length / 2, 0.0])


def cycle(*lengths: float) -> Iterator[float]:
    while True:
        yield from lengths


def mean(passes: Passes, effort: Effort, budget_s: float) -> Seconds:
    return repeat(passes, effort, budget_s, lambda: passes.now_s)


def test_passes_of_a_throttled_processor_average_over_slices_and_pauses() -> None:
    # 4 ms of running, 16 of standing still: the median pass would be five times too fast
    passes = Passes(cycle(0.004, 0.004, 0.004, 0.004, 0.084))
    assert mean(passes, Effort(), 10.0).total_s == pytest.approx(0.02, rel=0.05)


def test_a_disturbed_stretch_is_left_out() -> None:
    passes = Passes(cycle(0.21, 0.2, 0.9, 0.2, 0.21, 0.2, 0.2, 0.2))
    assert mean(passes, Effort(stretches=(6, 6)), 10.0).total_s == pytest.approx(0.2033, rel=0.01)


def test_it_ends_when_the_mean_is_steady_and_when_the_time_is_over() -> None:
    steady = Passes(cycle(0.25))
    mean(steady, Effort(stretches=(3, 10)), 100.0)
    assert steady.count == 3
    unsteady = Passes(cycle(0.2, 0.24))
    mean(unsteady, Effort(stretches=(3, 10), spread=0.001), 100.0)
    assert unsteady.count == 10
    slow = Passes(cycle(3.0))
    mean(slow, Effort(), 10.0)
    assert slow.count == 3


def test_one_pass_is_made_in_any_case() -> None:
    passes = Passes(cycle(50.0))
    assert mean(passes, Effort(), 0.0).forward_s == [12.5, 12.5]
