from __future__ import annotations

import pytest

from lightning_edge.errors import TestbedError
from lightning_edge.testbed import DeviceSpec, PoolSpec, PowerCurve, load_trace
from lightning_edge.testbed.boards import find_board
from lightning_edge.testbed.machine import Machine
from lightning_edge.testbed.resolve import resolve

SMALL = Machine(cores=2, memory_bytes=16 * 2**30, core_gflops=100.0)
LARGE = Machine(cores=64, memory_bytes=256 * 2**30, core_gflops=1000.0)


def pool(*specs: str, **settings: object) -> PoolSpec:
    return PoolSpec(tuple(DeviceSpec.parse(text) for text in specs), **settings)  # type: ignore[arg-type]


def test_ratios_between_boards_are_kept_whatever_the_machine():
    spec = pool("orin-nano:15W", "xavier-nx:15W", "pi5")
    for machine in (SMALL, Machine(1, 2**30, 10.0), Machine(8, 2**34, 55.0)):
        cores = [device.cores for device in resolve(spec, machine).devices]
        assert cores[0] / cores[1] == pytest.approx(473 / 315)
        assert cores[0] / cores[2] == pytest.approx(473 / 64)
        assert max(cores) <= 1.0
        assert sum(cores) <= 0.9 * machine.cores + 1e-9


def test_the_slowdown_says_how_much_slower_than_the_boards_it_is():
    found = resolve(pool("orin-nano:15W", "pi5"), SMALL)
    assert found.slowdown == pytest.approx(4.73)
    assert found.devices[0].cores == pytest.approx(1.0)
    assert "1 s of the boards takes 4.73 s here" in found.notes[0]


def test_boards_slower_than_the_machine_run_at_their_own_speed():
    found = resolve(pool("pi4", "pi5"), LARGE)
    assert found.slowdown == 1.0
    assert [device.cores for device in found.devices] == pytest.approx([0.024, 0.064])


def test_boards_share_what_other_devices_leave():
    found = resolve(pool("xavier-nx", "xavier-nx", "cpu=80%"), SMALL)
    assert [device.cores for device in found.devices] == pytest.approx([0.5, 0.5, 0.8])


def test_what_is_given_wins_over_the_board():
    found = resolve(pool("orin-nano:15W,cpu=30%,memory=1G,link=5mbit,power=1W-2W"), SMALL)
    device = found.devices[0]
    assert (device.cores, device.memory_bytes, device.link_mbit) == (0.3, 2**30, 5.0)
    assert device.power == PowerCurve(1.0, 2.0)
    assert found.slowdown is None


def test_joules_are_as_much_larger_as_time_is_longer():
    found = resolve(pool("orin-nano:15W", "pi5", "cpu=1%,power=1W-2W"), SMALL)
    for device, curve in zip(
        found.devices, [find_board("orin-nano").curve, find_board("pi5").curve, None], strict=True
    ):
        curve = curve or PowerCurve(1.0, 2.0)
        a_second_of_the_board_j = curve.joules(0.5, 1.0, 1e6)
        here_j = device.power.joules(0.5, found.slowdown, 1e6)
        assert here_j == pytest.approx(found.slowdown * a_second_of_the_board_j)
    assert any("joules are 4.73 times those of the boards" in note for note in found.notes)


def test_the_board_fills_what_is_not_given():
    board = find_board("pi5")
    found = resolve(pool("pi5"), SMALL)
    assert found.slowdown == 1.0
    device = found.devices[0]
    assert (device.name, device.board) == ("pi5", "pi5")
    assert (device.memory_bytes, device.link_mbit) == (board.memory_bytes, board.link_mbit)
    assert device.power == board.curve


def test_links_are_slowed_down_with_the_boards_on_request():
    trace = load_trace("wifi-indoors")
    spec = PoolSpec(
        (
            DeviceSpec(board="orin-nano:15W", link_mbit=100.0, latency_s=0.01),
            DeviceSpec(board="pi5", trace=trace),
        ),
        medium_mbit=50.0,
        scale_links=True,
    )
    found = resolve(spec, SMALL)
    factor = 4.73
    assert found.link_slowdown == pytest.approx(factor)
    assert found.devices[0].link_mbit == pytest.approx(100 / factor)
    assert found.devices[0].latency_s == pytest.approx(0.01 * factor)
    assert found.medium_mbit == pytest.approx(50 / factor)
    slower = found.devices[1].trace
    assert slower.rate_mbit(10.2 * factor) == pytest.approx(trace.rate_mbit(10.2) / factor)
    assert slower.mean_mbit == pytest.approx(trace.mean_mbit / factor)


def test_unlimited_devices_stay_unlimited():
    device = resolve(PoolSpec((DeviceSpec(),)), Machine(2, 2**34, None)).devices[0]
    assert (device.name, device.cores, device.memory_bytes) == ("device0", None, None)
    assert (device.link_mbit, device.power, device.threads) == (None, None, 1)


def test_devices_of_one_kind_get_names_of_their_own():
    found = resolve(pool("pi5", "pi5:", "orin-nano:7W", "name=orin-nano-x", "cpu=1%"), SMALL)
    names = [device.name for device in found.devices]
    assert names == ["pi5-0", "pi5-1", "orin-nano", "orin-nano-x", "device4"]


def test_a_device_has_threads_for_its_cores():
    devices = resolve(pool("cpu=60%", "cpu=100%", "cpu=250%", "cpu=400%"), LARGE).devices
    assert [device.threads for device in devices] == [1, 1, 3, 4]


def test_quotas_that_cannot_hold_are_refused():
    with pytest.raises(TestbedError, match=r"add up to 240% of a core .* has 200 %.* 75 % of that"):
        resolve(pool("cpu=160%", "cpu=80%"), SMALL)
    with pytest.raises(TestbedError, match="leaves nothing of 2 cores"):
        resolve(pool("cpu=190%", "pi5"), SMALL)
    with pytest.raises(TestbedError, match=r"pi4 would get 0.12% of a core; the least is 0.2%"):
        resolve(pool("agx-orin:MAXN", "agx-orin:MAXN,name=b", "pi4", "cpu=160%"), SMALL)


def test_all_problems_come_together():
    with pytest.raises(TestbedError, match="3 problems") as raised:
        resolve(pool("commodore", "cpu=300%", "name=a_b"), SMALL)
    for part in ("'commodore'", "300%", "'a_b'"):
        assert part in str(raised.value)


def test_notes_say_what_is_emulated_and_what_is_assumed():
    notes = "\n".join(resolve(pool("nano", "agx-orin", "power=1W-2W", "cpu=10%"), SMALL).notes)
    assert "emulated from CPU time and bytes, not measured" in notes
    assert "nano's watts are assumed" in notes
    assert "64 GiB of memory are more than the 16 GiB of this machine" in notes
    assert "links run at their real rate" in notes
    assert resolve(pool("cpu=10%"), SMALL).notes == ()
