"""Quotas and limits as the kernel enforces them; its own counters say whether they hold."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from lightning_edge.testbed import DeviceSpec, PowerCurve, Testbed
from lightning_edge.testbed.cgroup_mounts import find_cgroups
from lightning_edge.testbed.cgroup_v2 import GroupV2

pytestmark = [pytest.mark.thorough, pytest.mark.root, pytest.mark.multiproc]

PROGRAMS = Path(__file__).parent / "programs"
BURN, EAT = str(PROGRAMS / "burn.py"), str(PROGRAMS / "eat.py")
MIB = 2**20


def periods(bed: Testbed, name: str) -> tuple[int, int, float]:
    """Periods in which a device ran and in which it was held back, and CPU seconds, till now."""
    assert bed._slot is not None
    folders = find_cgroups().folders(bed._slot.group(f"{name}-0"))
    stat = next(folder / "cpu.stat" for folder in folders if (folder / "cpu.max").exists()
                or (folder / "cpu.cfs_quota_us").exists())  # fmt: skip
    values = dict(line.split() for line in stat.read_text().splitlines())
    group = find_cgroups().create(bed._slot.group(f"{name}-0"))
    return int(values["nr_periods"]), int(values["nr_throttled"]), group.cpu_s()


def test_a_device_gets_its_quota_and_no_more():
    """Whoever else uses this machine: a period that was cut off had its whole quota, no period
    had more. So the CPU time per period lies between the two, each within a tenth."""
    quotas = {"strong": 0.4, "weak": 0.08}
    seen: dict[str, list[tuple[int, int, float]]] = {name: [] for name in quotas}
    with Testbed([DeviceSpec(name, cpu=quota) for name, quota in quotas.items()]) as bed:

        def look() -> None:
            for moment_s in (0.8, 2.6):
                time.sleep(moment_s - time.monotonic() + start_s)
                for name in quotas:
                    seen[name].append(periods(bed, name))

        start_s = time.monotonic()
        watcher = threading.Thread(target=look)
        watcher.start()
        result = bed.run([sys.executable, BURN, "3"], timeout_s=50).check()
        watcher.join()
    for name, quota in quotas.items():
        (ran, cut, used_s), (ran_later, cut_later, used_later_s) = seen[name]
        used_s, quota_s = used_later_s - used_s, quota * 0.02
        assert cut_later - cut > 10, "the quota never mattered"
        assert used_s <= 1.1 * quota_s * (ran_later - ran)
        assert used_s >= 0.9 * quota_s * (cut_later - cut)
        device = result.devices[name]
        assert device.cpu_s <= 1.1 * quota * device.seconds
        assert device.throttled_s > 0


def test_a_device_gets_its_memory_and_no_more():
    specs = [DeviceSpec("small", memory_bytes=100 * MIB), DeviceSpec("large", memory_bytes=2**30)]
    with Testbed(specs) as bed:
        program = f"import runpy, os\nif os.environ['RANK'] == '0': runpy.run_path({EAT!r})"
        result = bed.run([sys.executable, "-c", program], timeout_s=50)
    small, large = result.devices.values()
    assert (small.outcome, large.outcome) == ("out of memory", "ok")
    assert not result.ok
    # The interpreter itself takes some 8 MiB of it.
    assert 0.9 * 100 <= int(small.lines[-1]) + 8 <= 1.1 * 100
    assert 0.9 * 100 * MIB <= small.memory_peak_bytes <= 1.01 * 100 * MIB
    assert small.anonymous_peak_bytes <= small.memory_peak_bytes
    assert large.memory_peak_bytes < 60 * MIB


def test_joules_follow_cpu_time_and_bytes():
    curve = PowerCurve(2.0, 10.0, joules_per_byte=0.0)
    specs = [DeviceSpec("busy", cpu=0.2, power=curve), DeviceSpec("idle", cpu=0.2, power=curve)]
    with Testbed([*specs, DeviceSpec("none", cpu=0.2)]) as bed:
        program = (
            f"import runpy, sys, os, time\nsys.argv[1:] = ['2']\n"
            f"runpy.run_path({BURN!r}) if os.environ['RANK'] == '0' else time.sleep(2)\n"
            "folder = os.environ.get('LIGHTNING_EDGE_METER_DIR')\n"
            "print(folder and int(open(folder + '/energy_uj').read()) / 1e6)\n"
        )
        result = bed.run([sys.executable, "-c", program], timeout_s=50).check()
    busy, idle, none = result.devices.values()
    for device in (busy, idle):
        # Each is on from the start of the run to the end of the last device.
        expected_j = 2.0 * result.seconds + 8.0 * device.cpu_s / 0.2
        assert device.energy_j == pytest.approx(expected_j, rel=0.1)
        seen_j = float(device.lines[-1])  # what the device itself can read, a moment earlier
        assert 0.5 * expected_j < seen_j <= device.energy_j
        assert device.energy_source == "emulated; given by the user"
    assert busy.energy_j > 1.5 * idle.energy_j
    assert none.energy_j is None
    assert none.lines[-1] == "None"
    assert "no power curve" in none.energy_source


def test_cgroup_v2_freezes_and_kills_on_a_real_kernel():
    """Which needs no controller, so it can be tried wherever cgroup2 is mounted at all."""
    import subprocess

    rows = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    roots = [Path(row[1]) for row in rows if row[2] == "cgroup2"]
    if not roots:
        pytest.skip("cgroup2 is not mounted")
    folder = roots[0] / "lightning-edge-test"
    folder.mkdir()
    victim = subprocess.Popen([sys.executable, BURN, "60"])
    try:
        group = GroupV2(folder)
        group.procs_files[0].write_text(str(victim.pid))
        deadline_s = time.monotonic() + 20
        while group.cpu_s() < 0.1 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert group.cpu_s() >= 0.1
        group.freeze(True)
        while "frozen 1" not in (folder / "cgroup.events").read_text():
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        frozen_s = group.cpu_s()
        time.sleep(0.2)
        assert group.cpu_s() == frozen_s
        group.kill()
        assert victim.wait(5) == -9
    finally:
        victim.kill()
        victim.wait()
        folder.rmdir()
