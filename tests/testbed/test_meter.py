from __future__ import annotations

import json
import os
import time

import pytest

from lightning_edge.testbed import PowerCurve
from lightning_edge.testbed.meter import Meter


@pytest.fixture
def meter(tmp_path):
    curve = PowerCurve(2.0, 8.0, joules_per_byte=1e-6, rel_uncertainty=0.4, source="a table")
    made = Meter(tmp_path, device="pi", board="pi5", curve=curve, update_period_s=0.05)
    yield made
    made.close()


def test_it_says_that_it_is_emulated(meter, tmp_path):
    assert json.loads((tmp_path / "meter.json").read_text()) == {
        "format": 1,
        "emulated": True,
        "device": "pi",
        "board": "pi5",
        "idle_w": 2.0,
        "busy_w": 8.0,
        "joules_per_byte": 1e-6,
        "update_period_s": 0.05,
        "rel_uncertainty": 0.4,
        "source": "a table",
    }


def test_joules_add_up_in_files_that_stay_open(meter, tmp_path):
    names = ("energy_uj", "power_w", "time_s")
    files = {name: os.open(tmp_path / name, os.O_RDONLY) for name in names}

    def read() -> list[float]:
        texts = [os.pread(files[name], 64, 0) for name in names]
        assert [len(text) for text in texts] == [21, 21, 21]
        return [float(text) for text in texts]

    try:
        energy_uj, power_w, time_s = read()
        assert (energy_uj, power_w) == (0, 2.0)
        assert time_s == pytest.approx(time.monotonic(), abs=5)
        meter.update(0.5, 2.0, 1e6, now_s=100.0)  # 5 W for 2 s, and 1 J for the bytes
        assert read() == [11e6, 5.5, 100.0]
        meter.update(0.0, 0.5, 0.0, now_s=100.5)
        assert read() == [12e6, 2.0, 100.5]
        assert meter.joules == 12.0
    finally:
        for descriptor in files.values():
            os.close(descriptor)
