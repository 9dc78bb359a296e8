"""Is this device's memory nearly full? The kernel ends processes for that without a word."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil

__all__ = ["memory_is_tight"]

TIGHT = 0.05  # of the memory is left, or less
_CGROUPS = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60


def memory_is_tight() -> bool:
    """Whether the device, or the group of processes that this one is in, has little memory left."""
    memory = psutil.virtual_memory()
    if memory.available < TIGHT * memory.total:
        return True
    with suppress(OSError, ValueError):
        return any(_group_is_tight(group) for group in _groups())
    return False


def _groups() -> list[Path]:
    """This process' own group, where memory is counted: version 2, or version 1."""
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, place = line.split(":", 2)
        if controllers in ("", "memory"):
            found.append(_CGROUPS / controllers / place.lstrip("/"))
    return found


def _group_is_tight(group: Path) -> bool:
    for limit_file, used_file, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with suppress(OSError, ValueError):
            limit = int((group / limit_file).read_text())
            used = int((group / used_file).read_text())
            lines = map(str.split, (group / "memory.stat").read_text().splitlines())
            files = sum(int(line[1]) for line in lines if line[0] == cached)
            if limit < _UNLIMITED and limit - used + files < TIGHT * limit:
                return True
    return False
