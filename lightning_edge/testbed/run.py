"""One run of a command on all devices of a testbed: start, watch, stop, report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightning_edge.testbed.cgroups import Cgroups
from lightning_edge.testbed.controls import Controls
from lightning_edge.testbed.device_run import DeviceRun
from lightning_edge.testbed.faults import Fault, Timeline
from lightning_edge.testbed.network import Network
from lightning_edge.testbed.output import Output, Printer
from lightning_edge.testbed.resolve import Pool
from lightning_edge.testbed.result import RunResult
from lightning_edge.testbed.sampler import Sampler
from lightning_edge.testbed.slots import Slot

__all__: list[str] = []

_WATCH_S = 0.02  # how late a fault or the end of a process may be noticed
_TERMINATE_S = 2.0  # for a process to end by itself when asked to


@dataclass(frozen=True)
class Settings:
    """What a run may be given besides its command.

    Args:
        timeout_s: Seconds after which all devices are stopped; None waits for ever.
        grace_s: Seconds that the others have to notice that a device has failed, before they are
            stopped too.
        faults: What happens to the devices meanwhile.
        env: Further environment variables for all devices.
        printer: Called with a device's name and each line it prints.
        free_start: Leave CPU quotas out until a device announces something in its step file.
    """

    timeout_s: float | None = None
    grace_s: float = 90.0
    faults: tuple[Fault, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    printer: Printer | None = None
    free_start: bool = False


class Run:
    """A command on all devices; `execute` once.

    Args:
        slot: Of the testbed.
        pool: Its devices.
        network: Their links.
        cgroups: Where to make their groups.
        number: How many runs there were before.
        settings: Of the run.
    """

    def __init__(
        self,
        slot: Slot,
        pool: Pool,
        network: Network,
        cgroups: Cgroups,
        number: int,
        settings: Settings,
    ) -> None:
        self._pool, self._settings = pool, settings
        ranks = range(len(pool.devices))
        self._devices = [
            DeviceRun(slot, pool, rank, cgroups, number, free_start=settings.free_start)
            for rank in ranks
        ]
        self._controls = Controls(pool, network, self._devices)
        self._timeline = Timeline(
            settings.faults, lambda fault: self._controls.carry_out(fault, self._now_s())
        )
        probes = [device.probe for device in self._devices]
        self._sampler = Sampler(Path("/run/netns") / slot.hub, probes)
        self._output = Output(settings.printer)
        self._start_s = 0.0
        self._timed_out = False

    def execute(self, command: Sequence[str]) -> RunResult:
        """Run the command to its end and leave no process behind, whatever happens."""
        try:
            try:
                self._sampler.start()
                self._start_s = time.monotonic()
                for device in self._devices:
                    pipe = device.start(command, self._settings.env).stdout
                    assert pipe is not None
                    self._output.add(device.device.name, pipe)
                self._output.start()
                self._watch()
            finally:
                self._stop()
            return self._result(command)
        finally:
            for device in self._devices:
                device.close()

    def _now_s(self) -> float:
        return time.monotonic() - self._start_s

    def _last_step(self, name: str) -> int:
        return self._devices[self._pool.index(name)].steps.last

    def _watch(self) -> None:
        """Wait until all processes have ended, or have to be stopped."""
        timeout_s, grace_s = self._settings.timeout_s, self._settings.grace_s
        while not self._all_ended():
            time_s = self._now_s()
            for device in self._devices:
                device.listen()
            self._timeline.advance(time_s, self._last_step)
            self._controls.follow_traces(time_s)
            if timeout_s is not None and time_s > timeout_s:
                self._timed_out = True
                return
            failed_s = [d.ended_s for d in self._devices if d.failed and d.ended_s is not None]
            if failed_s and time_s > min(failed_s) + grace_s:
                return
            time.sleep(_WATCH_S)

    def _all_ended(self) -> bool:
        ended = [device.poll(self._now_s()) for device in self._devices]  # ask every one
        return all(ended)

    def _stop(self) -> None:
        """Ask what still runs to end, then kill everything on every device."""
        for device in self._devices:
            if not device.poll(self._now_s()):
                device.terminate()
        deadline_s = time.monotonic() + _TERMINATE_S
        while not self._all_ended() and time.monotonic() < deadline_s:
            time.sleep(_WATCH_S)
        for device in self._devices:
            device.kill()
        self._all_ended()
        self._output.finish()
        self._sampler.stop()
        for device in self._devices:
            device.steps.update()
        self._controls.restore_links()

    def _result(self, command: Sequence[str]) -> RunResult:
        fired: list[tuple[str, float | None]] = [
            (str(fault), time_s) for fault, time_s in self._timeline.fired
        ]
        return RunResult(
            command=tuple(command),
            seconds=max((device.ended_s or 0.0 for device in self._devices), default=0.0),
            timed_out=self._timed_out,
            devices={
                device.device.name: device.result(self._output.lines(device.device.name))
                for device in self._devices
            },
            faults=(*fired, *((str(fault), None) for fault in self._timeline.waiting)),
            slowdown=self._pool.slowdown,
            notes=self._pool.notes,
        )
