from __future__ import annotations

import pytest

from lightning_edge.testbed import PowerCurve


def test_watts_lie_on_a_line_between_idle_and_busy():
    curve = PowerCurve(2.0, 8.0, joules_per_byte=0.0)
    assert [curve.joules(load, 1.0, 0) for load in (0.0, 0.5, 1.0)] == [2.0, 5.0, 8.0]


def test_more_than_all_is_all():
    # CPU time is counted in ticks, so a short sample may show a little too much or too little.
    curve = PowerCurve(2.0, 8.0)
    assert curve.joules(1.3, 2.0, 0) == 16.0
    assert curve.joules(-0.1, 2.0, 0) == 4.0


def test_bytes_cost_what_the_radio_needs():
    assert PowerCurve(0.0, 1.0).joules(0.0, 5.0, 1e6) == pytest.approx(0.03)
