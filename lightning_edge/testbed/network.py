"""The network of one testbed: a namespace per device, joined by a switch in one more.

      letb3-0               letb3-hub                letb3-1
    +----------+   +------------------------+   +----------+
    | eth0 ====|===|== p0 --[ br0 ]-- p1 ===|===|=== eth0  |     ===  a veth pair, shaped by a
    +----------+   +------------------------+   +----------+          token bucket at both ends
      198.18.3.1                                  198.18.3.2

Nothing is in the machine's own namespace and nothing leads out: the devices reach each other only.
"""

from __future__ import annotations

from lightning_edge.errors import TestbedError
from lightning_edge.testbed import shaping
from lightning_edge.testbed.commands import run, succeeds
from lightning_edge.testbed.resolve import Device, Pool
from lightning_edge.testbed.slots import Slot

__all__: list[str] = []

INTERFACE = "eth0"  # in every device
FAST_MBIT = 10_000.0

# What boards use, whatever this machine does: bbr, for one, gives up most of its rate when it meets
# a queue that others have filled (12 of 20 Mbit/s, both ways at once). A namespace may choose only
# among the algorithms that the machine allows to everyone, and reno is always one of them.
_CONGESTION = """\
cd /proc/sys/net/ipv4
for algorithm in cubic reno; do
    echo $algorithm 2>/dev/null > tcp_congestion_control && exit
done
exit 1
"""


class Network:
    """Namespaces, links and their shaping; removed with the slot."""

    def __init__(self, slot: Slot, pool: Pool) -> None:
        self._slot = slot
        self._pool = pool

    def build(self) -> None:
        """Make everything.

        Raises:
            TestbedError: If the kernel lacks something; names the device and what to leave out.
        """
        slot, devices = self._slot, self._pool.devices
        run("ip", "netns", "add", slot.hub)
        self._check_kernel()
        run("ip", "-n", slot.hub, "link", "add", "br0", "type", "bridge", "forward_delay", "0")
        run("ip", "-n", slot.hub, "link", "set", "br0", "up")
        for rank, device in enumerate(devices):
            self._connect(rank)
            self._shape(rank, device)
        shared_mbit = self.medium_mbit()
        if shared_mbit is not None:
            run("ip", "-n", slot.hub, "link", "add", "ifb0", "type", "ifb")
            run("ip", "-n", slot.hub, "link", "set", "ifb0", "up")
            ports = [port(rank) for rank in range(len(devices))]
            addresses = [slot.address(rank) for rank in range(len(devices))]
            for command in shaping.medium(ports, addresses, shared_mbit):
                run("tc", "-n", slot.hub, *command)

    def set_rate(self, rank: int, mbit: float | None) -> None:
        """Change the rate of a device's link, both ways; None takes the limit off."""
        for namespace, interface in self._ends(rank):
            limit = shaping.no_rate(interface) if mbit is None else shaping.rate(interface, mbit)
            run("tc", "-n", namespace, *limit)

    def rate_mbit(self, rank: int, time_s: float = 0.0) -> float | None:
        """Return the rate of a device's link, as asked for, at a time since the start."""
        device = self._pool.devices[rank]
        if device.trace is not None:
            return device.trace.rate_mbit(time_s)
        # Delay and loss hang below a rate, so that faults can change the rate alone.
        unlimited = FAST_MBIT if device.latency_s or device.loss else None
        return unlimited if device.link_mbit is None else device.link_mbit

    def _ends(self, rank: int) -> tuple[tuple[str, str], ...]:
        return (self._slot.namespace(rank), INTERFACE), (self._slot.hub, port(rank))

    def medium_mbit(self, time_s: float = 0.0) -> float | None:
        """Return the rate that all share, at a time since the start."""
        trace = self._pool.medium_trace
        return self._pool.medium_mbit if trace is None else trace.rate_mbit(time_s)

    def set_medium_rate(self, mbit: float) -> None:
        """Change the rate that all share."""
        for command in shaping.medium_rate(len(self._pool.devices), mbit, change=True):
            run("tc", "-n", self._slot.hub, *command)

    def set_connected(self, rank: int, connected: bool) -> None:
        """Pull a device's cable out of the switch, or put it back."""
        run("ip", "-n", self._slot.hub, "link", "set", port(rank), "up" if connected else "down")

    def set_hearing(self, rank: int, hears: bool) -> None:
        """Let packets to a device vanish at the switch, or not; its own get through."""
        link = ("ip", "-n", self._slot.hub, "link", "set", port(rank), "type", "bridge_slave")
        on = "on" if hears else "off"
        # A switch that neither learns where a device is nor floods what it cannot place.
        run(*link, "learning", on, "flood", on, "mcast_flood", on, "bcast_flood", on)
        run(*link, "fdb_flush")

    def _connect(self, rank: int) -> None:
        slot = self._slot
        inside = ("ip", "-n", slot.namespace(rank))
        run("ip", "netns", "add", slot.namespace(rank))
        run(
            *(*inside, "link", "add", INTERFACE, "type", "veth"),
            *("peer", "name", port(rank), "netns", slot.hub),
        )
        run(*inside, "address", "add", f"{slot.address(rank)}/24", "dev", INTERFACE)
        run(*inside, "link", "set", "lo", "up")
        run(*inside, "link", "set", INTERFACE, "up")
        run("ip", "-n", slot.hub, "link", "set", port(rank), "master", "br0", "up")
        run("ip", "netns", "exec", slot.namespace(rank), "sh", "-c", _CONGESTION)

    def _shape(self, rank: int, device: Device) -> None:
        rate_mbit = self.rate_mbit(rank)
        if rate_mbit is None:
            return
        self.set_rate(rank, rate_mbit)
        if device.latency_s or device.loss:
            for namespace, interface in self._ends(rank):
                command = shaping.delay(interface, device.latency_s, device.loss)
                run("tc", "-n", namespace, *command)

    def _check_kernel(self) -> None:
        """Try what not every kernel has, where it disturbs nobody."""
        pool, hub = self._pool, self._slot.hub
        asking = [d.name for d in pool.devices if d.latency_s or d.loss]
        if asking and not succeeds(
            "tc", "-n", hub, *shaping.delay("lo", 0.001, 0.01, below_rate=False)
        ):
            raise TestbedError(
                "this kernel has no netem (CONFIG_NET_SCH_NETEM), which latency= and loss= need: "
                f"leave them out of {', '.join(asking)}, or load it (`modprobe sch_netem`)"
            )
        shared = self.medium_mbit() is not None
        if shared and not succeeds("ip", "-n", hub, "link", "add", "ifb9", "type", "ifb"):
            raise TestbedError(
                "this kernel has no ifb device (CONFIG_IFB), which medium= needs: give each device "
                "a link= instead, or load it (`modprobe ifb`)"
            )


def port(rank: int) -> str:
    """Return the name of a device's port at the switch."""
    return f"p{rank}"
