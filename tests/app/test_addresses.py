"""Which of a device's addresses others are likely to reach."""

from __future__ import annotations

import socket
from collections import namedtuple

import psutil
import pytest

from lightning_edge.app.cluster import addresses
from lightning_edge.app.failure import CommandError

Entry = namedtuple("Entry", "family address")
State = namedtuple("State", "isup")


@pytest.fixture
def interfaces(monkeypatch):
    found = {
        "lo": "127.0.0.1",
        "docker0": "172.17.0.1",
        "l4tbr0": "192.168.55.1",
        "wlan0": "192.168.1.7",
        "eth1": "10.0.0.3",
    }
    entries = {name: [Entry(socket.AF_INET, ip)] for name, ip in found.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: entries)
    states = {name: State(name != "eth1") for name in found}
    monkeypatch.setattr(psutil, "net_if_stats", lambda: states)


def test_real_interfaces_that_are_up_come_first_and_loopback_last(interfaces):
    found = addresses.own()
    assert [address.interface for address in found] == ["wlan0", "docker0", "l4tbr0", "lo"]
    assert [address.ip for address in addresses.reachable(found)] == ["192.168.1.7"]
    assert addresses.interface_of("172.17.0.1") == "docker0"
    assert addresses.interface_of("8.8.8.8") is None


def test_an_interface_that_was_asked_for_is_taken_or_missed_by_name(interfaces):
    (found,) = addresses.own("docker0")
    assert addresses.reachable([found]) == [found]
    with pytest.raises(CommandError, match=r"device.interface=eth0 has no IPv4 address; .*wlan0"):
        addresses.own("eth0")
