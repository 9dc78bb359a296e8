"""The emulated power meter of a device: three small files that a sampler rewrites in place.

    meter.json   what it is: always with "emulated": true, and where its power curve comes from
    energy_uj    microjoules since the run began: never falls, never wraps
    power_w      mean watts since the update before
    time_s       when that was (CLOCK_MONOTONIC): an old time means that the meter has stopped

Readers keep a file open and read it from its start, so it is never replaced, and always as long.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from lightning_edge.testbed.power import PowerCurve

__all__: list[str] = []

FORMAT = 1
_WIDTH = 20


class Meter:
    """Writes one device's meter.

    Args:
        folder: Where the files go; made if it is not there.
        device: The device's name.
        board: The board it stands for, if any.
        curve: Its watts.
        update_period_s: How often `update` will be called, about.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: str,
        board: str | None,
        curve: PowerCurve,
        update_period_s: float,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._curve = curve
        self._joules = 0.0
        self._files = {
            name: os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o644)
            for name in ("energy_uj", "power_w", "time_s")
        }
        about = {
            "format": FORMAT,
            "emulated": True,
            "device": device,
            "board": board,
            "idle_w": curve.idle_w,
            "busy_w": curve.busy_w,
            "joules_per_byte": curve.joules_per_byte,
            "update_period_s": update_period_s,
            "rel_uncertainty": curve.rel_uncertainty,
            "source": curve.source,
        }
        (folder / "meter.json").write_text(json.dumps(about, indent=2) + "\n")
        self._write(curve.idle_w, time.monotonic())

    @property
    def joules(self) -> float:
        """Return the joules so far."""
        return self._joules

    def update(
        self, utilisation: float, duration_s: float, moved_bytes: float, now_s: float
    ) -> None:
        """Add what the device drew in the last `duration_s` seconds, up to `now_s`."""
        drawn = self._curve.joules(utilisation, duration_s, moved_bytes)
        self._joules += drawn
        self._write(drawn / duration_s if duration_s > 0 else self._curve.idle_w, now_s)

    def close(self) -> None:
        """Close the files; they stay."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files = {}

    def _write(self, power_w: float, now_s: float) -> None:
        texts = {
            "energy_uj": f"{round(self._joules * 1e6):0{_WIDTH}d}",
            "power_w": f"{power_w:0{_WIDTH}.6f}",
            "time_s": f"{now_s:0{_WIDTH}.6f}",
        }
        for name, text in texts.items():
            os.pwrite(self._files[name], f"{text}\n".encode(), 0)
