"""The testbed's pretended meter: files that the testbed writes for each emulated device.

Nothing is measured. The joules follow a board's power curve from the device's real CPU time and
bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lightning_edge.energy.domain import Domain, Provenance, Reading, Scope
from lightning_edge.energy.host import HostEnv
from lightning_edge.energy.source import SourceError, Unavailable
from lightning_edge.energy.sources.sysfs import NumberFile

METER_DIR = "LIGHTNING_EDGE_METER_DIR"
TESTBED = "LIGHTNING_EDGE_TESTBED"
DEAD_AFTER_PERIODS = 20
FORMAT = 1


class EmulatedSource:
    """Reads one emulated device.

    Args:
        host: The machine that runs the testbed.
        directory: Where the testbed writes this device's meter.
        about: Contents of its ``meter.json``.
    """

    kind: ClassVar[str] = "emulated"

    def __init__(self, host: HostEnv, directory: Path, about: Mapping[str, Any]) -> None:
        self._clock = host.clock
        self._period_s = float(about["update_period_s"])
        device, board = str(about["device"]), about.get("board")
        testbed = host.environ.get(TESTBED, "testbed")
        self._id = f"emulated:{testbed}:{device}"
        self._energy = NumberFile(directory / "energy_uj")
        self._time_path = directory / "time_s"
        self.domains: Sequence[Domain] = (
            Domain(
                self._id,
                f"{device} (emulated{f' {board}' if board else ''})",
                Scope.PLATFORM,
                Provenance.EMULATED,
                "emulated",
                update_period_s=self._period_s,
                rel_uncertainty=float(about.get("rel_uncertainty", 0.4)),
            ),
        )

    @classmethod
    def probe(cls, host: HostEnv) -> EmulatedSource:
        """Read the meter that the environment names."""
        named = host.environ.get(METER_DIR)
        if not named:
            raise Unavailable(f"not on the testbed: {METER_DIR} is not set")
        directory = Path(named)
        try:
            about = json.loads((directory / "meter.json").read_text())
            if about["format"] != FORMAT:
                raise Unavailable(f"{named} has format {about['format']}, not {FORMAT}")
            source = cls(host, directory, about)
            source.read()
        except (OSError, ValueError, KeyError, TypeError, SourceError) as error:
            raise Unavailable(f"the testbed's meter in {named} cannot be read: {error}") from None
        return source

    def read(self) -> Reading:
        """Cumulative joules of the device."""
        now_s = self._clock()
        energy_j = self._energy.read() / 1e6
        try:
            updated_s = float(self._time_path.read_text())
        except (OSError, ValueError) as error:
            raise SourceError(f"{self._time_path}: {error}") from None
        age_s = now_s - updated_s
        if age_s > DEAD_AFTER_PERIODS * self._period_s:
            raise SourceError(f"the testbed's meter stopped {age_s:.1f} s ago")
        return Reading(now_s, energy_j={self._id: energy_j})

    def close(self) -> None:
        """Close the file."""
        self._energy.close()
