"""What a run on the testbed has to say: per device, as JSON, as an error."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lightning_edge.errors import TestbedError

__all__: list[str] = []

_LINES_IN_ERROR = 15


@dataclass(frozen=True)
class DeviceResult:
    """What one device did.

    Args:
        rank: Its rank.
        exit_code: Of its process; negative is the number of the signal that ended it.
        outcome: `ok`; `failed`; `killed` by a fault; `out of memory`; `stopped` by the testbed,
            because another one failed or time was up.
        seconds: From the start of the run to the end of its process.
        cpu_s: CPU seconds of all its processes.
        throttled_s: Seconds for which its CPU quota held them back.
        sent_bytes: Through its link, headers included.
        received_bytes: Likewise.
        memory_peak_bytes: Most memory charged to it, cached files included: what its limit is
            compared with.
        anonymous_peak_bytes: Most memory of its processes alone, sampled twenty times a second.
        energy_j: Emulated joules from its power curve; None if it has none.
        energy_source: Where these come from, or why there are none.
        steps: Training steps it announced.
        step_s: Median seconds from one step to the next; None if it announced too few.
        lines: The last lines it printed.
    """

    rank: int
    exit_code: int
    outcome: str
    seconds: float
    cpu_s: float
    throttled_s: float
    sent_bytes: int
    received_bytes: int
    memory_peak_bytes: int
    anonymous_peak_bytes: int
    energy_j: float | None
    energy_source: str
    steps: int
    step_s: float | None
    lines: tuple[str, ...]


@dataclass(frozen=True)
class RunResult:
    """What a run did.

    Args:
        command: What every device ran.
        seconds: From start to end.
        timed_out: Whether time was up before all had ended.
        devices: By name, in the order of their ranks.
        faults: What happened when: texts and seconds after the start; None if it never came to it.
        slowdown: Seconds here per second of the boards; None without boards.
        notes: What to know about the emulation.
    """

    command: tuple[str, ...]
    seconds: float
    timed_out: bool
    devices: Mapping[str, DeviceResult]
    faults: tuple[tuple[str, float | None], ...]
    slowdown: float | None
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Return whether every device ended well, or was killed by a fault that asked for it."""
        return all(device.outcome in ("ok", "killed") for device in self.devices.values())

    def check(self) -> RunResult:
        """Return this result if it is `ok`.

        Raises:
            TestbedError: With every device's outcome and the last lines of those that failed.
        """
        if self.ok:
            return self
        parts = ["time was up" if self.timed_out else "not every device ended well"]
        for name, device in self.devices.items():
            ended = f"{name} (rank {device.rank}): {device.outcome}, {exit_text(device.exit_code)}"
            parts.append(f"{ended} after {device.seconds:.1f} s")
            if device.outcome != "ok":
                parts += [f"    {line}" for line in device.lines[-_LINES_IN_ERROR:]]
        raise TestbedError("\n".join(parts))

    def to_mapping(self) -> dict[str, Any]:
        """Return plain values for JSON; without the printed lines."""
        devices = {name: asdict(device) for name, device in self.devices.items()}
        for device in devices.values():
            del device["lines"]
        return {
            "format": 1,
            "ok": self.ok,
            "command": list(self.command),
            "seconds": self.seconds,
            "timed_out": self.timed_out,
            "energy_emulated": True,
            "slowdown": self.slowdown,
            "notes": list(self.notes),
            "faults": [{"fault": text, "fired_s": fired} for text, fired in self.faults],
            "devices": devices,
        }

    def to_json(self) -> str:
        """Return `to_mapping` as text."""
        return json.dumps(self.to_mapping(), indent=2) + "\n"


def exit_text(code: int) -> str:
    """Write an exit code as people know it: `exit code 1`, `SIGKILL`."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
