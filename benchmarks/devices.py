"""Unequal devices for a contest: the testbed's namespaces, links, quotas and emulated meters.

All contestants' processes of a rank share that rank's device, and one contestant computes at a
time, so what a device's meter and counters tell between two readings belongs to that contestant.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from benchmarks.contest import Place
from lightning_edge.testbed import slots
from lightning_edge.testbed.cgroup_mounts import find_cgroups
from lightning_edge.testbed.cgroups import Group
from lightning_edge.testbed.machine import this_machine
from lightning_edge.testbed.meter import Meter
from lightning_edge.testbed.network import INTERFACE, Network, port
from lightning_edge.testbed.resolve import resolve
from lightning_edge.testbed.sampler import PERIOD_S, Probe, Sampler
from lightning_edge.testbed.spec import DeviceSpec, PoolSpec
from lightning_edge.testbed.trace import Trace

TRACE_STEP_S = 1.0  # a recorded trace has one rate a second


@dataclass(frozen=True)
class Reading:
    """What a device has used since the pool was made."""

    cpu_s: float
    sent_bytes: int
    energy_j: float


class Devices:
    """A context manager: the devices exist inside it.

    Args:
        specs: In the order of their ranks, each with ``cpu`` and ``power``.
    """

    def __init__(self, specs: Sequence[DeviceSpec]) -> None:
        self.pool = resolve(PoolSpec(tuple(specs)), this_machine(measure=False))
        self._groups: list[Group] = []
        self._probes: list[Probe] = []
        self._following: threading.Event | None = None

    def __enter__(self) -> Devices:
        self._slot = slots.claim()
        try:
            self._network = Network(self._slot, self.pool)
            self._network.build()
            cgroups = find_cgroups()
            for rank, device in enumerate(self.pool.devices):
                name = self._slot.group(f"{device.name}-contest")
                group = cgroups.create(name)
                assert device.power is not None
                assert device.cores is not None
                meter = Meter(
                    self._meter_folder(rank),
                    device=device.name,
                    board=None,
                    curve=device.power,
                    update_period_s=PERIOD_S,
                )
                self._groups.append(group)
                self._probes.append(Probe(port(rank), group, device.cores, meter))
            self._sampler = Sampler(Path("/run/netns") / self._slot.hub, self._probes)
            self._sampler.start()
        except BaseException:
            slots.release(self._slot)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._stop_following()
            for group in self._groups:
                group.kill()
            self._sampler.stop()
            for probe in self._probes:
                assert probe.meter is not None
                probe.meter.close()
        finally:
            slots.release(self._slot)

    @property
    def address(self) -> str:
        """The first device's, as the others reach it."""
        return self._slot.address(0)

    @property
    def folder(self) -> Path:
        """For files of the contest; removed with the devices."""
        return self._slot.folder

    def places(self, ranks: Sequence[int] | None = None) -> list[Place]:
        """Where the processes of a contestant run that uses these devices; all by default."""
        places = []
        for rank in range(len(self.pool.devices)) if ranks is None else ranks:
            env = {
                "LIGHTNING_EDGE_DEVICE": self.pool.devices[rank].name,
                "LIGHTNING_EDGE_METER_DIR": str(self._meter_folder(rank)),
            }
            files = [str(path) for path in self._groups[rank].procs_files]
            places.append(Place(self._slot.namespace(rank), INTERFACE, files, env))
        return places

    def limit(self, on: bool) -> None:
        """Put the CPU quotas on, or take them off while contestants import their libraries."""
        for group, device in zip(self._groups, self.pool.devices, strict=True):
            group.limit_cores(device.cores if on else None)

    def set_link(self, link: float | Trace, start_s: float = 0.0) -> None:
        """Give all links, both ways, a rate in Mbit/s, or one that follows a trace."""
        self._stop_following()
        if not isinstance(link, Trace):
            self._set_rate(link)
            return
        self._following = threading.Event()
        self._follower = threading.Thread(
            target=self._follow, args=(link, start_s, self._following), daemon=True
        )
        self._set_rate(link.rate_mbit(start_s))
        self._follower.start()

    def _follow(self, trace: Trace, start_s: float, stop: threading.Event) -> None:
        began_s = time.monotonic()
        while not stop.wait(TRACE_STEP_S):
            self._set_rate(trace.rate_mbit(start_s + time.monotonic() - began_s))

    def _stop_following(self) -> None:
        if self._following is not None:
            self._following.set()
            self._follower.join()
            self._following = None

    def _set_rate(self, mbit: float) -> None:
        for rank in range(len(self.pool.devices)):
            self._network.set_rate(rank, mbit)

    def read(self) -> list[Reading]:
        """What each device has used so far."""
        time.sleep(2 * PERIOD_S)  # the sampler may be that late
        return [
            Reading(probe.cpu_s, probe.sent_bytes, probe.meter.joules)
            for probe in self._probes
            if probe.meter is not None
        ]

    def _meter_folder(self, rank: int) -> Path:
        return self._slot.folder / "contest" / self.pool.devices[rank].name
