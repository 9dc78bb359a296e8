"""Limits through the unified hierarchy of cgroup v2."""

from __future__ import annotations

from pathlib import Path

from lightning_edge.errors import TestbedError
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


class CgroupsV2(Cgroups):
    """One tree for all controllers.

    Args:
        root: Where cgroup2 is mounted.
    """

    version = 2

    def __init__(self, root: Path) -> None:
        self._root = root

    def reserve(self, name: str) -> None:
        self._make(name)
        write(self._root / ROOT_NAME / "cpu.weight", 100 * WEIGHT)

    def create(self, name: str) -> Group:
        return GroupV2(self._make(name))

    def _make(self, name: str) -> Path:
        # A controller has to be handed down through every level above the group.
        above, folder = self._root, self._root / ROOT_NAME / name
        for part in folder.relative_to(self._root).parts:
            control = above / "cgroup.subtree_control"
            if not {"cpu", "memory"} <= set(control.read_text().split()):
                self._hand_down(control)
            above = above / part
            above.mkdir(exist_ok=True)
        return folder

    def _hand_down(self, control: Path) -> None:
        try:
            write(control, "+cpu +memory")
        except TestbedError as error:
            raise TestbedError(
                f"{error}. cgroup v2 limits nothing below a group that holds processes itself; in "
                "a container start it with --cgroupns=host, or run the testbed on the host"
            ) from None

    def folders(self, name: str) -> tuple[Path, ...]:
        return (self._root / ROOT_NAME / name,)


class GroupV2(Group):
    """One folder for everything."""

    def __init__(self, folder: Path) -> None:
        self._at = folder
        self.procs_files = (folder / "cgroup.procs",)

    def limit_cores(self, cores: float | None) -> None:
        period, quota = (100_000, "max") if cores is None else period_and_quota_us(cores)
        write(self._at / "cpu.max", f"{quota} {period}")

    def limit_memory(self, limit_bytes: int | None) -> None:
        write(self._at / "memory.max", "max" if limit_bytes is None else limit_bytes)
        swap = self._at / "memory.swap.max"
        if swap.exists():  # only where the kernel accounts swap
            write(swap, "max" if limit_bytes is None else 0)

    def freeze(self, frozen: bool) -> None:
        write(self._at / "cgroup.freeze", int(frozen))

    def cpu_s(self) -> float:
        return keyed(self._at / "cpu.stat", "usage_usec") / 1e6

    def throttled_s(self) -> float:
        return keyed(self._at / "cpu.stat", "throttled_usec") / 1e6

    def memory_peak_bytes(self) -> int:
        for name in ("memory.peak", "memory.current"):  # memory.peak since Linux 5.19
            path = self._at / name
            if path.exists():
                return int(path.read_text())
        return 0

    def anonymous_bytes(self) -> int:
        return keyed(self._at / "memory.stat", "anon")

    def oom_kills(self) -> int:
        return keyed(self._at / "memory.events", "oom_kill")
