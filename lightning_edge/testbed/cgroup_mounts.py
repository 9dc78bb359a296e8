"""Where this machine limits CPU and memory: cgroup v2, or the controllers of cgroup v1."""

from __future__ import annotations

from pathlib import Path

from lightning_edge.errors import TestbedError
from lightning_edge.testbed.cgroup_v1 import CgroupsV1
from lightning_edge.testbed.cgroup_v2 import CgroupsV2
from lightning_edge.testbed.cgroups import Cgroups

__all__: list[str] = []


def find_cgroups(mounts: str | None = None) -> Cgroups:
    """Return the version this machine limits with.

    Args:
        mounts: Text in the form of /proc/mounts, that file by default.

    Raises:
        TestbedError: If cpu, memory or freezing cannot be controlled here; says what is mounted.
    """
    text = Path("/proc/mounts").read_text() if mounts is None else mounts
    rows = [line.split() for line in text.splitlines() if len(line.split()) >= 4]
    for row in rows:
        if row[2] == "cgroup2":
            root = Path(row[1])
            if {"cpu", "memory"} <= _controllers(root):
                return CgroupsV2(root)
    found = {
        option: Path(row[1])
        for row in rows
        if row[2] == "cgroup"
        for option in row[3].split(",")
        if option in CgroupsV1.NEEDED
    }
    missing = [name for name in CgroupsV1.NEEDED if name not in found]
    if missing:
        raise TestbedError(
            f"cgroups cannot limit devices here: no cgroup2 mount offers cpu and memory, and of "
            f"cgroup v1 these are not mounted: {', '.join(missing)}"
        )
    return CgroupsV1(found)


def _controllers(root: Path) -> set[str]:
    try:
        return set((root / "cgroup.controllers").read_text().split())
    except OSError:
        return set()
