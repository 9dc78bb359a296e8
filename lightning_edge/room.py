"""How much memory is left on this machine, within the limits of a container."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import psutil

__all__: list[str] = []

_LIMITS = ("memory.max", "memory.limit_in_bytes")
_USED = ("memory.current", "memory.usage_in_bytes")


class Host(Protocol):
    """Whose files are read: this machine's, or a faked tree's."""

    def text(self, path: str) -> str | None:
        """Return what a file contains; None if it cannot be read."""


class ThisHost:
    """This machine."""

    def text(self, path: str) -> str | None:
        """Return what a file contains; None if it cannot be read."""
        try:
            return Path(path).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None


def free_bytes(host: Host) -> int:
    """What this process may still take of the main memory."""
    return min([int(psutil.virtual_memory().available), *_container_rooms(host)])


def _container_rooms(host: Host) -> list[int]:
    """What each control group of this process may still take."""
    rooms = []
    for line in (host.text("/proc/self/cgroup") or "").splitlines():
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if controllers not in ("", "memory"):
            continue
        root = Path("/sys/fs/cgroup") / ("memory" if controllers else "")
        at = root / group.lstrip("/")
        while True:
            limit = _number(host, at, _LIMITS)
            used = _number(host, at, _USED)
            if limit is not None and used is not None:
                rooms.append(max(limit - used + _files_bytes(host, at), 0))
            if at == root:
                break
            at = at.parent
    return rooms


def _files_bytes(host: Host, folder: Path) -> int:
    """Of the memory that a group uses, what holds files it no longer reads and gives up at once."""
    text = host.text(str(folder / "memory.stat")) or ""
    found = dict(line.split(" ", 1) for line in text.splitlines() if " " in line)
    return int(found.get("total_inactive_file", found.get("inactive_file", 0)))


def _number(host: Host, folder: Path, names: tuple[str, ...]) -> int | None:
    for name in names:
        text = host.text(str(folder / name))
        if text and text.isdigit() and int(text) < 1 << 60:  # the kernel's way to say no limit
            return int(text)
    return None
