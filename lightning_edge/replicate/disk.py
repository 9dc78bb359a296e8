"""Files that are whole or not there, whenever the power goes.

A file is written under another name in the same folder, and takes its place in one step when all
of it is on the disk::

    last.ckpt       the one before, untouched          last.ckpt   the new one
    last.ckpt.part  being written                 ->
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

__all__: list[str] = []

FULL_BYTES = 16 << 20


def part_of(path: Path) -> Path:
    """Where to write what will become `path`; its folder is made if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f"{path.name}.part")


def reserve(path: Path) -> None:
    """Take the room that a file says it needs: to write to a mapped one on a full disk is deadly.

    Raises:
        OSError: There is not so much.
    """
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def why(error: BaseException, path: Path) -> str:
    """What went wrong with a file, and whether its disk is full: not every library says so."""
    text = f"{type(error).__name__}: {error}"
    with suppress(OSError):
        folder = next(p for p in (path, *path.parents) if p.is_dir())
        free = shutil.disk_usage(folder).free
        if free < FULL_BYTES:
            text += f" (its disk is full: {free >> 10} KiB are free in {folder})"
    return text


def publish(part: Path, path: Path) -> None:
    """Let a complete file take the place of `path`."""
    _to_disk(part)
    os.replace(part, path)
    _to_disk(path.parent)  # the new name is a change of the folder


def _to_disk(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # folders cannot be opened on Windows
        return
    try:
        with suppress(OSError):  # some file systems know no fsync of folders
            os.fsync(handle)
    finally:
        os.close(handle)
