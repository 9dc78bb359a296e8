"""Links as they are: measured with real traffic between real processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lightning_edge.errors import TestbedError
from lightning_edge.testbed import DeviceSpec, PoolSpec, Testbed, Trace
from lightning_edge.testbed import network as network_module

pytestmark = [pytest.mark.thorough, pytest.mark.root, pytest.mark.multiproc]

TRAFFIC = str(Path(__file__).parent / "programs" / "traffic.py")
# What TCP delivers of a rate that counts whole Ethernet frames, as on a real cable.
PAYLOAD = 1448 / 1514


def measured_mbit(
    bed: Testbed, pattern: str, duration_s: float = 2.0
) -> dict[tuple[int, int], float]:
    """Send by this pattern and return Mbit/s by (sender, receiver)."""
    command = [sys.executable, TRAFFIC, pattern, str(duration_s)]
    result = bed.run(command, timeout_s=40).check()
    return {
        (int(line.split()[1]), device.rank): float(line.split()[2])
        for device in result.devices.values()
        for line in device.lines
        if line.startswith("from ")
    }


def assert_rates(
    bed: Testbed, pattern: str, expected_mbit: dict[tuple[int, int], float], duration_s: float = 2.0
) -> None:
    """Each flow gets what it should within a tenth; the flow (-1, -1) is the sum of all.

    A link must never give more. It may seem to give less when other programs keep the sender from
    sending, so the best of three measurements counts there.
    """
    best = dict.fromkeys(expected_mbit, 0.0)
    for _ in range(3):
        rates = measured_mbit(bed, pattern, duration_s)
        rates[-1, -1] = sum(rates.values())
        for flow, mbit in expected_mbit.items():
            assert rates[flow] <= 1.1 * mbit * PAYLOAD
            best[flow] = max(best[flow], rates[flow])
        if all(best[flow] >= 0.9 * mbit * PAYLOAD for flow, mbit in expected_mbit.items()):
            return
    pytest.fail(f"expected {expected_mbit} x {PAYLOAD:.3f} Mbit/s, found at best {best}")


def test_a_link_holds_its_rate_both_ways_at_once():
    with Testbed([DeviceSpec(link_mbit=20.0), DeviceSpec()]) as bed:
        assert_rates(bed, "1-0", {(0, 1): 20, (1, 0): 20})


@pytest.mark.slow
def test_the_slower_of_two_links_decides_and_others_are_not_held_up():
    specs = [DeviceSpec(link_mbit=mbit) for mbit in (40.0, 5.0, 40.0, 40.0)]
    with Testbed(specs) as bed:
        assert_rates(bed, "1--3-", {(0, 1): 5, (2, 3): 40})


@pytest.mark.slow
@pytest.mark.parametrize("mbit", [1.0, 100.0, 300.0])
def test_rates_hold_over_orders_of_magnitude(mbit):
    with Testbed([DeviceSpec(link_mbit=mbit), DeviceSpec()]) as bed:
        assert_rates(bed, "1-", {(0, 1): mbit}, duration_s=4.0)


def test_devices_on_one_medium_share_its_rate_in_equal_parts():
    pool = PoolSpec(tuple(DeviceSpec() for _ in range(4)), medium_mbit=30.0)
    with Testbed(pool) as bed:
        assert_rates(bed, "1---", {(0, 1): 30}, duration_s=1.5)
        assert_rates(bed, "3-3-3-", {(-1, -1): 30})
        together = measured_mbit(bed, "3-3-3-", duration_s=1.5)
    assert min(together.values()) > 0.15 * 30 * PAYLOAD  # a third each, but for TCP's own swings


def test_a_link_follows_its_trace_from_the_start_of_each_run():
    trace = Trace((0.0, 1.2), (2.0, 16.0), 60.0, "a test")
    with Testbed([DeviceSpec(trace=trace), DeviceSpec()]) as bed:
        rising = measured_mbit(bed, "1-", duration_s=2.5)
        again = bed.run([sys.executable, TRAFFIC, "1-", "0.8"], timeout_s=40).check()
    assert 4 * PAYLOAD < rising[0, 1] < 16 * PAYLOAD  # some of it at 2, the rest at 16
    assert again.devices["device0"].sent_bytes * 8e-6 < 1.5 * 2 * again.seconds


@pytest.mark.slow
def test_the_shared_medium_follows_its_trace():
    pool = PoolSpec(
        (DeviceSpec(), DeviceSpec()), medium_trace=Trace((0.0, 0.4), (1.0, 12.0), 60.0, "a test")
    )
    with Testbed(pool) as bed:
        assert bed.pool.medium_mbit is None
        rates = measured_mbit(bed, "1-", duration_s=4.0)
    assert 6 < rates[0, 1] < 12


def test_bytes_are_counted_where_they_pass():
    with Testbed([DeviceSpec(link_mbit=20.0), DeviceSpec(), DeviceSpec()]) as bed:
        result = bed.run([sys.executable, TRAFFIC, "1--", "1.5"], timeout_s=40).check()
        lines = result.devices["device1"].lines
    sender, receiver, third = result.devices.values()
    assert lines
    assert sender.sent_bytes == pytest.approx(receiver.received_bytes, rel=0.02)
    # Sent for 1.5 s, and the buffers of the sockets drain afterwards.
    assert sender.sent_bytes > 0.9 * 20e6 / 8 * 1.5
    assert sender.received_bytes < 0.1 * sender.sent_bytes
    assert third.sent_bytes + third.received_bytes < 20_000


def test_what_the_kernel_lacks_is_said_before_anything_runs(monkeypatch):
    monkeypatch.setattr(network_module, "succeeds", lambda *command: False)
    with (
        pytest.raises(TestbedError, match=r"no netem .*leave them out of far, slow"),
        Testbed([DeviceSpec("far", latency_s=0.1), DeviceSpec(), DeviceSpec("slow", loss=0.1)]),
    ):
        pass
    with (
        pytest.raises(TestbedError, match=r"no ifb device .*medium= .*`modprobe ifb`"),
        Testbed(PoolSpec((DeviceSpec(),), medium_mbit=10.0)),
    ):
        pass


def test_latency_is_added_where_the_kernel_can():
    ping = (
        "import os, socket, time\n"
        "rank, host = os.environ['RANK'], os.environ['MASTER_ADDR']\n"
        "if rank == '0':\n"
        "    peer, _ = socket.create_server(('', 7000)).accept()\n"
        "    for _ in range(5): peer.sendall(peer.recv(1))\n"
        "else:\n"
        "    time.sleep(1)\n"
        "    peer = socket.create_connection((host, 7000))\n"
        "    start = time.monotonic()\n"
        "    for _ in range(5): peer.sendall(b'x'); peer.recv(1)\n"
        "    print((time.monotonic() - start) / 5)\n"
    )
    specs = [DeviceSpec(latency_s=0.02), DeviceSpec(link_mbit=50.0)]
    try:
        bed = Testbed(specs).__enter__()
    except TestbedError as error:
        pytest.skip(str(error))
    with bed:
        result = bed.run([sys.executable, "-c", ping], timeout_s=30).check()
    round_trip_s = float(result.devices["device1"].lines[-1])
    assert round_trip_s == pytest.approx(0.04, rel=0.5)
