"""What a testbed leaves behind when it cannot clean up itself, and who cleans up then."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_edge.testbed import DeviceSpec, Testbed
from lightning_edge.testbed import slots as slots_module
from lightning_edge.testbed.slots import RUN, Slot, claim, release, remove_stale
from tests.testbed.conftest import alive, traces

QUICK = str(Path(__file__).parent / "programs" / "quick.py")

# A testbed whose devices have children of their own, two of them in sessions of their own.
VICTIM = """\
import sys
from lightning_edge.testbed import DeviceSpec, Testbed
with Testbed([DeviceSpec("a", cpu=0.5), DeviceSpec("b", link_mbit=10.0)]) as bed:
    print("slot", bed._slot.number, flush=True)
    bed.run(
        ["sh", "-c", "setsid sleep 1000 & setsid sleep 1000 & echo ready $$; wait"],
        printer=lambda name, line: print(name, line, flush=True),
        faults=["freeze:b@1s"],
    )
"""


def start_victim() -> tuple[subprocess.Popen[str], Slot, list[int]]:
    """Start a testbed in a process of its own; return it with its slot and its devices' pids."""
    victim = subprocess.Popen(
        [sys.executable, QUICK, "-c", VICTIM], stdout=subprocess.PIPE, text=True
    )
    assert victim.stdout is not None
    words = [victim.stdout.readline().split() for _ in range(3)]
    slot = next(Slot(int(line[1])) for line in words if line[:1] == ["slot"])
    return victim, slot, [int(line[2]) for line in words if line[1:2] == ["ready"]]


def processes(slot: Slot) -> set[int]:
    """All processes in the cgroups of a slot."""
    from lightning_edge.testbed.cgroup_mounts import find_cgroups

    return {
        int(pid)
        for top in find_cgroups().folders(str(slot.number))
        for file in top.rglob("cgroup.procs")
        for pid in file.read_text().split()
    }


@pytest.mark.root
@pytest.mark.multiproc
def test_the_next_testbed_removes_what_a_killed_one_left(slots):
    victim, slot, ranks = start_victim()
    try:
        assert len(ranks) == 2
        left = processes(slot)
        assert set(ranks) < left
        assert len(left) >= 6
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
    assert traces(slot), "nothing was left, so nothing is tested"
    with Testbed([DeviceSpec()]) as bed:
        assert bed._slot is not None
        assert not [pid for pid in left if alive(pid)]
        bed.run(["true"], timeout_s=20).check()
        slots += [slot, bed._slot]


@pytest.mark.root
@pytest.mark.multiproc
def test_devices_die_with_their_testbed_without_anybodys_help():
    victim, slot, ranks = start_victim()
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    deadline_s = time.monotonic() + 10
    while alive(ranks[0]) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert not alive(ranks[0])
    remove_stale()


@pytest.mark.root
@pytest.mark.multiproc
def test_a_living_testbed_is_left_alone():
    victim, slot, ranks = start_victim()
    try:
        before = traces(slot)
        assert slot.number not in remove_stale()
        assert traces(slot) == before
        assert all(alive(pid) for pid in ranks)
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
        remove_stale()


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Slots in a folder of their own, without cgroups and namespaces."""
    from lightning_edge.testbed.cgroup_v1 import CgroupsV1

    mounts = dict.fromkeys(CgroupsV1.NEEDED, tmp_path / "cgroup")
    monkeypatch.setattr(slots_module, "RUN", tmp_path / "run")
    monkeypatch.setattr(slots_module, "_NAMESPACES", tmp_path / "netns")
    monkeypatch.setattr(slots_module, "find_cgroups", lambda: CgroupsV1(mounts))
    return tmp_path


def test_slots_are_unique_and_taken_again_when_free(elsewhere):
    one, two = claim(), claim()
    assert (one.number, two.number) == (0, 1)
    assert one.address(0) != two.address(0)
    assert one.namespace(1) != two.namespace(1) != two.hub
    owner = json.loads((one.folder / "owner.json").read_text())
    assert owner["pid"] == os.getpid()
    release(one)
    release(one)  # harmless
    assert not one.folder.exists()
    assert claim() == one
    release(one)
    release(two)
    assert sorted(p.name for p in (elsewhere / "run").iterdir()) == ["lock"]


def test_a_slot_whose_process_id_was_given_to_another_is_stale(elsewhere):
    slot = claim()
    owner = json.loads((slot.folder / "owner.json").read_text())
    (slot.folder / "owner.json").write_text(json.dumps({**owner, "started": owner["started"] - 1}))
    assert remove_stale() == [slot.number]
    assert not slot.folder.exists()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"pid": 999999999, "started": 1}'])
def test_a_slot_without_a_readable_owner_is_stale(elsewhere, text):
    slot = claim()
    (slot.folder / "owner.json").write_text(text)
    assert remove_stale() == [slot.number]


def test_looking_for_stale_slots_makes_nothing(elsewhere):
    assert remove_stale() == []
    assert not (elsewhere / "run").exists()
    assert RUN.is_absolute()
