"""Curves of validation losses, on numbers worked out by hand."""

import pytest

from benchmarks.contest import Block
from benchmarks.curves import Curve, common_loss
from benchmarks.devices import Reading


def curve(losses: list[float]) -> Curve:
    steps = [Block([2.0], [], _used(10.0, 5.0)), Block([4.0], [], _used(30.0, 5.0))]
    return Curve.of("gpt", "loss", "ours", 10, steps, losses, devices=1)


def _used(*joules: float) -> tuple[list[Reading], list[Reading]]:
    return [Reading(0.0, 0, 1.0)] * len(joules), [Reading(0.0, 0, 1.0 + j) for j in joules]


def test_turns_are_added_up_for_the_devices_that_take_part():
    found = curve([3.0, 1.0, 0.9])  # the batch after the last turn may be validated as well
    assert (found.seconds, found.joules, found.losses) == ([2.0, 6.0], [10.0, 40.0], [3.0, 1.0])


def test_a_loss_is_reached_between_two_validations():
    found = curve([3.0, 1.0])
    assert found.at(2.0) == (pytest.approx(4.0), pytest.approx(25.0))
    assert found.at(3.5) == (2.0, 10.0)
    assert found.at(0.5) is None


def test_the_common_loss_is_one_that_all_have_reached():
    assert common_loss([curve([3.0, 1.0]), curve([2.0, 1.5])]) == 1.5
