"""What training measured, held against a profile, and the profile made better by it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lightning_edge.loop.drift import drifted
from lightning_edge.plan.plan import Plan
from lightning_edge.plan.profile import Profile
from lightning_edge.plan.simulate import simulate
from lightning_edge.profile.refine import paces, refined
from tests.plan.profiles import simple


def profile() -> Profile:
    """As measured: each device's timings under a key of its own."""
    found = simple([1.0, 1.0], step_s=0.004)
    devices = tuple(replace(device, timing=device.name) for device in found.devices)
    blocks = tuple(
        replace(block, timings={device.name: block.timings["any"] for device in devices})
        for block in found.model.blocks
    )
    return replace(found, devices=devices, model=replace(found.model, blocks=blocks))


PLAN = Plan.from_mapping(
    {
        "pipelines": [{"stages": [{"devices": [0]}, {"start": "b1", "devices": [1]}]}],
        "micro_batches": 2,
    }
).resolve(["d0", "d1"])


def test_a_device_that_computes_slower_is_refined_to_what_was_measured() -> None:
    given = profile()
    before = simulate(PLAN, given, rows=4)
    # one block of 0.03 s a row on d0, three on d1; d1 is a quarter slower, its loop takes 10 ms
    found = paces(given, PLAN, before, {0: (0.12, 0.004), 1: (0.45, 0.010)})
    assert found[0].slower == pytest.approx(1.0)
    assert found[1].slower == pytest.approx(1.25)
    assert found[1].loop_s == pytest.approx(0.010)
    better = refined(given, found)
    after = simulate(PLAN, better, rows=4)
    assert after.devices[0].compute_s == pytest.approx(before.devices[0].compute_s)
    assert after.devices[1].compute_s == pytest.approx(0.45 + 0.010)
    assert better.devices[1].provenance_of("step_s") == "measured"
    assert paces(better, PLAN, after, {1: (0.45, 0.010)})[1].slower == pytest.approx(1.0)


def test_devices_without_work_say_nothing() -> None:
    given = profile()
    alone = Plan.from_mapping({"pipelines": [{"stages": [{"devices": [0]}]}]})
    alone = alone.resolve(["d0", "d1"])
    prediction = simulate(alone, given, rows=4)
    assert set(paces(given, alone, prediction, {0: (0.48, 0.0), 1: (0.0, 0.0)})) == {0}


def test_drift_is_told_from_a_limit_on() -> None:
    assert drifted({"pi": 1.1, "orin": 0.9}, 0.15) == []
    (slow,) = drifted({"laptop": 1.31, "pi": 1.0}, 0.15)
    assert slow.startswith("laptop is 31 % slower than profiled")
    (fast,) = drifted({"laptop": 0.8}, 0.15)
    assert "20 % faster" in fast
