from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.bound import one_f_one_b, simulate_s
from lightning_edge.errors import PlanError, ProfileError
from lightning_edge.plan import Pipeline, Plan, Stage
from lightning_edge.plan.layout import Layout
from lightning_edge.plan.profile import (
    Block,
    Device,
    Link,
    Model,
    PowerMode,
    Profile,
    Shared,
    Timing,
)
from lightning_edge.plan.schedule import check, parse_text, schedule
from lightning_edge.plan.simulate import simulate
from tests.plan.plans import plans
from tests.plan.profiles import simple


def pipeline(stages: int, blocks: int, micro_batches: int, depths: list[int] | None = None) -> Plan:
    """Device i on the i-th of as many equal stretches of blocks."""
    each = blocks // stages
    return Plan(
        [
            Pipeline(
                [
                    Stage(
                        [i],
                        f"b{i * each}" if i else None,
                        in_flight=depths[i] if depths else "auto",
                    )
                    for i in range(stages)
                ]
            )
        ],
        micro_batches,
    )


def test_one_device_computes_all_the_time():
    plan = Plan([Pipeline([Stage([0])])], 1)
    found = simulate(plan, simple([2.0]), rows=8)
    assert found.step_s == pytest.approx(8 * 4 * 0.03 / 2)
    assert found.makespan_s == found.step_s
    device = found.devices[0]
    assert device.compute_s == pytest.approx(found.step_s)
    assert device.communication_s == device.waiting_s == 0
    assert found.energy_j == pytest.approx(10 * found.step_s)
    assert [event.kind for event in found.timeline] == ["forward", "backward", "step"]


@pytest.mark.parametrize(
    ("depths", "mbit"),
    [([1, 1], 0.05), ([2, 1], 0.05), ([3, 1], 0.3), ([8, 8], 0.3), ([3, 1], 1.0)]
    # a middle stage sends both ways over one connection, which that model does not know
    + [([1, 1, 1], 1e6), ([3, 2, 1], 1e6), ([5, 3, 1], 1e6), ([8, 8, 8], 1e6)],
)
def test_a_pipeline_is_what_an_independent_model_says(depths: list[int], mbit: float):
    number = len(depths)
    profile = simple([1] * number, blocks=number, mbit=mbit)
    found = simulate(pipeline(number, number, 8, depths), profile, rows=8)
    expected = simulate_s(one_f_one_b(8, depths), 0.01, 0.02, 1000 * 8e-6 / mbit)
    assert found.makespan_s == pytest.approx(expected)


def test_the_lists_are_those_of_the_schedule():
    profile = simple([1, 1], blocks=4)
    plan = pipeline(2, 4, 4).resolve(profile.names)
    found = simulate(plan, profile, rows=8)
    lists = schedule(plan, 4)
    assert simulate(plan, profile, rows=8, lists=lists) == found
    for rank, line in lists.items():
        ran = [
            f"{event.kind[0].upper()}{event.micro_batch}"
            for event in found.timeline
            if event.rank == rank and event.kind in ("forward", "backward")
        ]
        assert ran == [str(i) for i in line if i.micro_batch is not None]


def test_other_lists_can_be_simulated():
    profile = simple([1, 1], blocks=4)
    plan = pipeline(2, 4, 2, [2, 2]).resolve(profile.names)
    lists = parse_text("0: F0 F1 B0 R B1 S\n1: F0 F1 B0 B1 R S")
    check(lists, plan, 2, Layout(plan, 2))
    slower = simulate(plan, profile, rows=2, lists=lists).step_s
    assert slower >= simulate(pipeline(2, 4, 2, [2, 1]), profile, rows=2).step_s


def test_replicas_sum_their_gradients_behind_the_last_backward():
    profile = simple([1, 1], blocks=2, parameters=10**6, mbit=80)
    plan = Plan([Pipeline([Stage({0: 0.5, 1: 0.5})])], 1)
    found = simulate(plan, profile, rows=2)
    backward = 2 * 0.02
    # 2 MB at 10 MB/s for two devices; the second half of the model is final half a backward early
    summing = 2 * 10**6 / 1e7
    forward = 2 * 0.01
    assert found.step_s == pytest.approx(forward + backward + summing)  # one bucket: all at once
    assert found.devices[0].bytes_sent == {1: pytest.approx(2 * 10**6)}
    many = simple([1, 1], blocks=8, parameters=8 << 20, mbit=8000)
    found = simulate(plan, many, rows=2)
    summing = 8 * (8 << 20) / 1e9
    assert 8 * 0.03 < found.step_s < 8 * 0.03 + summing  # overlapped


def test_a_later_stage_sums_while_the_first_goes_on():
    profile = simple([1, 1, 1], blocks=2, parameters=10**6, mbit=80, crossing=0)
    plan = Plan([Pipeline([Stage([0]), Stage({1: 0.5, 2: 0.5}, "b1")])], 2)
    found = simulate(plan, profile, rows=4)
    # stage 1 is busy for 2 x (F + B) of one row and the sum; the next step's first forward of
    # stage 0 overlaps that
    assert found.step_s == pytest.approx(max(2 * 0.03 + 0.1, 4 * 0.03 + 0.03), rel=0.3)
    assert found.makespan_s > found.step_s


def test_tied_parameters_are_summed_over_stages():
    base = simple([1, 1], blocks=2, parameters=0, mbit=80)
    shared = Shared("wte", ("b0", "b1"), 10**6)
    tied = Profile(base.devices, Model("m", base.model.blocks, (shared,)), base.links)
    plan = pipeline(2, 2, 2)
    apart, together = simulate(plan, base, rows=4), simulate(plan, tied, rows=4)
    assert together.makespan_s > apart.makespan_s + 0.05
    assert [e.kind for e in together.timeline].count("reduce") == 2
    assert together.devices[0].peak_bytes == apart.devices[0].peak_bytes + 4 * 10**6


def test_one_medium_carries_one_message_at_a_time():
    profile = simple([1, 1], blocks=2, mbit=0.3)
    air = [Link(k.source, k.target, k.seconds_per_byte, 0.0, ("air",)) for k in profile.links]
    shared = Profile(profile.devices, profile.model, tuple(air))
    plan = pipeline(2, 2, 8, [4, 1])
    each = 1000 * 8e-6 / 0.3
    assert (
        simulate(plan, shared, rows=8).step_s >= 16 * each > simulate(plan, profile, rows=8).step_s
    )


def test_two_senders_share_a_receivers_connection():
    plan = Plan([Pipeline([Stage({0: 0.5, 1: 0.5}), Stage([2], "b1")])], 2)
    profile = simple([100, 100, 100], blocks=2, mbit=1)
    found = simulate(plan, profile, rows=8)
    # 8 rows of 1000 bytes into device 2 at 1 Mbit/s, then the last gradients back
    assert found.makespan_s >= 8 * 1000 * 8e-6


def test_rows_of_the_next_batch_share_the_owners_connection():
    base = simple([1, 1], blocks=2, mbit=1)
    fed = Profile(base.devices, Model("m", base.model.blocks, batch_bytes=100_000), base.links)
    plan = pipeline(2, 2, 4)
    assert simulate(plan, fed, rows=4).step_s >= 4 * 100_000 * 8e-6
    alone = simulate(plan, fed, rows=4, owner=None)
    assert alone.timeline == simulate(plan, base, rows=4).timeline


def test_seconds_and_joules_add_up():
    profile = simple([1, 3, 2], blocks=4, mbit=1, latency_s=0.01)
    plan = Plan([Pipeline([Stage({0: 0.25, 1: 0.75}), Stage([2], "b2")])], 4)
    found = simulate(plan, profile, rows=16)
    for device in found.devices.values():
        parts = device.compute_s + device.communication_s + device.waiting_s
        assert parts == pytest.approx(found.step_s)
        watts = 10 * device.compute_s + 4 * device.communication_s + 2 * device.waiting_s
        assert device.energy_j == pytest.approx(watts)
    assert found.energy_j == pytest.approx(sum(d.energy_j or 0 for d in found.devices.values()))


def test_without_watts_no_joules():
    base = simple([1, 1])
    silent = Device("d0", timing="any")
    profile = Profile((silent, base.devices[1]), base.model, base.links)
    found = simulate(pipeline(2, 4, 2), profile, rows=4)
    assert found.energy_j is None
    assert found.devices[0].energy_j is None
    assert found.devices[1].energy_j is not None


def test_memory_counts_what_is_in_flight():
    profile = simple([1, 1], blocks=4, activation=5000.0, memory_bytes=60_000, crossing=0)
    deep = simulate(pipeline(2, 4, 8, [4, 1]), profile, rows=8)
    flat = simulate(pipeline(2, 4, 8, [2, 1]), profile, rows=8)
    assert deep.devices[0].peak_bytes - flat.devices[0].peak_bytes == 2 * 2 * 5000
    assert deep.devices[0].peak_bytes == 2 * 4 * 1000 + 4 * 2 * 5000
    assert deep.fits
    assert not simulate(pipeline(2, 4, 4, [4, 1]), profile, rows=16).fits
    again = Plan([Pipeline([Stage([0], in_flight=4, checkpoint=True), Stage([1], "b2")])], 8)
    saved = simulate(again, profile, rows=8)
    assert saved.devices[0].peak_bytes < flat.devices[0].peak_bytes
    assert saved.devices[0].compute_s > deep.devices[0].compute_s


def test_packing_takes_a_devices_time():
    fast = simulate(pipeline(2, 4, 2), simple([1, 1]), rows=4)
    slow = simulate(pipeline(2, 4, 2), simple([1, 1], copy_s_per_byte=1e-5), rows=4)
    assert slow.step_s > fast.step_s
    assert slow.devices[0].compute_s == fast.devices[0].compute_s
    assert slow.devices[0].communication_s > fast.devices[0].communication_s


def test_power_modes_change_speed_and_watts():
    modes = (PowerMode("fast", 2.0, None, 1, 20, 2), PowerMode("slow", 1.0, None, 1, 5, 2))
    block = Block("b0", {"any": Timing((1,), (0.1,), (0.2,))})
    profile = Profile((Device("d", timing="any", modes=modes),), Model("m", (block,)))
    bare = Plan([Pipeline([Stage([0])])], 1)
    slow = Plan([Pipeline([Stage([0])])], 1, {"d": "slow"})
    assert simulate(bare, profile, rows=1).energy_j == pytest.approx(0.15 * 20)
    assert simulate(slow, profile, rows=1).energy_j == pytest.approx(0.3 * 5)
    with pytest.raises(PlanError, match=r"d has no mode \"slwo\".*fast, slow.*did you mean"):
        simulate(Plan([Pipeline([Stage([0])])], 1, {0: "slwo"}), profile, rows=1)


def test_what_does_not_fit_is_refused():
    base = simple([1, 1])
    apart = Profile(base.devices, base.model)
    with pytest.raises(PlanError, match="d0 has to send to d1.*no link between them"):
        simulate(pipeline(2, 4, 2), apart, rows=4)
    with pytest.raises(PlanError, match="not a cut point"):
        simulate(Plan([Pipeline([Stage([0]), Stage([1], "b9")])], 2), base, rows=4)
    other = Device("d1", timing="none")
    with pytest.raises(ProfileError, match="d1 has no timings of 4 blocks"):
        simulate(pipeline(2, 4, 2), Profile((base.devices[0], other), base.model), rows=4)


def test_pictures(tmp_path: Path):
    found = simulate(pipeline(2, 4, 4), simple([1, 1], mbit=1), rows=8)
    lines = found.draw(60).splitlines()
    assert lines[0].startswith("0 d0  F")
    assert "B" in lines[1]
    assert "." in lines[1]
    assert all(len(line) <= 60 for line in lines[:3])
    found.plot(tmp_path / "a.png", measured=found.timeline)
    assert (tmp_path / "a.png").stat().st_size > 10_000
    found.chrome_trace(tmp_path / "a.json")
    events = json.loads((tmp_path / "a.json").read_text())["traceEvents"]
    assert {e["name"] for e in events} >= {"forward 0", "backward 3", "step", "send 0"}
    assert json.loads(found.to_json())["devices"]["1"]["stage"] == 1
    assert "0 d0 (default)" in str(found)


def test_a_simulator_is_deterministic():
    profile = simple([1, 2, 1, 3], blocks=4, mbit=1)
    plan = Plan([Pipeline([Stage({0: 0.4, 1: 0.6}), Stage([2, 3], "b2")])], 8)
    assert simulate(plan, profile, rows=32) == simulate(plan, profile, rows=32)


@given(plans(), st.floats(0.01, 1000), st.booleans())
@settings(max_examples=25)
def test_work_is_conserved(plan: Plan, mbit: float, shared: bool):
    count, rows = len(plan.stages), 12
    base = simple([1 + i % 3 for i in range(20)], blocks=count, mbit=mbit)
    links = base.links
    names = ["head", *(f"b{i}" for i in range(count))]
    row = tuple(replace(b, name=n) for b, n in zip(base.model.blocks, names, strict=False))
    if shared:
        links = tuple(Link(k.source, k.target, k.seconds_per_byte, 0, ("air",)) for k in links)
    found = simulate(plan, Profile(base.devices, Model("m", row), links), rows=rows, owner=None)
    done = {"forward": 0.0, "backward": 0.0}
    for event in found.timeline:
        if event.kind in done:
            done[event.kind] += (event.end_s - event.start_s) * (1 + event.rank % 3)
    assert done["forward"] == pytest.approx(0.01 * count * rows)
    assert done["backward"] == pytest.approx(0.02 * count * rows)
    assert found.step_s <= found.makespan_s * (1 + 1e-9)
    for device in found.devices.values():
        assert device.compute_s <= found.step_s * (1 + 1e-9)
        parts = device.compute_s + device.communication_s + device.waiting_s
        assert parts == pytest.approx(found.step_s)


@given(st.floats(0.05, 100), st.floats(1, 10), st.integers(1, 8), st.integers(1, 4))
@settings(max_examples=40)
def test_more_bandwidth_is_never_slower(mbit: float, more: float, micro_batches: int, depth: int):
    plan = pipeline(2, 4, micro_batches, [depth, 1])
    slow = simulate(plan, simple([1, 2], mbit=mbit), rows=16).step_s
    assert simulate(plan, simple([1, 2], mbit=mbit * more), rows=16).step_s <= slow * (1 + 1e-9)
