from __future__ import annotations

import textwrap

from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_edge.plan import Pipeline, Plan, Stage
from lightning_edge.plan import schedule as schedule_module
from lightning_edge.plan.layout import Layout
from lightning_edge.plan.schedule import draw, forward_schedule, parse_text, schedule
from lightning_edge.plan.timeline import run
from tests.plan.plans import plans
from tests.plan.test_schedule import pipeline


def test_the_pictures_of_the_module_are_drawn() -> None:
    text = textwrap.dedent((schedule_module.__doc__ or "").replace("\n    ", "\n"))
    for depths in ([3, 2, 1], [4, 4, 4]):
        plan = pipeline(depths, 4)
        assert draw(schedule(plan, 4), plan) in text


def test_wide_micro_batches_stay_aligned() -> None:
    plan = pipeline([1, 1], 11)
    first, second = draw(schedule(plan, 11), plan).splitlines()
    assert first.startswith("rank 0, stage 0 | F0  ... ... ... B0  === F1 ")
    assert first.index("B10") == second.index("B10") + 8
    assert first[-1] == second[-1] == "S"


def test_evaluation_is_drawn_as_a_staircase() -> None:
    plan = pipeline([1, 1, 1], 3)
    assert draw(forward_schedule(plan, 3), plan) == (
        "rank 0, stage 0 | F0 F1 F2\n"
        "rank 1, stage 1 | .. F0 F1 F2\n"
        "rank 2, stage 2 | .. .. F0 F1 F2"
    )


def test_a_deadlock_is_drawn_as_far_as_it_gets() -> None:
    plan = pipeline([2, 2], 2)
    lists = parse_text("0: F0 B0 F1 R B1 S\n1: F0 F1 B0 B1 R S")
    assert draw(lists, plan) == (
        "rank 0, stage 0 | F0 B0 waits for rank 1 for ever\n"
        "rank 1, stage 1 | .. F0 F1 waits for rank 0 for ever"
    )


def test_devices_wait_only_for_those_they_share_rows_with() -> None:
    stages = [Stage([0, 1]), Stage([2, 3], "b")]
    plan = Plan([Pipeline(stages)], 2).resolve(list("abcd"))
    lists = parse_text("0: F0 F1\n1:\n2: F0 F1\n3:")
    assert run(lists, plan).stuck == {2: (0, (1,))}
    assert run(lists, plan, Layout(plan, 8)).stuck == {}


def test_a_rank_without_rows_of_a_micro_batch_neither_waits_nor_is_waited_for() -> None:
    plan = Plan([Pipeline([Stage([0]), Stage({1: 1.0, 2: 0.0}, "b")])], 2).resolve(list("abc"))
    lists = dict(schedule(plan, 2))
    lists[2] = ()
    assert run(lists, plan).stuck  # whether it has rows is not known without a layout
    lists = schedule(plan, 2)
    layout = Layout(plan, 4)
    starts = run(lists, plan, layout).starts
    assert starts[1][0] == 1
    assert starts[2][0] == 0
    assert draw(lists, plan, layout).splitlines() == [
        "rank 0, stage 0 | F0 F1 .. .. B0 ==R.. B1 == S",
        "rank 1, stage 1 | .. F0 B0 == F1 B1 ==RS",
        "rank 2, stage 1 |R.. .. .. .. .. .. .. S",
    ]


@settings(max_examples=40)
@given(plans(), st.integers(1, 8))
def test_nothing_starts_before_what_it_needs(plan: Plan, micro_batches: int) -> None:
    lists = schedule(plan, micro_batches)
    result = run(lists, plan)
    assert result.stuck == {}
    at = {
        (rank, str(i)): start
        for rank, line in lists.items()
        for i, start in zip(line, result.starts[rank], strict=True)
    }
    last = len(plan.stages) - 1
    for stage in range(last):
        for before in plan.ranks(stage):
            for after in plan.ranks(stage + 1):
                for m in range(micro_batches):
                    assert at[before, f"F{m}"] + 1 <= at[after, f"F{m}"]
                    assert at[after, f"B{m}"] + 2 <= at[before, f"B{m}"]
    # Work that is evenly divided takes at least the work of one stage and the way there and back.
    assert max(at.values()) >= 3 * (micro_batches + last)


def test_deeper_schedules_are_not_slower_and_depth_1_is_sequential() -> None:
    ends = []
    for depths in ([1, 1, 1], [2, 2, 1], [3, 2, 1], [5, 3, 1]):
        plan = pipeline(depths, 8)
        ends.append(max(max(s) for s in run(schedule(plan, 8), plan).starts.values()))
    assert ends == sorted(ends, reverse=True)
    assert ends[0] == 8 * 9
    assert ends[-1] == 3 * (8 + 2)
