from __future__ import annotations

import pytest

from lightning_edge.errors import PlanError
from lightning_edge.plan.objective import Objective


def test_names_mappings_and_objectives_are_read():
    assert Objective.parse("energy") == Objective("energy")
    found = Objective.parse({"minimize": "edp", "keep": ["pi", 1], "max_slowdown": 1.2})
    assert found == Objective("edp", max_slowdown=1.2, keep=("pi", 1))
    assert Objective.parse(found) == found
    assert Objective.parse("time", micro_batches=4, split_points=["a"]) == Objective(
        micro_batches=4, split_points=("a",)
    )
    assert Objective.parse({"micro_batches": 4}, micro_batches="auto").micro_batches == 4


def test_all_problems_come_at_once():
    with pytest.raises(PlanError) as error:
        Objective.parse(
            {
                "minimise": "time",
                "minimize": "tmie",
                "max_step_s": -1,
                "max_slowdown": 0.5,
                "keep": [True],
                "battery_j": {"pi": 5},
                "micro_batches": 0,
            }
        )
    text = str(error.value)
    for part in ('did you mean "minimize"', 'did you mean "time"', "max_step_s", "from 1 up",
                 "is not a device", "battery_j needs steps", "whole number"):  # fmt: skip
        assert part in text


@pytest.mark.parametrize("given", [None, 3, ["time"]])
def test_other_things_are_no_objective(given: object):
    with pytest.raises(PlanError, match="one of time, energy, edp or a mapping"):
        Objective.parse(given)
