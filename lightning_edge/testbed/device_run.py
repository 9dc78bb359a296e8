"""One device during one run: its processes with their limits, its meter, its steps."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_edge.testbed import launch
from lightning_edge.testbed.cgroups import Cgroups
from lightning_edge.testbed.meter import Meter
from lightning_edge.testbed.network import port
from lightning_edge.testbed.resolve import Pool
from lightning_edge.testbed.result import DeviceResult
from lightning_edge.testbed.sampler import PERIOD_S, Probe
from lightning_edge.testbed.slots import Slot, remove_groups
from lightning_edge.testbed.steps import Steps

__all__: list[str] = []


class DeviceRun:
    """Made before the run; `close` removes its group.

    Args:
        slot: Of the testbed.
        pool: Its devices.
        rank: Which of them.
        cgroups: Where to make its group.
        run: How many runs there were before.
        free_start: Leave its CPU quota out until it announces something.
    """

    def __init__(
        self,
        slot: Slot,
        pool: Pool,
        rank: int,
        cgroups: Cgroups,
        run: int,
        *,
        free_start: bool = False,
    ) -> None:
        self.device = device = pool.devices[rank]
        self._slot, self._pool, self._rank, self._run = slot, pool, rank, run
        self._folder = slot.folder / f"run{run}" / device.name
        self._folder.mkdir(parents=True)
        self.steps = Steps(self._folder / "steps")
        name = slot.group(f"{device.name}-{run}")
        self._group_folders = cgroups.folders(name)
        self.group = cgroups.create(name)
        self._free = free_start
        self.slow_down(1.0)
        if device.memory_bytes is not None:
            self.group.limit_memory(device.memory_bytes)
        cores = float(device.threads) if device.cores is None else device.cores
        self.probe = Probe(port(rank), self.group, cores, self._make_meter())
        self._process: subprocess.Popen[bytes] | None = None
        #: Seconds from the start of the run to the end of the process; None until then.
        self.ended_s: float | None = None
        #: Whether a fault has killed it, and whether the testbed has stopped it.
        self.killed = self.stopped = False

    @property
    def _meter_folder(self) -> Path:
        return self._folder / "meter"

    def _make_meter(self) -> Meter | None:
        device = self.device
        if device.power is None:
            return None
        return Meter(
            self._meter_folder,
            device=device.name,
            board=device.board,
            curve=device.power,
            update_period_s=PERIOD_S,
        )

    def start(self, command: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start the command, with `env` on top of what every process on this device finds."""
        files = {"LIGHTNING_EDGE_STEP_FILE": self.steps.path}
        if self.device.power is not None:
            files["LIGHTNING_EDGE_METER_DIR"] = self._meter_folder
        own = launch.environment(self._slot, self._pool, self._rank, run=self._run, files=files)
        self._process = launch.start(
            self._slot, self._pool, self._rank, self.group, command, {**own, **env}
        )
        return self._process

    def slow_down(self, factor: float) -> None:
        """Give it this part of its CPU quota; 1 is all of it."""
        self._factor = factor
        cores = self.device.cores
        if not self._free and (cores is not None or factor != 1):
            self.group.limit_cores((cores or 1.0) * factor)
        elif not self._free:
            self.group.limit_cores(None)

    def listen(self) -> None:
        """Read what it has announced; its quota begins with the first word."""
        self.steps.update()
        if self._free and self.steps.ready:
            self._free = False
            self.slow_down(self._factor)

    def poll(self, time_s: float) -> bool:
        """Return whether its process has ended; `time_s` is the time since the start."""
        if self.ended_s is None and (self._process is None or self._process.poll() is not None):
            self.ended_s = time_s
        return self.ended_s is not None

    @property
    def failed(self) -> bool:
        """Return whether its process has ended badly, and not because of a fault."""
        return self.ended_s is not None and self._exit_code != 0 and not self.killed

    @property
    def _exit_code(self) -> int:
        code = None if self._process is None else self._process.returncode
        return launch.NOT_STARTED if code is None else code

    def terminate(self) -> None:
        """Ask the process and its children to end."""
        self.stopped = True
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Kill whatever still runs on this device, and wait for the process."""
        self.group.kill()
        if self._process is not None:
            if self._process.poll() is None:  # it had not entered its group yet
                self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """Close the meter and remove the group; nothing may run any more."""
        if self.probe.meter is not None:
            self.probe.meter.close()
        for folder in self._group_folders:
            remove_groups(folder)

    def result(self, lines: tuple[str, ...]) -> DeviceResult:
        """Return what it did; before `close`, after `kill`."""
        probe, power = self.probe, self.device.power
        source = "not emulated: it has no power curve (power=2W-8W, or a board)"
        if power is not None:
            source = f"emulated; {power.source}"
        return DeviceResult(
            rank=self._rank,
            exit_code=self._exit_code,
            outcome=self._outcome(),
            seconds=self.ended_s or 0.0,
            cpu_s=self.group.cpu_s(),
            throttled_s=self.group.throttled_s(),
            sent_bytes=probe.sent_bytes,
            received_bytes=probe.received_bytes,
            memory_peak_bytes=max(probe.memory_peak_bytes, self.group.memory_peak_bytes()),
            anonymous_peak_bytes=probe.anonymous_peak_bytes,
            energy_j=None if probe.meter is None else probe.meter.joules,
            energy_source=source,
            steps=self.steps.count,
            step_s=self.steps.median_s,
            lines=lines,
        )

    def _outcome(self) -> str:
        if self._exit_code == 0:
            return "ok"
        if self.killed:
            return "killed"
        if self.group.oom_kills():
            return "out of memory"
        return "stopped" if self.stopped else "failed"
