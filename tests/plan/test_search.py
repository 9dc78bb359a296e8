from __future__ import annotations

import pytest

from lightning_edge.errors import PlanError
from lightning_edge.plan.search import search
from lightning_edge.plan.simulate import simulate
from tests.plan.profiles import simple


def test_a_prediction_is_that_of_the_plan():
    profile = simple([1, 2, 1], blocks=6, mbit=10, crossing=20_000)
    choice = search(profile, rows=32)
    assert simulate(choice.plan, profile, rows=32) == choice.prediction


def test_one_device_alone_is_chosen_when_it_is_best():
    choice = search(simple([1, 5], mbit=0.1, parameters=10**6), rows=16)
    assert [list(stage.devices) for stage in choice.plan.stages] == [[1]]
    assert choice.reasons[0] == "d1 does everything: alone it is best"
    assert choice.reasons[1].startswith("d0 left out: with it")


def test_equal_devices_on_a_fast_network_share_the_rows():
    choice = search(simple([1, 1], mbit=10_000, blocks=1), rows=16)
    assert dict(choice.plan.stages[0].devices) == {0: 0.5, 1: 0.5}
    text = str(choice)
    assert "Why:" in text
    assert "What limits it:" in text


def test_keep_and_exclude_hold():
    profile = simple([1, 5], mbit=0.1, parameters=10**6)
    kept = search(profile, rows=16, objective={"keep": ["d0"]})
    assert 0 in [rank for stage in kept.plan.stages for rank in stage.devices]
    left = search(profile, rows=16, objective={"exclude": ["d1"]})
    assert [list(stage.devices) for stage in left.plan.stages] == [[0]]
    with pytest.raises(PlanError, match="d0 is in keep and in exclude"):
        search(profile, rows=16, objective={"exclude": ["d0"], "keep": [0]})
