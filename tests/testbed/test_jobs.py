"""Real multi-process jobs on the testbed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lightning_edge.testbed import DeviceSpec, Testbed

pytestmark = [pytest.mark.root, pytest.mark.multiproc, pytest.mark.slow]

REDUCE = str(Path(__file__).parent / "programs" / "reduce.py")


@pytest.mark.timeout(180)
def test_gloo_runs_at_the_rate_of_the_slowest_link():
    """An all-reduce of 1 MB between two devices takes each of them 1 MB in and 1 MB out."""
    with Testbed([DeviceSpec("fast"), DeviceSpec("slow", link_mbit=16.0)]) as bed:
        result = bed.run([sys.executable, REDUCE, "5"], timeout_s=150).check()
    for device in result.devices.values():
        assert device.lines[-1] == "sum 3"
        assert device.steps == 5
        assert device.step_s == pytest.approx(8e6 / 16e6, rel=0.35)
        assert 5e6 < device.sent_bytes < 6e6
        assert 5e6 < device.received_bytes < 6e6


@pytest.mark.timeout(180)
def test_the_others_notice_that_a_device_died():
    with Testbed([DeviceSpec("a"), DeviceSpec("b"), DeviceSpec("c")]) as bed:
        result = bed.run(
            [sys.executable, REDUCE, "1000"], faults=["kill:b@step3"], timeout_s=150, grace_s=60
        )
    assert result.devices["b"].outcome == "killed"
    for name in ("a", "c"):
        device = result.devices[name]
        assert device.outcome == "failed"
        assert device.steps < 1000
        assert any("Connection" in line or "Timed out" in line for line in device.lines)
