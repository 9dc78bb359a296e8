"""The arithmetic of the end-to-end benchmark, on numbers worked out by hand."""

import pytest

from benchmarks.contest import Block, Contestant
from benchmarks.devices import Reading
from benchmarks.entries import BOUND, Entry, portions
from benchmarks.throughput import judge


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        ([1, 1, 1], [3, 3, 2]),
        ([80, 40, 40], [4, 2, 2]),
        ([75, 25], [6, 2]),
        ([97, 1, 2], [6, 1, 1]),
    ],
)
def test_blocks_are_divided_by_speed_and_nobody_goes_without(weights, parts):
    assert portions(8, weights) == parts


def test_speeds_joules_and_bytes_are_those_of_the_devices_that_took_part():
    zero = [Reading(0.0, 0, 0.0)] * 2
    entries = [
        Entry(Contestant(BOUND, ""), (0, 1), 16),
        Entry(Contestant("fast", ""), (0,), 16),
        Entry(Contestant("both", ""), (0, 1), 16),
        Entry(Contestant("planned", ""), (0, 1), 16),
    ]
    blocks = {
        BOUND: [Block([8.0], [[4.0], [8.0]], (zero, zero))],
        "fast": [Block([4.0, 4.0], [], (zero, [Reading(6, 0, 240.0), Reading(0, 0, 999.0)]))],
        "both": [Block([3.0], [], (zero, [Reading(2, 10**6, 90.0), Reading(1, 10**6, 18.0)]))],
        "planned": [Block([8.0], [], (zero, [Reading(0, 0, 72.0), Reading(3, 0, 48.0)]))],
    }
    plan = {"pipelines": [{"stages": [{"devices": {"1": 1.0}}]}]}
    results = {"planned": ({"plan": plan, "predicted_s": 7.5, "losses": [1.0]}, 5)}
    outcomes = judge("gpt-10m", "100 Mbit/s", [75, 25], entries, blocks, results)
    bound, fast, both, planned = outcomes
    assert (bound.samples_per_s, fast.samples_per_s) == (6.0, 4.0)
    assert both.bound_ratios == [pytest.approx(16 / 3 / 6)]
    assert fast.joules_per_sample == pytest.approx(240 / 32)
    assert fast.dynamic_joules_per_sample == pytest.approx((240 - 9.0 * 8) / 32)
    assert both.joules_per_sample == pytest.approx(108 / 16)
    assert both.dynamic_joules_per_sample == pytest.approx((108 - 11.5 * 3) / 16)
    assert both.sent_bytes == 2e6
    assert (planned.working, planned.joules_per_sample) == (1, pytest.approx(48 / 16))
    assert (planned.predicted_s, planned.peak_bytes, planned.losses) == (7.5, 5, [1.0])
