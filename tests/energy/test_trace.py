from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_edge.energy.trace import Trace

STEPS = st.lists(
    st.tuples(
        st.floats(0.001, 10.0),  # seconds since the reading before
        st.floats(0.0, 1e4),  # joules or watts
        st.sampled_from(["ok", "ok", "ok", "dropout", "restart"]),
    ),
    min_size=1,
    max_size=40,
)
TIMES = st.lists(st.floats(-5.0, 420.0), min_size=3, max_size=3).map(sorted)


def counter_trace(steps: list[tuple[float, float, str]]) -> tuple[Trace, float, float]:
    """A trace, the joules that a counter told, and the time of the last reading."""
    trace, t, value, told = Trace(), 0.0, 1e6, 0.0
    pending, first = 0.0, True
    for wait_s, joules, fate in steps:
        t += wait_s
        value += joules
        pending += joules
        if fate == "dropout":
            continue
        if fate == "restart":
            value, pending = joules, 0.0
        broken = fate == "restart"
        trace.add_counter(t, value, broken=broken)
        told += 0.0 if first or broken else pending
        pending, first = 0.0, False
    return trace, told, t


@given(STEPS)
def test_a_counter_loses_and_invents_nothing(steps: list[tuple[float, float, str]]) -> None:
    trace, told, end_s = counter_trace(steps)
    assert trace.between(-1.0, end_s + 1.0).energy_j == pytest.approx(told, abs=1e-6)


@given(STEPS, TIMES, st.booleans())
def test_adjoining_windows_add_up(
    steps: list[tuple[float, float, str]], times: list[float], counter: bool
) -> None:
    trace = counter_trace(steps)[0] if counter else power_trace(steps)
    a, b, c = times
    whole, left, right = trace.between(a, c), trace.between(a, b), trace.between(b, c)
    assert left.energy_j + right.energy_j == pytest.approx(whole.energy_j, abs=1e-6)
    assert left.covered_s + right.covered_s == pytest.approx(whole.covered_s, abs=1e-9)


def power_trace(steps: list[tuple[float, float, str]], gap_s: float = 5.0) -> Trace:
    trace, t = Trace(), 0.0
    for wait_s, power_w, fate in steps:
        t += wait_s
        if fate != "dropout":
            trace.add_power(t, power_w, gap_s=gap_s)
    return trace


@given(STEPS, TIMES, st.booleans())
def test_never_negative_nor_nan_nor_more_than_covered(
    steps: list[tuple[float, float, str]], times: list[float], counter: bool
) -> None:
    trace = counter_trace(steps)[0] if counter else power_trace(steps)
    a, _, c = times
    part = trace.between(a, c, min_s=0.1)
    assert part.energy_j >= 0.0
    assert math.isfinite(part.energy_j)
    assert 0.0 <= part.covered_s <= c - a
    assert part.max_power_w is None or part.max_power_w >= 0.0
    if part.covered_s == 0.0 and not counter:
        assert part.energy_j == 0.0


@given(STEPS)
def test_dropouts_of_a_sensor_lower_coverage_and_never_raise_energy_above_the_peak(
    steps: list[tuple[float, float, str]],
) -> None:
    trace = power_trace(steps)
    end_s = sum(step[0] for step in steps)
    part = trace.between(0.0, end_s)
    peak_w = max((power for _, power, fate in steps if fate != "dropout"), default=0.0)
    assert part.energy_j <= peak_w * part.covered_s + 1e-6
    full = power_trace([(wait, power, "ok") for wait, power, _ in steps])
    assert part.covered_s <= full.between(0.0, end_s).covered_s + 1e-9


@given(STEPS, TIMES)
def test_thinning_changes_no_window_that_is_kept(
    steps: list[tuple[float, float, str]], times: list[float]
) -> None:
    trace = power_trace(steps)
    a, b, c = times
    before = [trace.at(t) for t in (a, b, c)]
    whole = trace.at(1e9)
    for _ in range(4):
        trace.thin([a, b, c], limit=4)
    for t, (energy_j, covered_s) in zip((a, b, c), before, strict=True):
        assert trace.at(t) == (pytest.approx(energy_j), pytest.approx(covered_s))
    assert trace.at(1e9) == whole


def test_thinning_bounds_the_memory() -> None:
    trace = Trace()
    for i in range(5000):
        trace.add_power(0.1 * i, 5.0, gap_s=1.0)
        trace.thin([3.0], limit=100)
    assert len(trace) <= 102
    assert trace.between(3.0, 0.1 * 4999).energy_j == pytest.approx(5.0 * (0.1 * 4999 - 3.0))


def test_trapezoid_and_gap_by_hand() -> None:
    trace = Trace()
    for t, power_w in ((0.0, 2.0), (1.0, 4.0), (1.5, 4.0), (9.0, 8.0), (10.0, 8.0)):
        trace.add_power(t, power_w, gap_s=2.0)
    whole = trace.between(0.0, 10.0)
    assert whole.energy_j == pytest.approx(3.0 + 2.0 + 8.0)
    assert whole.covered_s == pytest.approx(2.5)
    assert trace.between(3.0, 8.0).covered_s == 0.0
    assert trace.between(0.5, 1.0).energy_j == pytest.approx(1.5)  # linear inside a stretch


def test_a_counter_read_twice_within_a_step_is_no_peak() -> None:
    trace = Trace()
    for t, joules in ((0.0, 0.0), (0.099, 0.0), (0.1, 5.0), (0.2, 10.0)):
        trace.add_counter(t, joules)
    assert trace.between(0.0, 0.2).max_power_w == pytest.approx(5000.0)
    assert trace.between(0.0, 0.2, min_s=0.1).max_power_w == pytest.approx(50.0)


def test_falling_counter_is_told() -> None:
    trace = Trace()
    assert not trace.add_counter(0.0, 100.0)
    assert not trace.add_counter(1.0, 105.0)
    assert trace.add_counter(2.0, 3.0)
    assert not trace.add_counter(3.0, 4.0)
    part = trace.between(0.0, 3.0)
    assert (part.energy_j, part.covered_s) == (pytest.approx(6.0), pytest.approx(2.0))


def test_a_second_reading_at_one_time_is_made_up_for_by_the_next() -> None:
    trace = Trace()
    for t, joules in ((0.0, 0.0), (0.0, 1.0), (1.0, 3.0), (1.0, 4.0), (2.0, 6.0)):
        trace.add_counter(t, joules)
    assert trace.between(0.0, 2.0).energy_j == pytest.approx(6.0)
    assert trace.between(0.0, 1.0).energy_j == pytest.approx(3.0)


def test_samples_are_kept_as_they_came() -> None:
    trace = Trace()
    for t in range(5):
        trace.add_power(float(t), 10.0 + t, gap_s=2.0)
    times, powers = trace.samples(1.0, 3.0)
    assert list(times) == [1.0, 2.0, 3.0]
    assert list(powers) == [11.0, 12.0, 13.0]


def test_empty_trace_knows_nothing() -> None:
    part = Trace().between(0.0, 10.0)
    assert (part.energy_j, part.covered_s, part.max_power_w) == (0.0, 0.0, None)
