"""Memory that an allocator leaves unused is predicted, planned with, and learnt from training."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lightning_edge.plan.plan import Plan
from lightning_edge.plan.search import search
from lightning_edge.plan.simulate import simulate
from lightning_edge.profile.refine import paces, refined
from tests.plan.profiles import simple

PLAN = Plan.from_mapping(
    {
        "pipelines": [{"stages": [{"devices": [0]}, {"start": "b2", "devices": [1]}]}],
        "micro_batches": 4,
    }
).resolve(["d0", "d1"])


def test_they_are_predicted_per_device() -> None:
    given = simple([1.0, 1.0], activation=1000.0)
    leaking = replace(given.devices[1], holes_bytes=5000.0, holes_ratio=2.0)
    holey = replace(given, devices=(given.devices[0], leaking))
    before, after = (simulate(PLAN, p, rows=8).devices for p in (given, holey))
    assert after[0].peak_bytes == before[0].peak_bytes
    # two blocks, two rows of a micro-batch, the first of four leaves none
    extra = 5000 + 2.0 * 2 * 2 * 1000 * 0.75
    assert after[1].peak_bytes - before[1].peak_bytes == extra
    assert holey.from_json(holey.to_json()) == holey
    assert "memory besides tensors on d1: 5 kB' + 2' x what a micro-batch keeps" in str(holey)


def test_a_plan_that_would_not_fit_with_them_is_not_chosen() -> None:
    tight = simple([5.0, 1.0], mbit=1.0, activation=1e5, memory_bytes=4_000_000)
    leaking = tuple(replace(device, holes_bytes=4e5, holes_ratio=4.0) for device in tight.devices)
    holey = replace(tight, devices=leaking)
    assert not simulate(search(tight, rows=16).plan, holey, rows=16).fits
    assert search(holey, rows=16).prediction.fits


def test_training_shows_how_many_there_are() -> None:
    given = simple([1.0, 1.0], activation=1000.0, holes_bytes=6000.0, holes_ratio=1.0)
    before = simulate(PLAN, given, rows=8)
    peaks = {rank: device.peak_bytes for rank, device in before.devices.items()}
    holes = 6000 + 2 * 2 * 1000 * 0.75
    measured = dict.fromkeys(peaks, (1.0, 0.0))
    found = paces(given, PLAN, before, measured, {0: round(peaks[0] + holes), 1: None})
    assert found[0].holes == pytest.approx(2.0)
    assert found[1].holes is None
    better = refined(given, found)
    assert better.devices[0].holes_ratio == 2.0
    assert better.devices[0].provenance_of("holes_bytes") == "measured"
    assert better.devices[1].holes_bytes == 6000.0
    after = simulate(PLAN, better, rows=8)
    assert after.devices[0].peak_bytes == round(peaks[0] + holes)
    much = paces(given, PLAN, before, measured, {0: 10**9})
    assert much[0].holes == 4.0
