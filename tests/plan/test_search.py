from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_edge.errors import PlanError
from lightning_edge.plan.objective import Objective
from lightning_edge.plan.plan import Plan
from lightning_edge.plan.profile import Profile
from lightning_edge.plan.rows import micro_batch_bounds, row_intervals
from lightning_edge.plan.search import Choice, search
from lightning_edge.plan.simulate import simulate
from tests.plan.profiles import simple, written


def devices(choice: Choice) -> list[list[int]]:
    """Ranks of each stage."""
    return [[int(rank) for rank in stage.devices] for stage in choice.plan.stages]


def test_a_prediction_is_that_of_the_plan():
    profile = simple([1, 2, 1], blocks=6, mbit=10, crossing=20_000)
    choice = search(profile, rows=32)
    assert simulate(choice.plan, profile, rows=32) == choice.prediction
    for option in (*choice.alternatives, *choice.front):
        assert simulate(option.plan, profile, rows=32) == option.prediction


def test_one_device_alone_is_chosen_when_it_is_best():
    choice = search(simple([1, 5], mbit=0.1, parameters=10**6), rows=16)
    assert devices(choice) == [[1]]
    assert choice.reasons[0] == "d1 does everything: alone it is best"
    assert re.fullmatch(
        r"d0 left out: with it [\d.]+ % slower, \d+ % more energy", choice.reasons[1]
    )


def test_equal_devices_on_a_fast_network_share_the_rows():
    choice = search(simple([1, 1], mbit=10_000, blocks=1), rows=16)
    assert dict(choice.plan.stages[0].devices) == {0: 0.5, 1: 0.5}
    assert choice.exhaustive
    text = str(choice)
    for part in ("Why:", "What limits it:", "Other plans:", "d0 alone"):
        assert part in text
    assert choice.to_dict()["plan"] == choice.plan.to_mapping()


def test_unequal_devices_get_unequal_shares():
    choice = search(simple([3, 1], mbit=10_000, blocks=1, parameters=1), rows=16)
    assert dict(choice.plan.stages[0].devices) == {0: 0.75, 1: 0.25}


def test_equal_devices_that_wait_get_equal_shares():
    profile = Profile.from_mapping(yaml.safe_load(written()))
    choice = search(profile, rows=32)
    for stage in choice.plan.stages:
        assert len(set(stage.devices.values())) == 1


def test_without_links_devices_work_alone():
    base = simple([1, 3])
    choice = search(Profile(base.devices, base.model), rows=8)
    assert devices(choice) == [[1]]


def test_a_slow_link_and_a_large_model_make_a_pipeline():
    profile = simple([1, 1], blocks=8, mbit=20, parameters=5 * 10**6, crossing=1000)
    choice = search(profile, rows=32)
    assert devices(choice) in ([[0], [1]], [[1], [0]])
    assert choice.plan.stages[1].start == "b4"
    assert any(reason.startswith("cut at b4") for reason in choice.reasons)
    assert any("micro-batches: with" in reason for reason in choice.reasons)


def test_joules_leave_devices_out():
    profile = simple([1, 1, 1], blocks=6, mbit=10, parameters=10**6, crossing=1000)
    fast, thrifty = search(profile, rows=16), search(profile, rows=16, objective="energy")
    assert len(devices(fast)) > 1
    assert len(devices(thrifty)) == 1
    assert (thrifty.prediction.energy_j or 0) < (fast.prediction.energy_j or 0)
    between = search(profile, rows=16, objective={"minimize": "energy", "max_slowdown": 1.3})
    assert between.prediction.step_s <= 1.3 * fast.prediction.step_s * (1 + 1e-6)
    steps = [option.prediction.step_s for option in fast.front]
    joules = [option.prediction.energy_j or 0.0 for option in fast.front]
    assert steps == sorted(steps)
    assert joules == sorted(joules, reverse=True)


def test_memory_makes_a_pipeline_or_computes_again():
    needed = simple([1, 1], blocks=4, parameters=10**6, activation=10**5)
    whole = search(needed, rows=8, objective={"exclude": ["d1"]}).prediction.devices[0].peak_bytes
    tight = simple([1, 1], 4, parameters=10**6, activation=10**5, memory_bytes=int(0.6 * whole))
    choice = search(tight, rows=8)
    assert choice.prediction.fits
    assert devices(choice) in ([[0], [1]], [[1], [0]])
    many = simple([1], 4, activation=10**6, crossing=10**4, memory_bytes=int(1.5e6))
    choice = search(many, rows=1)
    assert choice.plan.stages[0].checkpoint
    assert any("computes activations again" in reason for reason in choice.reasons)


def test_keep_exclude_and_first_stage_hold():
    profile = simple([1, 5], mbit=0.1, parameters=10**6)
    kept = search(profile, rows=16, objective={"keep": ["d0"]})
    assert 0 in sum(devices(kept), [])
    assert devices(search(profile, rows=16, objective={"exclude": ["d1"]})) == [[0]]
    first = search(profile, rows=16, objective={"first_stage_on": ["d0"]})
    assert devices(first)[0] == [0]


def group(ranks: Any, parallelism: str = "auto") -> dict[str, Any]:
    return {"devices": ranks, "parallelism": parallelism}


@pytest.mark.parametrize(
    ("groups", "across", "expected"),
    [
        ({"a": group([2, 0]), "b": group([1], "data")}, "pipeline", None),
        ({"a": group([2, 0], "pipeline")}, "auto", [[2], [0]]),
        ({"a": group([2, 0], "data"), "b": group(["d1"])}, "pipeline", [[0, 2], [1]]),
        ({"a": group([0, 1], "data"), "b": group([2], "data")}, "data", [[0, 1, 2]]),
    ],
)
def test_groups_hold(groups: dict[str, Any], across: str, expected: list[list[int]] | None):
    profile = simple([1, 2, 1], blocks=6, mbit=50)
    choice = search(profile, rows=12, objective={"groups": groups, "across": across})
    found = [sorted(stage) if len(stage) > 1 else stage for stage in devices(choice)]
    if expected is not None:
        assert found == expected
    else:
        assert found[-1] == [1]


def test_shares_asked_for_hold():
    groups = {"a": {"devices": {0: 0.25, 1: 0.75}}, "b": {"devices": [2]}}
    asked = {"groups": groups, "across": "pipeline"}
    choice = search(simple([1, 1, 1], mbit=1000), rows=16, objective=asked)
    assert dict(choice.plan.stages[0].devices) == {0: 0.25, 1: 0.75}


def test_cuts_and_micro_batches_hold():
    asked = {"split_points": ["b1"], "micro_batches": 4}
    choice = search(simple([1, 1]), rows=8, objective=asked)
    assert [stage.start for stage in choice.plan.stages] == [None, "b1"]
    assert choice.plan.micro_batches == 4


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"exclude": ["d0"], "keep": [0]}, "d0 is in keep and in exclude"),
        ({"keep": ["pi"]}, '"pi" is not a device that takes part'),
        ({"exclude": [0, 1]}, "exclude leaves no device"),
        ({"split_points": ["b9"]}, "is not a cut point"),
        ({"split_points": ["b1", "b2"]}, "make 3 stages, but 2 devices"),
        ({"first_stage_on": [0], "exclude": [0]}, "first_stage_on are excluded"),
        ({"max_step_s": 0.1}, r"takes .* per step, 100 ms are allowed: allow .*per step"),
        ({"power_caps_w": {"d0": 1, "d1": 1}}, "power cap .*d0, d1 does not suffice: lift"),
    ],
)
def test_what_cannot_be_is_refused(asked: dict[str, Any], message: str):
    with pytest.raises(PlanError, match=message):
        search(simple([1, 1]), rows=8, objective=asked)


def test_too_little_memory_says_how_much_and_what_would_do():
    profile = simple([1, 1], blocks=2, activation=10**6, crossing=1000, memory_bytes=3_000_000)
    with pytest.raises(
        PlanError,
        match=r"short on stage \d .*divide the micro-batch by 8 \(micro_batches: 8\), or train on",
    ):
        search(profile, rows=16, objective={"micro_batches": 1, "split_points": ["b1"]})
    tiny = simple([1], blocks=2, parameters=10**6, memory_bytes=1_000_000)
    with pytest.raises(PlanError, match="short on stage 0.*free 7.* MB on d0"):
        search(tiny, rows=16)


def test_joules_need_watts():
    base = simple([1])
    modes = (base.devices[0].modes[0].__class__("default"),)
    silent = base.devices[0].__class__("d0", timing="any", modes=modes)
    profile = Profile((silent,), base.model)
    with pytest.raises(PlanError, match=r"needs idle_w, compute_w and communication_w of d0"):
        search(profile, rows=4, objective="energy")
    assert search(profile, rows=4).prediction.energy_j is None


SPEEDS = st.lists(st.sampled_from([1.0, 2.0, 5.0]), min_size=2, max_size=3)


@given(SPEEDS, st.floats(1, 300), st.floats(1.5, 20))
@settings(max_examples=5)
def test_a_better_network_makes_no_worse_plans(speeds: list[float], mbit: float, more: float):
    shape: dict[str, Any] = {"blocks": 4, "parameters": 10**6, "crossing": 20_000}
    slow = search(simple(speeds, mbit=mbit, **shape), rows=8)
    fast = search(simple(speeds, mbit=mbit * more, **shape), rows=8)
    assert fast.prediction.step_s <= slow.prediction.step_s * 1.001


@given(SPEEDS, st.integers(4, 40), st.floats(1.1, 3))
@settings(max_examples=5)
def test_more_memory_makes_no_worse_plans(speeds: list[float], tenths: int, more: float):
    def found(memory: float) -> float | None:
        profile = simple(speeds, 4, parameters=10**5, activation=10**5, memory_bytes=round(memory))
        try:
            return search(profile, rows=8).prediction.step_s
        except PlanError:
            return None

    little = found(tenths * 1e5)
    much = found(tenths * 1e5 * more)
    if little is not None:
        assert much is not None
        assert much <= little * 1.001


@given(SPEEDS, st.floats(1, 300), st.randoms(use_true_random=False))
@settings(max_examples=5)
def test_the_order_of_devices_does_not_matter(speeds: list[float], mbit: float, random: Any):
    base = simple(speeds, mbit=mbit, blocks=4, parameters=10**5)
    devices = list(base.devices)
    random.shuffle(devices)
    other = Profile(tuple(devices), base.model, base.links)
    a, b = (search(profile, rows=8, owner=None).prediction for profile in (base, other))
    assert a.step_s == pytest.approx(b.step_s, rel=1e-3)


def fewest_rows(plan: Plan, rows: int) -> int:
    """Rows of a micro-batch on the device of a stage that has the fewest."""
    assert plan.micro_batches != "auto"
    bounds = micro_batch_bounds(rows, plan.micro_batches)
    lines = [row_intervals(tuple(stage.devices.values()), bounds) for stage in plan.stages]
    return min(stop - start for line in lines for each in line for start, stop in each)


@pytest.mark.parametrize("speeds", [[1.0, 1.0, 1.0], [5.0, 2.0, 1.0]])
@pytest.mark.parametrize("mbit", [30.0, 3000.0])
def test_a_model_that_normalises_over_rows_gets_enough_of_them(
    speeds: list[float], mbit: float
) -> None:
    free = simple(speeds, mbit=mbit, crossing=1e4)
    bound = replace(free, model=replace(free.model, least_rows=8))
    assert fewest_rows(search(free, rows=16).plan, 16) < 8
    choice = search(bound, rows=16)
    assert fewest_rows(choice.plan, 16) >= 8
    assert any("normalises" in reason for reason in choice.reasons)
    # whoever asks for small micro-batches, or for many devices side by side, gets them
    asked = search(bound, rows=32, objective=Objective(micro_batches=8))
    assert asked.plan.micro_batches == 8
    assert fewest_rows(asked.plan, 32) == 4
    together = {"all": {"devices": [0, 1, 2], "parallelism": "data"}}
    few = search(bound, rows=12, objective=Objective(groups=together))
    assert len(few.plan.stages[0].devices) == 3
