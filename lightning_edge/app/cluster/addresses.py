"""This device's addresses, those first by which other devices are likely to reach it."""

from __future__ import annotations

import socket
from dataclasses import dataclass

import psutil

from lightning_edge.app.failure import CommandError

__all__: list[str] = []

# Interfaces of containers, virtual machines and tunnels: other devices rarely see them.
VIRTUAL = (
    *("docker", "veth", "br-", "virbr", "vmnet", "vboxnet", "tun", "tap", "wg", "tailscale", "zt"),
    *("cni", "flannel", "cali", "podman", "lxc", "lxd", "l4tbr", "usb", "rndis", "dummy"),
)


@dataclass(frozen=True)
class Address:
    """An IPv4 address of this device.

    Attributes:
        ip: The address.
        interface: Its network interface.
        kind: "network", "virtual" or "loopback".
    """

    ip: str
    interface: str
    kind: str


def own(interface: str | None = None) -> list[Address]:
    """All addresses of interfaces that are up, the most useful first.

    Args:
        interface: Only those of this interface.

    Raises:
        CommandError: There is no such interface, or it has no address.
    """
    states = psutil.net_if_stats()
    found = [
        Address(entry.address, name, kind_of(name, entry.address))
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family == socket.AF_INET and (name not in states or states[name].isup)
    ]
    if interface is not None:
        chosen = [address for address in found if address.interface == interface]
        if not chosen:
            known = ", ".join(f"{a.interface} ({a.ip})" for a in found) or "none"
            text = f"device.interface={interface} has no IPv4 address; those with one: {known}"
            raise CommandError(text, status=2)
        found = chosen
    order = {"network": 0, "virtual": 1, "loopback": 2}
    return sorted(found, key=lambda address: (order[address.kind], address.interface))


def kind_of(interface: str, ip: str) -> str:
    """Whether others are likely to reach an address."""
    if ip.startswith("127."):
        return "loopback"
    return "virtual" if interface.startswith(VIRTUAL) else "network"


def reachable(found: list[Address]) -> list[Address]:
    """Those to announce: all but loopback, without virtual ones if there are others."""
    network = [address for address in found if address.kind == "network"]
    return network or [address for address in found if address.kind != "loopback"] or found


def interface_of(ip: str) -> str | None:
    """The interface that has this address, None if it is not this device's."""
    return next((address.interface for address in own() if address.ip == ip), None)


def resolve(host: str, port: int) -> str:
    """The IPv4 address of a host.

    Raises:
        CommandError: It has none.
    """
    try:
        found = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        raise CommandError(
            f"cluster.host={host} cannot be resolved ({error.strerror}): give the address, such as"
            " 192.168.1.10, that `ip -4 addr` shows on the host"
        ) from None
    return str(found[0][4][0])
