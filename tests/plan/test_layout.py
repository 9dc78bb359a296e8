from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_edge.plan import Pipeline, Plan, Stage
from lightning_edge.plan.layout import Layout
from tests.plan.plans import plans


def hybrid() -> Layout:
    stages = [Stage({0: 0.625, 1: 0.375}), Stage({2: 0.25, 3: 0.75}, "b")]
    return Layout(Plan([Pipeline(stages)], 2).resolve(list("abcde")), 16)


def test_the_picture_of_the_module() -> None:
    layout = hybrid()
    assert layout.bounds == ((0, 8), (8, 16))
    assert layout.mine(0, 1) == (8, 13)
    assert layout.mine(1, 1) == (13, 16)
    assert layout.overlaps(0, 1, 1) == ((2, 8, 10), (3, 10, 13))
    assert layout.overlaps(1, 1, 1) == ((3, 13, 16),)
    assert layout.overlaps(3, 1, 0) == ((0, 10, 13), (1, 13, 16))
    assert layout.first_peer(0, 1, 1) == 2
    assert layout.first_peer(3, 1, 0) == 0
    assert layout.local(1, 0) == (0, 3)
    assert layout.local(1, 1) == (3, 6)
    assert layout.rows_of(1) == ((5, 8), (13, 16))


def test_a_device_without_a_stage_has_no_rows() -> None:
    layout = hybrid()
    assert layout.rows_of(4) == ((0, 0), (8, 8))
    assert layout.overlaps(4, 0, 1) == ()
    assert layout.first_peer(4, 0, 0) is None
    assert layout.local(4, 1) == (0, 0)


def test_a_device_with_a_share_of_0_has_no_rows() -> None:
    layout = Layout(Plan([Pipeline([Stage({0: 1.0, 1: 0.0})])], 2).resolve(["a", "b"]), 5)
    assert layout.rows_of(0) == ((0, 3), (3, 5))
    assert layout.rows_of(1) == ((3, 3), (5, 5))


def test_batches_with_fewer_rows_than_micro_batches() -> None:
    plan = Plan([Pipeline([Stage([0, 1]), Stage([2], "b")])], 8).resolve(list("abc"))
    assert Layout(plan, 3).micro_batches == 3
    empty = Layout(plan, 0)
    assert (empty.micro_batches, empty.rows_of(0), empty.rows_of(2)) == (0, (), ())


def test_needs_a_resolved_plan() -> None:
    with pytest.raises(ValueError, match=r"call plan\.resolve\(names\) first"):
        Layout(Plan([Pipeline([Stage(["orin"])])]), 4)


@settings(max_examples=40)
@given(plans(), st.integers(0, 40))
def test_every_row_goes_from_each_stage_to_the_next_exactly_once(plan: Plan, rows: int) -> None:
    layout = Layout(plan, rows)
    for m, (start, stop) in enumerate(layout.bounds):
        for stage in range(len(plan.stages)):
            owners = [r for rank in plan.ranks(stage) for r in range(*layout.mine(rank, m))]
            assert owners == list(range(start, stop))
            for other in {stage - 1, stage + 1} & set(range(len(plan.stages))):
                for rank in plan.ranks(stage):
                    overlaps = layout.overlaps(rank, m, other)
                    shared = [row for _, low, high in overlaps for row in range(low, high)]
                    assert shared == list(range(*layout.mine(rank, m)))
                    assert all(low < high for _, low, high in overlaps)
                    for peer, low, high in overlaps:
                        assert (rank, low, high) in layout.overlaps(peer, m, stage)


@settings(max_examples=40)
@given(plans(), st.integers(0, 40))
def test_the_rows_of_a_rank_put_together_are_cut_where_local_says(plan: Plan, rows: int) -> None:
    layout = Layout(plan, rows)
    for rank in range(20):
        intervals = layout.rows_of(rank)
        together = [row for start, stop in intervals for row in range(start, stop)]
        for m, (start, stop) in enumerate(intervals):
            low, high = layout.local(rank, m)
            assert together[low:high] == list(range(start, stop))
