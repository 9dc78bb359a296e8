"""Several testbeds on one machine: each owns a numbered slot, and everything is named after it.

    slot 3   namespaces  letb3-hub, letb3-0, letb3-1, ...       addresses  198.18.3.0/24
             cgroups     lightning-edge-testbed/3/<device>      files      /run/.../3/

A slot belongs to the process named in its `owner.json`. When that process is gone without having
cleaned up (kill -9, a crash), the next testbed on the machine finds it and removes what is left.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lightning_edge.errors import TestbedError
from lightning_edge.testbed.cgroup_mounts import find_cgroups
from lightning_edge.testbed.cgroups import KILL_S, kill_group
from lightning_edge.testbed.commands import run, succeeds

__all__: list[str] = []

RUN = Path("/run/lightning-edge-testbed")  # a tmpfs: nothing survives a reboot
_NAMESPACES = Path("/run/netns")  # where `ip netns` keeps them
SLOTS = 256  # one /24 network each in 198.18.0.0/15, reserved for tests of networks (RFC 2544)


@dataclass(frozen=True)
class Slot:
    """A number that belongs to one testbed."""

    number: int

    @property
    def folder(self) -> Path:
        """Return where its files live."""
        return RUN / str(self.number)

    @property
    def hub(self) -> str:
        """Return the network namespace of the switch."""
        return f"letb{self.number}-hub"

    def namespace(self, rank: int) -> str:
        """Return the network namespace of one device."""
        return f"letb{self.number}-{rank}"

    def address(self, rank: int) -> str:
        """Return the IPv4 address of one device."""
        return f"198.18.{self.number}.{rank + 1}"

    def group(self, name: str) -> str:
        """Return the name of one device's cgroup."""
        return f"{self.number}/{name}"


def claim() -> Slot:
    """Remove what dead testbeds left, then take the lowest free slot.

    Raises:
        TestbedError: If all slots are in use, or if something stale cannot be removed.
    """
    with _lock():
        _remove_stale()
        for number in range(SLOTS):
            slot = Slot(number)
            if not slot.folder.exists():
                try:
                    slot.folder.mkdir(parents=True)
                    owner = {"pid": os.getpid(), "started": _started(os.getpid())}
                    (slot.folder / "owner.json").write_text(json.dumps(owner))
                    find_cgroups().reserve(str(number))
                except BaseException:
                    _remove(slot)
                    raise
                return slot
    raise TestbedError(f"{SLOTS} testbeds are running on this machine, which is all there can be")


def release(slot: Slot) -> None:
    """Remove everything that belongs to a slot; safe to call at any time, and more than once."""
    with _lock():
        _remove(slot)


def remove_stale() -> list[int]:
    """Remove what testbeds left whose process is gone; return their numbers."""
    if not RUN.is_dir():
        return []
    with _lock():
        return _remove_stale()


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    RUN.mkdir(parents=True, exist_ok=True)
    with open(RUN / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_stale() -> list[int]:
    stale = [Slot(int(p.name)) for p in RUN.iterdir() if p.name.isdigit() and not _owned(p)]
    for slot in stale:
        _remove(slot)
    return [slot.number for slot in stale]


def _owned(folder: Path) -> bool:
    try:
        owner = json.loads((folder / "owner.json").read_text())
        return bool(_started(owner["pid"]) == owner["started"])
    except (OSError, ValueError, KeyError, TypeError):
        return False  # killed between making the folder and naming the owner


def _started(pid: int) -> int | None:
    """Return when a process began, in ticks since boot: with the pid it names one process ever."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the command before it may hold anything
    return None if fields[0] in "ZX" else int(fields[19])


def _remove(slot: Slot) -> None:
    for top in find_cgroups().folders(str(slot.number)):
        remove_groups(top)
        with contextlib.suppress(OSError):  # another testbed is in there
            top.parent.rmdir()
    with contextlib.suppress(FileNotFoundError):
        for path in list(_NAMESPACES.iterdir()):
            # Links end with the namespaces they are in.
            if path.name.startswith(f"letb{slot.number}-") and not succeeds(
                "ip", "netns", "del", path.name
            ):
                run("ip", "netns", "del", path.name)
    shutil.rmtree(slot.folder, ignore_errors=True)


def remove_groups(top: Path) -> None:
    """Kill every process in a cgroup and below it, then remove the cgroups, innermost first."""
    if not top.is_dir():
        return
    groups = sorted((p for p in top.rglob("*") if p.is_dir()), reverse=True) + [top]
    for group in groups:
        kill_group(group)
        _remove_group(group)


def _remove_group(group: Path) -> None:
    deadline_s = time.monotonic() + KILL_S
    while group.is_dir():
        try:
            group.rmdir()
        except OSError as error:  # the last process is still on its way out
            if time.monotonic() > deadline_s:
                raise TestbedError(f"{group} cannot be removed: {error.strerror}") from None
            time.sleep(0.005)
