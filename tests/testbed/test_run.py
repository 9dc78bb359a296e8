"""What happens during a run: faults, time limits, failures."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from lightning_edge.testbed import DeviceSpec, Testbed

pytestmark = [pytest.mark.thorough, pytest.mark.root, pytest.mark.multiproc]

STEPS = str(Path(__file__).parent / "programs" / "steps.py")


def test_a_device_is_killed_after_the_step_it_announced():
    with Testbed([DeviceSpec("a"), DeviceSpec("b")]) as bed:
        result = bed.run(
            [sys.executable, STEPS, "20", "0.1"],
            faults=["kill:b@step5", "kill:a@step99"],
            timeout_s=50,
        ).check()
    a, b = result.devices["a"], result.devices["b"]
    assert (a.outcome, a.exit_code, a.steps) == ("ok", 0, 20)
    assert (b.outcome, b.exit_code) == ("killed", -9)
    assert 5 <= b.steps < 20
    assert a.step_s == pytest.approx(0.1, rel=0.5)
    (killed, killed_s), (never, never_s) = result.faults
    assert (killed, never, never_s) == ("kill:b@step5", "kill:a@step99", None)
    assert killed_s is not None
    assert killed_s == pytest.approx(b.seconds, abs=1.0)


def test_a_frozen_device_stands_still_until_it_is_thawed():
    with Testbed([DeviceSpec("a"), DeviceSpec("b")]) as bed:
        result = bed.run(
            [sys.executable, STEPS, "10", "0.05"],
            faults=["freeze:b@step3", "thaw:b@2.5s"],
            timeout_s=50,
        ).check()
    a, b = result.devices["a"], result.devices["b"]
    assert b.steps == a.steps == 10
    assert b.seconds > 2.4


def test_a_frozen_device_can_be_stopped_and_leaves_nothing(slots):
    with Testbed([DeviceSpec("a")]) as bed:
        assert bed._slot is not None
        slots.append(bed._slot)
        result = bed.run(["sleep", "1000"], faults=["freeze:a@0s"], timeout_s=0.5)
    assert result.timed_out
    assert result.devices["a"].outcome == "stopped"


def test_a_slowed_device_gets_less_and_a_restored_one_all_again():
    burn = "import time\nend = time.monotonic() + 1.5\nwhile time.monotonic() < end: pass"
    with Testbed([DeviceSpec("a", cpu=0.8)]) as bed:
        slow = bed.run(["python3", "-c", burn], faults=["slow:a=10%@0s"], timeout_s=50).check()
        back = bed.run(
            ["python3", "-c", burn], faults=["slow:a=10%@0s", "restore:a@300ms"], timeout_s=50
        ).check()
    allowed_s = 0.08 * slow.seconds
    assert slow.devices["a"].cpu_s < 1.1 * allowed_s + 0.1  # what it used before it was slowed
    assert back.devices["a"].cpu_s > 1.5 * allowed_s


def test_a_free_start_lasts_until_a_device_is_ready():
    program = """
import os, time
def burn():
    end, used = time.monotonic() + 1, time.process_time()
    while time.monotonic() < end: pass
    return time.process_time() - used
free = burn()
if os.environ["RANK"] == "0":
    print("ready", file=open(os.environ["LIGHTNING_EDGE_STEP_FILE"], "a"))
time.sleep(0.1)
print(free, burn())
"""
    with Testbed([DeviceSpec("a", cpu=0.05), DeviceSpec("b", cpu=0.05)]) as bed:
        result = bed.run([sys.executable, "-c", program], free_start=True, timeout_s=50).check()
    (free_s, ready_s), (_, never_ready_s) = (
        [float(word) for word in device.lines[-1].split()] for device in result.devices.values()
    )
    assert ready_s < 0.06 * 1.1 < free_s
    assert never_ready_s > 0.06 * 1.1


CHATTER = """\
import os, socket, sys, time
rank = os.environ["RANK"]
if rank == "0":
    peer, _ = socket.create_server(("", 7000)).accept()
else:
    while True:
        try:
            peer = socket.create_connection((os.environ["MASTER_ADDR"], 7000), 5)
            break
        except OSError:
            time.sleep(0.05)
peer.settimeout(10)
longest_s, end_s = 0.0, time.monotonic() + 3
while time.monotonic() < end_s:
    start_s = time.monotonic()
    peer.sendall(b"x" * 100)
    got = 0
    while got < 100 and (piece := peer.recv(100 - got)):
        got += len(piece)
    longest_s = max(longest_s, time.monotonic() - start_s)
    time.sleep(0.01)
print(f"longest {longest_s:.3f}")
"""


@pytest.mark.parametrize("fault", ["cut", "deafen"])
def test_a_cut_device_is_silent_and_its_connections_outlive_it(fault):
    with Testbed([DeviceSpec("a"), DeviceSpec("b")]) as bed:
        result = bed.run(
            [sys.executable, "-c", CHATTER], faults=[f"{fault}:b@1s", "restore:b@2s"], timeout_s=50
        ).check()
    for device in result.devices.values():
        assert 0.9 < float(device.lines[-1].split()[-1]) < 3.0


@pytest.mark.slow
def test_a_cut_device_is_connected_again_for_the_next_run():
    with Testbed([DeviceSpec("a"), DeviceSpec("b")]) as bed:
        cut = bed.run([sys.executable, "-c", CHATTER], faults=["cut:b@1s"], timeout_s=4)
        assert cut.timed_out
        assert {device.outcome for device in cut.devices.values()} == {"stopped"}
        bed.run([sys.executable, "-c", CHATTER], timeout_s=30).check()


@pytest.mark.slow
def test_a_link_is_slowed_and_comes_back():
    traffic = str(Path(__file__).parent / "programs" / "traffic.py")
    with Testbed([DeviceSpec("a", link_mbit=40.0), DeviceSpec("b")]) as bed:
        slow = bed.run(
            [sys.executable, traffic, "1-", "1.5"], faults=["slow:a=4mbit@0s"], timeout_s=40
        ).check()
        fast = bed.run([sys.executable, traffic, "1-", "1.5"], timeout_s=40).check()
    slow_mbit, fast_mbit = (float(r.devices["b"].lines[-1].split()[2]) for r in (slow, fast))
    assert 0.7 * 4 < slow_mbit < 1.1 * 4
    assert 0.7 * 40 < fast_mbit < 1.1 * 40


def test_time_is_up_for_all_devices():
    start_s = time.monotonic()
    with Testbed([DeviceSpec("a"), DeviceSpec("b")]) as bed:
        result = bed.run(["sh", "-c", "test $RANK = 0 || sleep 1000"], timeout_s=1.0)
    assert time.monotonic() - start_s < 15
    assert result.timed_out
    assert not result.ok
    a, b = result.devices.values()
    assert (a.outcome, b.outcome, b.exit_code) == ("ok", "stopped", -15)


def test_the_others_get_some_time_to_notice_a_failure():
    with Testbed([DeviceSpec("a"), DeviceSpec("b")]) as bed:
        result = bed.run(
            [
                "sh",
                "-c",
                "test $RANK = 1 && exit 3; trap 'echo asked; exit 4' TERM; sleep 9 & wait",
            ],
            timeout_s=30,
            grace_s=0.5,
        )
    a, b = result.devices.values()
    assert not result.timed_out
    assert (b.outcome, b.exit_code) == ("failed", 3)
    assert (a.outcome, a.exit_code, a.lines) == ("stopped", 4, ("asked",))
    assert 0.4 < a.seconds < 8
