from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lightning_edge.errors import TestbedError
from lightning_edge.testbed.cgroup_mounts import find_cgroups
from lightning_edge.testbed.cgroup_v1 import CgroupsV1
from lightning_edge.testbed.cgroup_v2 import CgroupsV2
from lightning_edge.testbed.cgroups import kill_group, period_and_quota_us

FILES_V1 = {
    "cpu": {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"},
    "cpuacct": {"cpuacct.usage": "2500000000"},
    "memory": {
        "memory.limit_in_bytes": "9223372036854771712",
        "memory.max_usage_in_bytes": "123456",
        "memory.stat": "cache 5\nrss 7\ntotal_cache 5\ntotal_rss 4096\n",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    },
    "freezer": {"freezer.state": "THAWED"},
}
FILES_V2 = {
    "cpu.max": "max 100000",
    "cpu.stat": "usage_usec 2500000\nuser_usec 1\nthrottled_usec 1500000\n",
    "memory.max": "max",
    "memory.swap.max": "max",
    "memory.current": "1000",
    "memory.peak": "123456",
    "memory.stat": "anon 4096\nfile 5\n",
    "memory.events": "low 0\noom 3\noom_kill 2\n",
    "cgroup.freeze": "0",
    "cgroup.procs": "",
}


def fill(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


@pytest.fixture
def v1(tmp_path):
    """A faked tree as of old Debian: cpu and cpuacct mounted together."""
    mounts = {
        "cpu": tmp_path / "cpu,cpuacct",
        "cpuacct": tmp_path / "cpu,cpuacct",
        "memory": tmp_path / "memory",
        "freezer": tmp_path / "freezer",
    }
    CgroupsV1(mounts).reserve("3")
    group = CgroupsV1(mounts).create("3/pi")
    for controller, files in FILES_V1.items():
        fill(mounts[controller] / "lightning-edge-testbed/3/pi", files)
    (mounts["cpu"] / "lightning-edge-testbed/3/pi/cpu.stat").write_text(
        "nr_periods 9\nnr_throttled 5\nthrottled_time 1500000000\n"
    )
    return mounts, group


@pytest.fixture
def v2(tmp_path):
    root = tmp_path / "cgroup"
    for folder in (root, root / "lightning-edge-testbed", root / "lightning-edge-testbed/3"):
        fill(folder, {"cgroup.subtree_control": "", "cgroup.controllers": "cpu io memory pids"})
    CgroupsV2(root).reserve("3")
    group = CgroupsV2(root).create("3/pi")
    fill(root / "lightning-edge-testbed/3/pi", FILES_V2)
    return root, group


def test_v1_writes_where_each_controller_is(v1):
    mounts, group = v1
    at = {key: folder / "lightning-edge-testbed/3/pi" for key, folder in mounts.items()}
    group.limit_cores(0.6)
    assert (at["cpu"] / "cpu.cfs_period_us").read_text() == "20000"
    assert (at["cpu"] / "cpu.cfs_quota_us").read_text() == "12000"
    group.limit_cores(None)
    assert (at["cpu"] / "cpu.cfs_quota_us").read_text() == "-1"
    group.limit_memory(2**30)
    assert (at["memory"] / "memory.limit_in_bytes").read_text() == str(2**30)
    assert not (at["memory"] / "memory.memsw.limit_in_bytes").exists()
    group.freeze(True)
    assert (at["freezer"] / "freezer.state").read_text() == "FROZEN"
    group.freeze(False)
    assert (at["freezer"] / "freezer.state").read_text() == "THAWED"
    assert len(group.procs_files) == 3  # two controllers share one folder


def test_all_testbeds_together_weigh_more_than_a_process(v1, v2):
    assert (v1[0]["cpu"] / "lightning-edge-testbed/cpu.shares").read_text() == "16384"
    assert (v2[0] / "lightning-edge-testbed/cpu.weight").read_text() == "1600"


def test_v1_limits_swap_where_the_kernel_accounts_it(v1):
    mounts, group = v1
    swap = mounts["memory"] / "lightning-edge-testbed/3/pi/memory.memsw.limit_in_bytes"
    swap.write_text("9223372036854771712")
    group.limit_memory(4096)
    assert swap.read_text() == "4096"


def test_v2_writes_into_one_folder(v2):
    root, group = v2
    folder = root / "lightning-edge-testbed/3/pi"
    group.limit_cores(0.6)
    assert (folder / "cpu.max").read_text() == "12000 20000"
    group.limit_cores(None)
    assert (folder / "cpu.max").read_text() == "max 100000"
    group.limit_memory(2**30)
    assert (folder / "memory.max").read_text() == str(2**30)
    assert (folder / "memory.swap.max").read_text() == "0"
    group.freeze(True)
    assert (folder / "cgroup.freeze").read_text() == "1"
    assert group.procs_files == (folder / "cgroup.procs",)


def test_v2_hands_its_controllers_down_every_level(v2):
    root, _ = v2
    for folder in (root, root / "lightning-edge-testbed", root / "lightning-edge-testbed/3"):
        assert (folder / "cgroup.subtree_control").read_text() == "+cpu +memory"


def test_v2_explains_why_controllers_cannot_be_handed_down(tmp_path, monkeypatch):
    fill(tmp_path, {"cgroup.subtree_control": "io"})

    def refuse(path: Path, text: str) -> int:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(TestbedError, match=r"cannot write \+cpu \+memory .* busy.*--cgroupns=host"):
        CgroupsV2(tmp_path).create("3/pi")


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_both_versions_read_the_same_figures(version, request):
    _, group = request.getfixturevalue(version)
    assert group.cpu_s() == 2.5
    assert group.throttled_s() == 1.5
    assert group.memory_peak_bytes() == 123456
    assert group.anonymous_bytes() == 4096
    assert group.oom_kills() == 2


def test_v2_without_a_recorded_peak_reads_what_is_used_now(v2):
    root, group = v2
    (root / "lightning-edge-testbed/3/pi/memory.peak").unlink()
    assert group.memory_peak_bytes() == 1000


@pytest.mark.parametrize(
    ("cores", "period_us", "quota_us"),
    [(0.6, 20_000, 12_000), (2.5, 20_000, 50_000), (0.05, 20_000, 1_000), (0.004, 250_000, 1_000)],
)
def test_small_quotas_take_long_periods(cores, period_us, quota_us):
    assert period_and_quota_us(cores) == (period_us, quota_us)


def test_a_quota_that_the_kernel_cannot_enforce_is_refused():
    with pytest.raises(TestbedError, match=r"0\.050% of a core"):
        period_and_quota_us(0.0005)


def test_the_mounted_version_is_found(tmp_path):
    fill(tmp_path / "unified", {"cgroup.controllers": "hugetlb"})
    v1 = "".join(
        f"cgroup {tmp_path}/{name} cgroup rw,relatime,{name} 0 0\n"
        for name in ("cpu,cpuacct", "memory", "freezer")
    )
    hybrid = f"tmpfs /run tmpfs rw 0 0\ncgroup2 {tmp_path}/unified cgroup2 rw 0 0\n{v1}"
    found = find_cgroups(hybrid)
    assert isinstance(found, CgroupsV1)
    assert [folder.relative_to(tmp_path).parts[0] for folder in found.folders("3")] == [
        "freezer",  # first, because frozen processes die only after thawing
        "cpu,cpuacct",
        "memory",
    ]
    (tmp_path / "unified/cgroup.controllers").write_text("cpuset cpu io memory")
    assert isinstance(find_cgroups(hybrid), CgroupsV2)


def test_a_machine_without_controllers_is_told_which(tmp_path):
    mounts = f"cgroup {tmp_path}/cpu cgroup rw,cpu,cpuacct 0 0\n"
    with pytest.raises(TestbedError, match="these are not mounted: freezer, memory"):
        find_cgroups(mounts)


def test_killing_goes_on_until_the_group_is_empty(tmp_path):
    """The list of processes is a plain file here, so a thread that watches plays the kernel."""
    victim = subprocess.Popen(["sleep", "100"])
    (tmp_path / "cgroup.freeze").write_text("1")
    procs = tmp_path / "cgroup.procs"
    procs.write_text(f"{victim.pid}\n")

    class Procs(type(procs)):  # type: ignore[misc]
        def __truediv__(self, name: str) -> Path:
            if victim.poll() is not None:
                procs.write_text("")
            return Path(str(self)) / name

    kill_group(Procs(tmp_path))
    assert victim.wait(10) == -9
    assert (tmp_path / "cgroup.freeze").read_text() == "0"
