"""End to end on the testbed: processes on emulated devices read their emulated meters."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from lightning_edge.energy import Provenance
from lightning_edge.energy.pool import Ledger

pytestmark = [pytest.mark.root, pytest.mark.multiproc]


def test_each_device_counts_its_own_meter() -> None:
    testbed = pytest.importorskip("lightning_edge.testbed")
    missing = testbed.missing_requirements()
    if missing:
        pytest.skip("; ".join(missing))
    curves = {
        "big": testbed.PowerCurve(idle_w=2.0, busy_w=10.0),
        "small": testbed.PowerCurve(idle_w=1.0, busy_w=3.0),
    }
    devices = [testbed.DeviceSpec(name, cpu=0.5, power=curve) for name, curve in curves.items()]
    script = str(Path(__file__).parent / "testbed_device.py")
    with testbed.Testbed(devices) as bed:
        result = bed.run([sys.executable, script], timeout_s=45)
        result.check()
    lines = {name: device.lines for name, device in result.devices.items()}
    found = {
        name: [json.loads(line.partition(" ")[2]) for line in said[-2:]]
        for name, said in lines.items()
    }
    pool = Ledger().update([account for account, _ in found.values()])
    assert pool.measured_j == 0.0  # emulated is never called measured
    assert pool.devices_measured == 0
    assert len({key for owned in pool.owned.values() for key in owned}) == 2  # one host, two meters
    for account in pool.accounts:
        assert list(account.report.by_provenance) == [Provenance.EMULATED]
        # A part of what the testbed counted from the process's start to its end.
        whole_j = result.devices[account.device].energy_j
        assert whole_j is not None
        assert 0.0 < (account.report.energy_j or 0.0) <= whole_j * 1.01
    for name, (_, (busy_w, quiet_w)) in found.items():
        curve = curves[name]
        # The meter moves every 50 ms: 10 % of a second, at both ends together.
        assert 0.85 * curve.idle_w <= quiet_w < busy_w <= 1.15 * curve.busy_w
