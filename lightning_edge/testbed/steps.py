"""What a device's processes announce in a file: `ready`, then one line per training step."""

from __future__ import annotations

import statistics
from pathlib import Path

__all__: list[str] = []


class Steps:
    """Follows a file of lines `<steps finished> [<time.monotonic() seconds>]`.

    Any other line, such as `ready`, only says that the device has come that far.

    Args:
        path: The file; made empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_text("")
        self._read_bytes = 0
        #: Whether there was any line.
        self.ready = False
        #: The last step announced; -1 before the first.
        self.last = -1
        self.count = 0
        self._times_s: list[float] = []

    def update(self) -> None:
        """Read what was appended; half a line waits for its other half."""
        if self.path.stat().st_size == self._read_bytes:
            return
        with open(self.path, "rb") as file:
            file.seek(self._read_bytes)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        self.ready = self.ready or bool(whole)
        for line in whole.splitlines():
            fields = line.split()
            try:
                self.last = max(self.last, int(fields[0]))
                if len(fields) > 1:
                    self._times_s.append(float(fields[1]))
            except (ValueError, IndexError):
                continue  # `ready`
            self.count += 1

    @property
    def median_s(self) -> float | None:
        """Return the median seconds between announcements; None with fewer than three."""
        if len(self._times_s) < 3:
            return None
        return statistics.median(
            later - earlier
            for earlier, later in zip(self._times_s, self._times_s[1:], strict=False)
        )
