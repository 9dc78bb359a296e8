"""The search for the largest model, and the plan that it tries."""

import pytest

from benchmarks.capacity import bisect
from benchmarks.capacity_run import parameters, plan
from benchmarks.sized import Sized, cells
from lightning_edge.plan.plan import Plan


@pytest.mark.parametrize("limit", [0, 1, 5, 16, 17, 30, 100])
@pytest.mark.parametrize("step", [1, 3])
def test_the_largest_is_found_within_a_step(limit, step):
    tried = []

    def fits(size):
        tried.append(size)
        return size <= limit

    found = bisect(fits, 16, step)
    assert limit - step < found <= limit or found == limit == 0
    assert len(tried) == len(set(tried)), "a trial costs half a minute"


def test_every_device_gets_as_many_blocks():
    found = Plan.from_mapping(plan(33, 4))
    assert [stage.start for stage in found.stages] == [
        None,
        "model.blocks.8",
        "model.blocks.16",
        "model.blocks.25",
    ]
    assert [stage.in_flight for stage in found.stages] == [4, 3, 2, 1]


def test_the_table_compares_with_one_device():
    sizes = [
        Sized("plain", 1, 20, parameters(20), 384, 0),
        Sized("edge", 2, 40, parameters(40), 384, 0),
    ]
    one, two = cells(sizes, {2: 1.8})
    assert one[4:6] == ["1.00", ""]
    assert two[4:6] == ["2.00", ">= 1.8 yes"]
