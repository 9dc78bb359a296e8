from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_edge.errors import ScheduleError
from lightning_edge.plan import Pipeline, Plan, Stage
from lightning_edge.plan.layout import Layout
from lightning_edge.plan.schedule import Instruction, check, parse_text, schedule
from tests.plan.plans import plans
from tests.plan.test_schedule import pipeline


def errors(text: str, plan: Plan | None = None, micro_batches: int = 2) -> str:
    with pytest.raises(ScheduleError) as caught:
        check(parse_text(text), plan or pipeline([2], 2), micro_batches)
    return str(caught.value).removeprefix("the instruction lists cannot run:\n")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("F0 B1 F1 B0 R S", "B1 before B0\n     0: F0 B1 <-- here F1 B0 R S"),
        ("B0 F0 F1 R B1 S", "B0 before F0\n     0: B0 <-- here F0 F1 R B1 S"),
        ("F1 F0 B0 R B1 S", "F1 before F0\n     0: F1 <-- here F0 B0 R B1 S"),
        ("F0 F1 B0 B0 R B1 S", "B0 a second time\n     0: F0 F1 B0 B0 <-- here R B1 S"),
        ("F0 F1 F2 B0 R B1 S", "F2, but the last micro-batch is 1\n     0: F0 F1 F2 <-- here B0"),
        ("R F0 F1 B0 B1 S", "R with 2 backwards to come: no gradient is final\n     0: R <-- here"),
        ("F0 F1 B0 B1 S R", "S before R\n     0: F0 F1 B0 B1 S <-- here R"),
        ("F0 B0 F1 R S B1", "B1 after S, which completes the step\n     0: F0 B0 F1 R S B1 <-- h"),
        ("F0 F1 B0 R S", "B1 missing"),
        ("", "F0, F1 missing"),
        ("F0 B0", "F1, B1, R, S missing"),
        ("F0 B0 F1 R B1", "S missing"),
    ],
)
def test_what_is_wrong_within_one_list(line: str, expected: str) -> None:
    assert f"rank 0: {expected}" in errors(f"0: {line}")


def test_more_in_flight_than_the_stage_keeps() -> None:
    plan = pipeline([2], 4)
    text = errors("0: F0 F1 F2 B0 F3 B1 B2 R B3 S", plan, 4)
    assert text == (
        "  1. rank 0: F2 would be number 3 of 2 in flight\n"
        "     0: F0 F1 F2 <-- here B0 F3 B1 B2 R B3 S\n"
        "  2. rank 0: F3 would be number 3 of 2 in flight\n"
        "     0: F0 F1 F2 B0 F3 <-- here B1 B2 R B3 S"
    )


def test_fewer_in_flight_than_the_stage_may_keep_is_fine() -> None:
    check(parse_text("0: F0 B0 F1 R B1 S"), pipeline([2], 2), 2)


def test_ranks_that_are_missing_or_too_many() -> None:
    plan = pipeline([2, 1], 2)
    assert errors("0: F0 F1 B0 R B1 S\n5: S", plan) == (
        "  1. rank 1 of stage 1 has no list\n  2. rank 5 has a list but is in no stage"
    )


def test_a_deadlock_names_who_waits_for_whom() -> None:
    assert errors("0: F0 B0 F1 R B1 S\n1: F0 F1 B0 B1 R S", pipeline([2, 2], 2)) == (
        "  1. rank 0 waits for ever at B0 for rank 1 (at F1)\n"
        "     0: F0 B0 <-- here F1 R B1 S\n"
        "  2. rank 1 waits for ever at F1 for rank 0 (at B0)\n"
        "     1: F0 F1 <-- here B0 B1 R S"
    )


def test_what_is_missing_is_not_reported_again_as_a_deadlock() -> None:
    assert errors("0: F0 F1 B0 R B1 S\n1: F0 B0 R S", pipeline([2, 1], 2)) == (
        "  1. rank 1: F1, B1 missing"
    )


def test_rows_decide_whether_hybrid_stages_wait() -> None:
    # Rank 0 works with rank 2 only, and rank 1 with rank 3: each pair may keep its own order.
    stages = [Stage([0, 1], in_flight=2), Stage([2, 3], "b", in_flight=2)]
    plan = Plan([Pipeline(stages)], 2).resolve(list("abcd"))
    lists = parse_text(
        "0: F0 B0 F1 R B1 S\n2: F0 B0 F1 B1 R S\n1: F0 F1 B0 R B1 S\n3: F0 F1 B0 B1 R S"
    )
    check(lists, plan, 2, Layout(plan, 4))
    with pytest.raises(ScheduleError, match="rank 0 waits for ever at B0 for rank 3"):
        check(lists, plan, 2)


@settings(max_examples=40)
@given(plans(), st.integers(1, 6), st.data())
def test_a_damaged_schedule_is_refused(plan: Plan, m: int, data: st.DataObject) -> None:
    lists = dict(schedule(plan, m))
    rank = data.draw(st.sampled_from(sorted(lists)))
    line = list(lists[rank])
    place = data.draw(st.integers(0, len(line) - 1))
    kind = data.draw(st.sampled_from(["drop", "repeat", "add"]))
    if kind == "drop":
        del line[place]
    elif kind == "repeat":
        line.insert(data.draw(st.integers(0, len(line))), line[place])
    else:
        line.insert(place, Instruction.parse(data.draw(st.sampled_from([f"F{m}", f"B{m}"]))))
    lists[rank] = tuple(line)
    with pytest.raises(ScheduleError, match=f"rank {rank}"):
        check(lists, plan, m)


@settings(max_examples=40)
@given(plans(), st.integers(1, 5), st.randoms(use_true_random=False))
def test_any_order_is_checked_without_other_errors(plan: Plan, m: int, random: object) -> None:
    lists = {}
    for rank, line in schedule(plan, m).items():
        shuffled = list(line)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        lists[rank] = tuple(shuffled)
    try:
        check(lists, plan, m)
    except ScheduleError as error:
        assert "<-- here" in str(error) or "waits" in str(error)  # noqa: PT017
