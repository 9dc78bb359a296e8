"""End to end on the testbed: processes on emulated devices read their emulated meters."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_edge.energy import Provenance
from lightning_edge.energy.pool import Ledger

pytestmark = [pytest.mark.root, pytest.mark.multiproc]
HERE = Path(__file__).parent


@pytest.fixture
def testbed() -> Any:
    found = pytest.importorskip("lightning_edge.testbed")
    missing = found.missing_requirements()
    if missing:
        pytest.skip("; ".join(missing))
    return found


def test_each_device_counts_its_own_meter(testbed: Any) -> None:
    curves = {
        "big": testbed.PowerCurve(idle_w=2.0, busy_w=10.0),
        "small": testbed.PowerCurve(idle_w=1.0, busy_w=3.0),
    }
    devices = [testbed.DeviceSpec(name, cpu=0.5, power=curve) for name, curve in curves.items()]
    with testbed.Testbed(devices) as bed:
        result = bed.run([sys.executable, str(HERE / "testbed_device.py")], timeout_s=45)
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


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_fit_is_accounted_as_the_meters_have_it(testbed: Any, tmp_path: Path) -> None:
    """Two stages compute in turn: each device is busy, then waits, in stretches of 0.2 s."""
    curves = {
        "big": testbed.PowerCurve(idle_w=2.0, busy_w=10.0, joules_per_byte=0.0),
        "small": testbed.PowerCurve(idle_w=1.0, busy_w=4.0, joules_per_byte=0.0),
    }
    devices = [testbed.DeviceSpec(name, cpu=1.0, power=curve) for name, curve in curves.items()]
    with testbed.Testbed(devices) as bed:
        command = [sys.executable, str(HERE / "testbed_fit.py"), str(tmp_path)]
        result = bed.run(command, timeout_s=150, free_start=True).check()
    report = json.loads((tmp_path / "energy.json").read_text())["stages"]["train"]
    accounts = {rank["device"]: rank for rank in report["ranks"]}
    assert report["devices_measured"] == 0
    told_j = 0.0
    for name, curve in curves.items():
        said = next(x for x in result.devices[name].lines if x.startswith("FOUND"))
        meter = json.loads(said.split(" ", 2)[2])
        account = accounts[name]
        told_j += meter["energy_j"]
        # What the meter's counter moved by, from the first reading to the last.
        (domain,) = account["report"]["domains"].values()
        assert domain["energy_j"] == pytest.approx(meter["energy_j"], rel=1e-9)
        seconds, joules = account["phase_s"], account["phase_j"]
        assert joules is not None, account["phase_note"]
        assert sum(joules.values()) == pytest.approx(meter["energy_j"], rel=1e-9)
        # By construction: busy while it computes (as far as others leave it the core), else idle.
        share = min(meter["cpu_s"] / seconds["compute"], 1.0)
        busy_w = curve.idle_w + share * (curve.busy_w - curve.idle_w)
        assert joules["compute"] / seconds["compute"] == pytest.approx(busy_w, rel=0.15)
        assert joules["waiting"] / seconds["waiting"] == pytest.approx(curve.idle_w, rel=0.35)
    assert report["energy_j"] == pytest.approx(told_j, rel=1e-9)
