"""Limits through the separate controllers of cgroup v1."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lightning_edge.testbed.cgroups import (
    ROOT_NAME,
    WEIGHT,
    Cgroups,
    Group,
    keyed,
    period_and_quota_us,
    write,
)

__all__: list[str] = []


class CgroupsV1(Cgroups):
    """Controllers, each mounted by itself or with others.

    Args:
        mounts: Where each controller of `NEEDED` is mounted.
    """

    version = 1
    NEEDED = ("freezer", "cpu", "cpuacct", "memory")  # first: frozen processes die after thawing

    def __init__(self, mounts: Mapping[str, Path]) -> None:
        self._mounts = dict(mounts)

    def reserve(self, name: str) -> None:
        for folder in self.folders(name):
            folder.mkdir(parents=True, exist_ok=True)
        write(self._mounts["cpu"] / ROOT_NAME / "cpu.shares", 1024 * WEIGHT)

    def create(self, name: str) -> Group:
        for folder in self.folders(name):
            folder.mkdir(parents=True, exist_ok=True)
        return GroupV1({key: self._mounts[key] / ROOT_NAME / name for key in self.NEEDED})

    def folders(self, name: str) -> tuple[Path, ...]:
        roots = dict.fromkeys(self._mounts[key] for key in self.NEEDED)
        return tuple(root / ROOT_NAME / name for root in roots)


class GroupV1(Group):
    """One folder per controller."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._at = dict(folders)
        self.procs_files = tuple(
            dict.fromkeys(folder / "cgroup.procs" for folder in self._at.values())
        )

    def limit_cores(self, cores: float | None) -> None:
        if cores is None:
            write(self._at["cpu"] / "cpu.cfs_quota_us", -1)
            return
        period, quota = period_and_quota_us(cores)
        # Quota off first: the kernel checks each new pair as it stands after every single write.
        write(self._at["cpu"] / "cpu.cfs_quota_us", -1)
        write(self._at["cpu"] / "cpu.cfs_period_us", period)
        write(self._at["cpu"] / "cpu.cfs_quota_us", quota)

    def limit_memory(self, limit_bytes: int | None) -> None:
        limit = -1 if limit_bytes is None else limit_bytes
        write(self._at["memory"] / "memory.limit_in_bytes", limit)
        with_swap = self._at["memory"] / "memory.memsw.limit_in_bytes"
        if with_swap.exists():  # only where the kernel accounts swap
            write(with_swap, limit)

    def freeze(self, frozen: bool) -> None:
        write(self._at["freezer"] / "freezer.state", "FROZEN" if frozen else "THAWED")

    def cpu_s(self) -> float:
        return int((self._at["cpuacct"] / "cpuacct.usage").read_text()) / 1e9

    def throttled_s(self) -> float:
        return keyed(self._at["cpu"] / "cpu.stat", "throttled_time") / 1e9

    def memory_peak_bytes(self) -> int:
        return int((self._at["memory"] / "memory.max_usage_in_bytes").read_text())

    def anonymous_bytes(self) -> int:
        return keyed(self._at["memory"] / "memory.stat", "total_rss")

    def oom_kills(self) -> int:
        return keyed(self._at["memory"] / "memory.oom_control", "oom_kill")
