"""Changes the devices while they run: faults, and links that follow a trace."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_edge.testbed.device_run import DeviceRun
from lightning_edge.testbed.faults import Action, Fault
from lightning_edge.testbed.network import Network
from lightning_edge.testbed.resolve import Pool

__all__: list[str] = []


class Controls:
    """The switches and knobs of every device.

    Args:
        pool: The devices.
        network: Their links.
        devices: Their processes, in the order of their ranks.
    """

    def __init__(self, pool: Pool, network: Network, devices: Sequence[DeviceRun]) -> None:
        self._pool = pool
        self._network = network
        self._devices = tuple(devices)
        ranks = range(len(pool.devices))
        self._rates_mbit = [network.rate_mbit(rank) for rank in ranks]
        self._medium_mbit = network.medium_mbit()
        self._slowed: set[int] = set()  # links that a fault has set
        self._cut: set[int] = set()
        self._deaf: set[int] = set()

    def carry_out(self, fault: Fault, time_s: float) -> None:
        """Do to a device what the fault says, `time_s` seconds after the start."""
        rank = self._pool.index(fault.device)
        device, group = self._devices[rank], self._devices[rank].group
        if fault.action is Action.KILL:
            device.killed = device.ended_s is None
            group.kill()
        elif fault.action is Action.FREEZE:
            group.freeze(True)
        elif fault.action is Action.THAW:
            group.freeze(False)
        elif fault.action is Action.CUT:
            self._cut.add(rank)
            self._network.set_connected(rank, False)
        elif fault.action is Action.DEAFEN:
            self._deaf.add(rank)
            self._network.set_hearing(rank, False)
        elif fault.action is Action.RESTORE:
            group.freeze(False)
            device.slow_down(1.0)
            self._restore_link(rank, time_s)
        elif fault.cpu_factor is not None:
            device.slow_down(fault.cpu_factor)
        elif fault.link_mbit is not None:
            self._slowed.add(rank)
            self._set_rate(rank, fault.link_mbit)

    def follow_traces(self, time_s: float) -> None:
        """Give every link that follows a trace its rate at this time."""
        for rank, device in enumerate(self._pool.devices):
            if device.trace is not None and rank not in self._slowed:
                self._set_rate(rank, self._network.rate_mbit(rank, time_s))
        shared_mbit = self._network.medium_mbit(time_s)
        if shared_mbit is not None and shared_mbit != self._medium_mbit:
            self._medium_mbit = shared_mbit
            self._network.set_medium_rate(shared_mbit)

    def restore_links(self) -> None:
        """Bring every link back to where it was before the run."""
        for rank in range(len(self._pool.devices)):
            self._restore_link(rank, 0.0)
        self.follow_traces(0.0)

    def _restore_link(self, rank: int, time_s: float) -> None:
        self._slowed.discard(rank)
        self._set_rate(rank, self._network.rate_mbit(rank, time_s))
        if rank in self._cut:
            self._cut.discard(rank)
            self._network.set_connected(rank, True)
        if rank in self._deaf:
            self._deaf.discard(rank)
            self._network.set_hearing(rank, True)

    def _set_rate(self, rank: int, mbit: float | None) -> None:
        if mbit != self._rates_mbit[rank]:
            self._rates_mbit[rank] = mbit
            self._network.set_rate(rank, mbit)
