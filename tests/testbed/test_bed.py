"""A testbed as a whole: what a device finds, and that nothing else of the machine notices."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from lightning_edge.errors import TestbedError
from lightning_edge.testbed import DeviceSpec, Testbed
from lightning_edge.testbed import bed as bed_module
from tests.testbed.conftest import alive, traces

TRAFFIC = str(Path(__file__).parent / "programs" / "traffic.py")

ROOT_ONLY = pytest.mark.root


def slot_of(bed: Testbed):
    assert bed._slot is not None
    return bed._slot


@ROOT_ONLY
def test_a_device_finds_itself_and_the_others(slots):
    program = (
        "import json, os, socket\n"
        "names = {n: socket.gethostbyname(n) for n in ('left', 'right')}\n"
        "keys = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE', 'GROUP_RANK',\n"
        "        'MASTER_ADDR', 'MASTER_PORT', 'GLOO_SOCKET_IFNAME', 'OMP_NUM_THREADS',\n"
        "        'LIGHTNING_EDGE_DEVICE', 'CUDA_VISIBLE_DEVICES', 'MINE')\n"
        "print(json.dumps({'host': socket.gethostname(), 'names': names,\n"
        "    'links': sorted(os.listdir('/proc/sys/net/ipv4/conf')),\n"
        "    'own': open('/proc/self/net/fib_trie').read().count('32 host LOCAL'),\n"
        "    **{k: os.environ.get(k) for k in keys}}))\n"
    )
    host, hosts = socket.gethostname(), Path("/etc/hosts").read_text()
    with Testbed([DeviceSpec("left", cpu=0.5), DeviceSpec("right", cpu=1.2)]) as bed:
        slots.append(slot_of(bed))
        address = slot_of(bed).address
        found = {}
        for run in range(2):
            result = bed.run(
                [sys.executable, "-c", program], env={"MINE": str(run)}, timeout_s=30
            ).check()
            found = {name: json.loads(d.lines[-1]) for name, d in result.devices.items()}
            for rank, name in enumerate(("left", "right")):
                assert found[name]["names"] == {"left": address(0), "right": address(1)}
                assert found[name]["host"] == found[name]["LIGHTNING_EDGE_DEVICE"] == name
                assert found[name]["RANK"] == found[name]["GROUP_RANK"] == str(rank)
                assert found[name]["LOCAL_RANK"] == "0"
                assert found[name]["WORLD_SIZE"] == "2"
                assert found[name]["LOCAL_WORLD_SIZE"] == "1"
                assert found[name]["MASTER_ADDR"] == address(0)
                assert found[name]["MASTER_PORT"] == str(29500 + run)
                assert found[name]["GLOO_SOCKET_IFNAME"] == "eth0"
                assert found[name]["CUDA_VISIBLE_DEVICES"] == ""
                assert found[name]["MINE"] == str(run)
                assert found[name]["links"] == ["all", "default", "eth0", "lo"]
        assert found["left"]["OMP_NUM_THREADS"] == "1"
        assert found["right"]["OMP_NUM_THREADS"] == "2"
    assert (socket.gethostname(), Path("/etc/hosts").read_text()) == (host, hosts)


@ROOT_ONLY
@pytest.mark.multiproc
def test_two_testbeds_side_by_side_do_not_touch_each_other(slots):
    with (
        Testbed([DeviceSpec(link_mbit=8.0), DeviceSpec()]) as one,
        Testbed([DeviceSpec(link_mbit=24.0), DeviceSpec()]) as two,
    ):
        slots += [slot_of(one), slot_of(two)]
        assert slot_of(one).number != slot_of(two).number
        first, second = traces(slot_of(one)), traces(slot_of(two))
        assert not set(first) & set(second)
        reachable = (
            "import socket, sys\n"
            "try: socket.create_connection((sys.argv[1], 9), 0.5)\n"
            "except OSError as error: print(type(error).__name__, error.errno)\n"
        )
        other = slot_of(two).address(0)
        result = one.run([sys.executable, "-c", reachable, other], timeout_s=30).check()
        assert result.devices["device0"].lines == ("OSError 101",)  # the network is unreachable
        # Both at once: the second one runs in a thread, as its processes die with their thread.
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as pool:
            command = [sys.executable, TRAFFIC, "1-", "2"]
            beside = pool.submit(lambda: two.run(command, timeout_s=40).check())
            here = one.run(command, timeout_s=40).check()
            there = beside.result()
        slow, fast = (float(r.devices["device1"].lines[-1].split()[2]) for r in (here, there))
        assert 0.7 * 8 < slow < 1.1 * 8  # closer measurements are those of test_network.py
        assert 0.7 * 24 < fast < 1.1 * 24
        one.close()
        assert traces(slot_of(two)) == second
        two.run(["true"], timeout_s=20).check()


@ROOT_ONLY
def test_nothing_is_left_of_a_testbed_that_worked_or_failed(slots):
    with Testbed([DeviceSpec(), DeviceSpec()]) as bed:
        slots.append(slot_of(bed))
        assert len(traces(slot_of(bed))) >= 4
        # A process that the command leaves behind belongs to the device, and goes with it.
        orphan = "import subprocess; print(subprocess.Popen(['sleep', '1000']).pid)"
        result = bed.run([sys.executable, "-c", orphan], timeout_s=30).check()
        for device in result.devices.values():
            assert not alive(device.lines[-1])


@ROOT_ONLY
def test_nothing_is_left_of_a_testbed_that_broke_off(slots):
    def fail() -> None:
        with Testbed([DeviceSpec()]) as bed:
            slots.append(slot_of(bed))
            raise ZeroDivisionError

    def interrupt(name: str, line: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def break_off() -> None:
        with Testbed([DeviceSpec()]) as bed:
            slots.append(slot_of(bed))
            bed.run(["sh", "-c", "echo go; sleep 1000"], printer=interrupt, timeout_s=30)

    with pytest.raises(ZeroDivisionError):
        fail()
    with pytest.raises(KeyboardInterrupt):
        break_off()


@ROOT_ONLY
def test_commands_are_found_and_what_cannot_be_done_is_refused_in_words():
    with pytest.raises(TestbedError, match="use it as `with Testbed"):
        Testbed([DeviceSpec()]).run(["true"])
    with Testbed([DeviceSpec("pi")]) as bed:
        with pytest.raises(TestbedError, match="no command"):
            bed.run([])
        with pytest.raises(TestbedError, match=r"kill:orin@1s names a device that is not there"):
            bed.run(["true"], faults=["kill:orin@1s"])
        with pytest.raises(TestbedError, match="already built"), bed:
            pass
        own = ["python", "-c", "import sys; print(sys.executable)"]
        assert bed.run(own, timeout_s=20).devices["pi"].lines == (sys.executable,)
        result = bed.run(["no-such-program"], timeout_s=20)
        assert result.devices["pi"].outcome == "failed"
        with pytest.raises(TestbedError, match="cannot run 'no-such-program': .*No such file"):
            result.check()


def test_without_root_it_says_so(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(TestbedError, match=r"needs root; this is user 1000: run it as `sudo "):
        Testbed([DeviceSpec()])


def test_elsewhere_than_on_linux_it_says_so(monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(TestbedError, match=r"needs Linux .*this is darwin"):
        Testbed([DeviceSpec()])


def test_everything_missing_is_named_at_once(monkeypatch):
    missing = ("the command `tc` is missing", "root lacks CAP_NET_ADMIN here")
    monkeypatch.setattr(bed_module, "missing_requirements", lambda: missing)
    with pytest.raises(TestbedError, match="2 problems") as raised:
        Testbed([DeviceSpec()])
    assert all(text in str(raised.value) for text in missing)
