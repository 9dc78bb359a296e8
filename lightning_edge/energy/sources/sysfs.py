"""Small numeric files of /sys: opened once, read by pread, closed together."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from lightning_edge.energy.source import SourceError

__all__: list[str] = []


class NumberFile:
    """A file with one number, such as ``curr1_input``.

    Args:
        path: The file.

    Raises:
        OSError: If it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> int:
        """The number now.

        Raises:
            SourceError: If the read fails (a disabled INA channel gives EIO) or holds no number.
        """
        if self._descriptor is None:
            raise SourceError(f"{self.path} is closed")
        try:
            return int(os.pread(self._descriptor, 64, 0))
        except (OSError, ValueError) as error:
            raise SourceError(f"{self.path}: {error}") from None

    def close(self) -> None:
        """Close the file. May be called twice."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):
                os.close(descriptor)


def close_all(files: Iterable[NumberFile]) -> None:
    """Close several files."""
    for file in files:
        file.close()
