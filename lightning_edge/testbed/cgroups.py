"""What a control group does for a device, whichever version of them the kernel has mounted."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from abc import ABC, abstractmethod
from pathlib import Path

from lightning_edge.errors import TestbedError

__all__: list[str] = []

ROOT_NAME = "lightning-edge-testbed"

# Short enough that a step of a training is not chopped up, long enough for an accurate quota: at
# 20 ms a 60 % quota gave 59.0 % and a 5 % quota 5.06 % (kernel 6.18, 250 Hz); 10 ms gave 56 %.
_PERIOD_US = 20_000
_LEAST_QUOTA_US = 1_000  # the kernel refuses less
_LONGEST_PERIOD_US = 1_000_000

# A quota is a promise: all testbeds together weigh as much as this many ordinary processes, so that
# a device gets what it is allowed although other programs run beside it.
WEIGHT = 16

KILL_S = 10.0  # for a killed process to be gone


class Group(ABC):
    """The processes of one device, and what the kernel lets them have.

    All figures count since the group was made.
    """

    #: A process that writes its id into each of these files is in the group.
    procs_files: tuple[Path, ...]

    @abstractmethod
    def limit_cores(self, cores: float | None) -> None:
        """Allow that many cores (0.6 = 60 % of one), or any number."""

    @abstractmethod
    def limit_memory(self, limit_bytes: int | None) -> None:
        """Allow that many bytes, swap included, or any number."""

    @abstractmethod
    def freeze(self, frozen: bool) -> None:
        """Stop all processes where they are, or let them go on."""

    @abstractmethod
    def cpu_s(self) -> float:
        """Return the CPU seconds used."""

    @abstractmethod
    def throttled_s(self) -> float:
        """Return the seconds for which the quota held processes back."""

    @abstractmethod
    def memory_peak_bytes(self) -> int:
        """Return the most bytes charged at any time (those charged now, before Linux 5.19 with v2).

        It is what the limit is compared with, and counts cached files.
        """

    @abstractmethod
    def anonymous_bytes(self) -> int:
        """Return the bytes of the processes' own memory now: without cached files."""

    @abstractmethod
    def oom_kills(self) -> int:
        """Return how many processes the kernel killed because memory ran out."""

    def kill(self) -> None:
        """Kill every process in the group, frozen or not, and wait until they are gone."""
        kill_group(self.procs_files[0].parent)


class Cgroups(ABC):
    """One mounted version of control groups."""

    version: int

    @abstractmethod
    def reserve(self, name: str) -> None:
        """Make a group that holds groups; the first one makes the common root and its weight."""

    @abstractmethod
    def create(self, name: str) -> Group:
        """Make the group of a device; the name is that of a reserved one, a slash, and more."""

    @abstractmethod
    def folders(self, name: str) -> tuple[Path, ...]:
        """Return where the group of that name is or would be, one folder per controller."""


def period_and_quota_us(cores: float) -> tuple[int, int]:
    """Return the length of a scheduling period and the CPU time allowed in it, microseconds.

    Raises:
        TestbedError: If that is less than the kernel can enforce.
    """
    period = min(max(_PERIOD_US, round(_LEAST_QUOTA_US / cores)), _LONGEST_PERIOD_US)
    quota = round(period * cores)
    if quota < _LEAST_QUOTA_US:
        raise TestbedError(f"a quota of {cores:.3%} of a core is below what the kernel enforces")
    return period, quota


def kill_group(group: Path) -> None:
    """Kill every process of one cgroup, frozen or not, and wait until they are gone.

    Raises:
        TestbedError: If one cannot be killed (it is stuck in the kernel).
    """
    deadline_s = time.monotonic() + KILL_S
    while pids := _pids(group):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for name, value in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            if (group / name).exists():  # v1 delivers the signal only after thawing
                write(group / name, value)
        if time.monotonic() > deadline_s:
            raise TestbedError(f"the processes {pids} in {group} cannot be killed")
        time.sleep(0.005)


def _pids(group: Path) -> list[int]:
    try:
        return [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
    except FileNotFoundError:  # somebody else has removed it
        return []


def write(path: Path, value: object) -> None:
    """Write one setting.

    Raises:
        TestbedError: Naming the file and the value that the kernel refused.
    """
    try:
        path.write_text(str(value))
    except OSError as error:
        raise TestbedError(f"cannot write {value} to {path}: {error.strerror}") from None


def keyed(path: Path, key: str) -> int:
    """Return the number after `key` in a file of `key number` lines; 0 if it is not there."""
    for line in path.read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0
