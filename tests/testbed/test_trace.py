from __future__ import annotations

import numpy as np
import pytest

from lightning_edge.errors import TestbedError
from lightning_edge.testbed import Trace, load_trace
from lightning_edge.testbed.trace import SLOWEST_MBIT, wifi_indoors


def test_a_trace_is_a_staircase_that_repeats():
    trace = Trace((0.0, 1.0, 3.0), (10.0, 0.0, 40.0), 4.0, "stairs")
    times_s = (0.0, 0.99, 1.0, 2.9, 3.0, 3.9, 4.0, 5.5)
    rates = [trace.rate_mbit(time_s) for time_s in times_s]
    assert rates == [10.0, 10.0, SLOWEST_MBIT, SLOWEST_MBIT, 40.0, 40.0, 10.0, SLOWEST_MBIT]
    assert trace.mean_mbit == pytest.approx((10 + 2 * 0 + 40) / 4)


def test_a_file_starts_at_its_first_row(tmp_path):
    path = tmp_path / "walk.csv"
    path.write_text("t_s,mbit\n100,10\n101,20\n103,30\n")
    trace = load_trace(path)
    assert trace == Trace((0.0, 1.0, 3.0), (10.0, 20.0, 30.0), 5.0, str(path))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("t_s,mbit\n0,10\n1,fast\n", r":3: .*'fast'"),
        ("time,mbit\n0,10\n", "columns t_s and mbit"),
        ("t_s,mbit\n0,10\n0,20\n", ":3: t_s=0.0 does not rise"),
        ("t_s,mbit\n0,-1\n", ":2:"),
        ("t_s,mbit\n", "has no rows"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(tmp_path, text, told):
    (tmp_path / "walk.csv").write_text(text)
    with pytest.raises(TestbedError, match=told):
        load_trace(tmp_path / "walk.csv")


def test_a_missing_file_is_answered_with_what_could_be_written():
    with pytest.raises(TestbedError, match="100mbit, 'wifi-indoors', or the path"):
        load_trace("wifi-outdoors")


def test_the_made_wifi_has_the_measured_statistics():
    rates = np.array(wifi_indoors(duration_s=40_000).rates_mbit) / 8
    levels = np.percentile(rates, [5, 25, 50, 75, 95])
    assert levels == pytest.approx([2, 8, 10, 13, 18], rel=0.15)
    assert rates.mean() == pytest.approx(10.1, rel=0.1)
    deviations = rates - rates.mean()
    correlation = [(deviations[:-k] * deviations[k:]).mean() / rates.var() for k in (1, 10, 30)]
    assert correlation == pytest.approx([0.80, 0.69, 0.47], abs=0.08)
    assert load_trace("wifi-indoors") == wifi_indoors()
