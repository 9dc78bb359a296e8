"""Files that are whole or not there, whenever the power goes.

A file is written under another name in the same folder, and takes its place in one step when all
of it is on the disk::

    last.ckpt       the one before, untouched          last.ckpt   the new one
    last.ckpt.part  being written                 ->
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__: list[str] = []


def part_of(path: Path) -> Path:
    """Where to write what will become `path`; its folder is made if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f"{path.name}.part")


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
