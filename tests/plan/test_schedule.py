from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.pipelining._schedule_visualizer import get_schedule_ops

from lightning_edge.errors import ScheduleError
from lightning_edge.plan import Pipeline, Plan, Stage
from lightning_edge.plan.layout import Layout
from lightning_edge.plan.schedule import (
    Op,
    check,
    forward_schedule,
    parse_text,
    schedule,
    to_text,
)
from lightning_edge.plan.timeline import run
from tests.plan.plans import plans


def pipeline(depths: list[int], micro_batches: int) -> Plan:
    """A resolved plan of one device per stage."""
    stages = [
        Stage([rank], f"b{rank}" if rank else None, in_flight=depth)
        for rank, depth in enumerate(depths)
    ]
    return Plan([Pipeline(stages)], micro_batches).resolve([f"d{r}" for r in range(len(depths))])


def test_1f1b_by_hand() -> None:
    plan = pipeline([3, 2, 1], 4)
    assert to_text(schedule(plan, 4)) == (
        "0: F0 F1 F2 B0 F3 B1 B2 R B3 S\n"
        "1: F0 F1 B0 F2 B1 F3 B2 B3 R S\n"
        "2: F0 B0 F1 B1 F2 B2 F3 B3 R S"
    )


def test_gpipe_is_the_depth_of_all_micro_batches() -> None:
    plan = pipeline([4, 4], 4)
    assert to_text(schedule(plan, 4)) == (
        "0: F0 F1 F2 F3 B0 B1 B2 R B3 S\n1: F0 F1 F2 F3 B0 B1 B2 B3 R S"
    )


def test_data_parallelism_is_one_stage() -> None:
    plan = Plan([Pipeline([Stage({2: 0.7, 0: 0.3, 1: 0.0})])]).resolve(["a", "b", "c", "idle"])
    assert to_text(schedule(plan, 1)) == "2: F0 R B0 S\n0: F0 R B0 S\n1: F0 R B0 S"


def test_evaluation_is_forwards_only() -> None:
    plan = pipeline([3, 1], 4)
    lists = forward_schedule(plan, 3)
    assert to_text(lists) == "0: F0 F1 F2\n1: F0 F1 F2"
    check(lists, plan, 3)


def test_an_unresolved_plan_is_refused() -> None:
    with pytest.raises(ScheduleError, match=r"call plan\.resolve\(names\) first"):
        schedule(Plan([Pipeline([Stage([0])])]), 4)


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("micro_batches", [4, 7])
@pytest.mark.parametrize("kind", ["1F1B", "GPipe"])
def test_the_order_is_that_of_torch(kind: str, stages: int, micro_batches: int) -> None:
    deep = [micro_batches] * stages if kind == "GPipe" else list(range(stages, 0, -1))
    lists = schedule(pipeline(deep, micro_batches), micro_batches)
    for rank, actions in enumerate(get_schedule_ops(kind, stages, micro_batches)):
        ours = [str(i) for i in lists[rank] if i.op in (Op.FORWARD, Op.BACKWARD)]
        # torch writes the stage in front: 1F0, 1B0, 1REDUCE_GRAD
        matches = [re.fullmatch(r"\d+([FB]\d+)", str(action)) for action in actions]
        theirs = [match[1] for match in matches if match]
        if kind == "1F1B" and rank == stages - 1:
            # Torch's listing (2.13) counts the forwards of the last stage from 1, up to F of a
            # micro-batch that does not exist; what it runs begins with F0.
            first = int(theirs[0][1:])
            theirs = [f"F{int(i[1:]) - first}" if i[0] == "F" else i for i in theirs]
        assert ours == theirs


@settings(max_examples=40)
@given(plans(), st.integers(0, 20))
def test_every_schedule_passes_the_checker(plan: Plan, micro_batches: int) -> None:
    lists = schedule(plan, micro_batches)
    check(lists, plan, micro_batches)
    assert parse_text(to_text(lists)) == lists
    assert set(lists) == {rank for s in range(len(plan.stages)) for rank in plan.ranks(s)}
    check(forward_schedule(plan, micro_batches), plan, micro_batches)


@settings(max_examples=40)
@given(plans(), st.integers(0, 20))
def test_every_schedule_runs_with_the_rows_of_any_batch(plan: Plan, rows: int) -> None:
    layout = Layout(plan, rows)
    check(schedule(plan, layout.micro_batches), plan, layout.micro_batches, layout)


@settings(max_examples=40)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(1, 6))
def test_depths_can_run_if_and_only_if_they_never_grow(depths: list[int], m: int) -> None:
    # Whole plans refuse growing depths, so the lists are put together stage by stage.
    lists = {
        rank: schedule(pipeline([depth] * len(depths), m), m)[rank]
        for rank, depth in enumerate(depths)
    }
    capped = [min(depth, m) for depth in depths]
    can_run = capped == sorted(capped, reverse=True)
    assert (not run(lists, pipeline([m] * len(depths), m)).stuck) == can_run


@settings(max_examples=40)
@given(plans(), st.integers(1, 12))
def test_a_stage_holds_as_many_micro_batches_as_its_depth_and_no_more(plan: Plan, m: int) -> None:
    lists = schedule(plan, m)
    for index, stage in enumerate(plan.stages):
        for rank in plan.ranks(index):
            held, most = 0, 0
            for instruction in lists[rank]:
                held += {Op.FORWARD: 1, Op.BACKWARD: -1}.get(instruction.op, 0)
                most = max(most, held)
            assert held == 0
            assert stage.in_flight != "auto"
            assert most == min(stage.in_flight, m)


@settings(max_examples=40)
@given(plans(), st.integers(1, 12))
def test_reductions_overlap_only_the_last_backward_of_the_first_stage(plan: Plan, m: int) -> None:
    lists = schedule(plan, m)
    for stage in range(len(plan.stages)):
        for rank in plan.ranks(stage):
            ends = f"R B{m - 1} S" if stage == 0 else f"B{m - 1} R S"
            assert " ".join(map(str, lists[rank])).endswith(ends)
