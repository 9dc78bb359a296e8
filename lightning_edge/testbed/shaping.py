"""Traffic shaping as lists of `tc` arguments: token buckets, delay and loss, a shared medium."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_edge.testbed.units import show_rate

__all__: list[str] = []

Command = tuple[str, ...]

# Longest time a packet waits in a full bucket's queue before it is dropped.
_QUEUE_S = 0.05
# A bucket lets its content through at once. 2.5 ms worth of it keeps the rate at gigabits (a
# smaller one gave 715 of 940 Mbit/s), 16 KiB hold some full packets at any rate.
_BURST_S = 0.0025
_LEAST_BURST_BYTES = 16 * 1024
_PACKET_BYTES = 1514  # an Ethernet frame


def burst_bytes(mbit: float) -> int:
    """Return the size of the token bucket for a rate."""
    return max(_LEAST_BURST_BYTES, round(mbit * 1e6 / 8 * _BURST_S))


def rate(interface: str, mbit: float) -> Command:
    """Limit what leaves an interface, or change that limit and keep what is below it."""
    return (
        *("qdisc", "replace", "dev", interface, "root", "handle", "1:"),
        *("tbf", "rate", show_rate(mbit), "burst", f"{burst_bytes(mbit)}b"),
        *("latency", f"{_QUEUE_S * 1e3:.0f}ms"),
    )


def no_rate(interface: str) -> Command:
    """Take the limit off an interface."""
    return ("qdisc", "del", "dev", interface, "root")


def delay(interface: str, latency_s: float, loss: float, *, below_rate: bool = True) -> Command:
    """Delay and lose packets that leave an interface (netem), below its `rate` or without one."""
    parent = ("parent", "1:1", "handle", "10:") if below_rate else ("root", "handle", "10:")
    # Room for everything that is under way at 1 Gbit/s; the default is 1000 packets.
    packets = max(1000, round(latency_s * 1e9 / 8 / _PACKET_BYTES * 1.5))
    lost = ("loss", f"{loss * 100:.6g}%") if loss else ()
    return (
        *("qdisc", "add", "dev", interface, *parent, "netem", "limit", str(packets)),
        *("delay", f"{latency_s * 1e6:.0f}us", *lost),
    )


def medium(ports: Sequence[str], addresses: Sequence[str], mbit: float) -> list[Command]:
    """Let all ports of a switch share one rate, as stations do on one Wi-Fi channel.

        port 0 -->+                        whatever enters the switch by any port is led through
        port 1 -->+--> ifb0 [htb] --> out  one device with one rate; each sender has a class of its
        port 2 -->+                        own, so that those who send get equal turns

    A single queue for all would do for the rate, but then one flow took 80 % of it.
    """
    commands: list[Command] = [
        ("qdisc", "add", "dev", "ifb0", "root", "handle", "1:", "htb", "default", "9999"),
        *medium_rate(len(ports), mbit, change=False),
    ]
    for number, address in enumerate(addresses, 1):
        commands.append(
            ("qdisc", "add", "dev", "ifb0", "parent", f"1:{number}0", "bfifo", "limit", "128kb")
        )
        commands.append(
            (
                *("filter", "add", "dev", "ifb0", "parent", "1:", "protocol", "ip", "u32"),
                *("match", "ip", "src", f"{address}/32", "flowid", f"1:{number}0"),
            )
        )
    for port in ports:
        commands.append(("qdisc", "add", "dev", port, "ingress"))
        commands.append(
            (
                *("filter", "add", "dev", port, "parent", "ffff:", "protocol", "all", "u32"),
                *("match", "u32", "0", "0", "action", "mirred"),
                *("egress", "redirect", "dev", "ifb0"),
            )
        )
    return commands


def medium_rate(stations: int, mbit: float, *, change: bool) -> list[Command]:
    """Set or change the rate of the shared medium."""
    verb = "change" if change else "add"
    burst = f"{burst_bytes(mbit)}b"
    limits = ("ceil", show_rate(mbit), "burst", burst, "cburst", burst)
    quantum = ("quantum", str(_PACKET_BYTES))
    head = ("class", verb, "dev", "ifb0", "parent")
    share = show_rate(mbit * 0.98 / stations)
    rest = show_rate(mbit * 0.02)  # what is not IP: address resolution
    return [
        (*head, "1:", "classid", "1:1", "htb", "rate", show_rate(mbit), *limits, *quantum),
        (*head, "1:1", "classid", "1:9999", "htb", "rate", rest, *limits, *quantum),
        *(
            (*head, "1:1", "classid", f"1:{n}0", "htb", "rate", share, *limits, *quantum)
            for n in range(1, stations + 1)
        ),
    ]
