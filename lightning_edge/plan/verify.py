"""Checking instruction lists without running them on devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_edge.errors import ScheduleError
from lightning_edge.plan.instruction import Instruction, Lists, Op, marked, numbered
from lightning_edge.plan.timeline import run

if TYPE_CHECKING:
    from lightning_edge.plan.layout import Layout
    from lightning_edge.plan.plan import Plan

__all__: list[str] = []


def check(lists: Lists, plan: Plan, micro_batches: int, layout: Layout | None = None) -> None:
    """Refuse instruction lists that are wrong or would make devices wait for ever.

    Lists without any backward are taken for those of an evaluation.

    Args:
        lists: The instructions of each rank.
        plan: The resolved plan they belong to.
        micro_batches: Micro-batches of the batch.
        layout: The rows of the batch. With it, devices wait only for those they share rows with;
            without it, for all devices of the neighbouring stage.

    Raises:
        ScheduleError: With every problem, each marked `<-- here` in its list.
    """
    training = any(i.op is not Op.FORWARD for line in lists.values() for i in line)
    problems: list[str] = []
    complete = True
    for stage in range(len(plan.stages)):
        for rank in plan.ranks(stage):
            if rank not in lists:
                problems.append(f"rank {rank} of stage {stage} has no list")
                complete = False
    for rank, line in lists.items():
        stage_of_rank = plan.stage_of(rank)
        if stage_of_rank is None:
            problems.append(f"rank {rank} has a list but is in no stage")
            continue
        depth = plan.stages[stage_of_rank].in_flight
        most = depth if training and depth != "auto" else micro_batches
        wrong = _wrong_places(line, micro_batches, most)
        problems += [f"rank {rank}: {text}\n     {marked(rank, line, i)}" for i, text in wrong]
        missing = _missing(line, micro_batches, training)
        if missing:
            problems.append(f"rank {rank}: {', '.join(map(str, missing))} missing")
            complete = False
    if complete:  # otherwise others wait for what is missing, which has been said
        problems += _deadlocks(lists, plan, layout)
    if problems:
        raise ScheduleError(numbered("the instruction lists cannot run", problems))


def _wrong_places(
    line: Sequence[Instruction], micro_batches: int, most: int
) -> list[tuple[int, str]]:
    """Return (index, what is wrong) for each instruction that must not stand where it does."""
    wrong = []
    seen: set[Instruction] = set()
    backwards_left = sum(1 for instruction in line if instruction.op is Op.BACKWARD)
    in_flight = 0
    for index, instruction in enumerate(line):
        op, m = instruction
        if instruction in seen:
            wrong.append((index, f"{instruction} a second time"))
        elif Instruction(Op.STEP) in seen:
            wrong.append((index, f"{instruction} after S, which completes the step"))
        elif op is Op.REDUCE and backwards_left > 1:
            wrong.append(
                (index, f"R with {backwards_left} backwards to come: no gradient is final")
            )
        elif op is Op.STEP and Instruction(Op.REDUCE) not in seen:
            wrong.append((index, "S before R"))
        elif m is not None and m >= micro_batches:
            wrong.append((index, f"{instruction}, but the last micro-batch is {micro_batches - 1}"))
        elif m is not None and m > 0 and Instruction(op, m - 1) not in seen:
            # Messages between two devices keep their order, so all must agree on one.
            wrong.append((index, f"{instruction} before {Instruction(op, m - 1)}"))
        elif op is Op.BACKWARD and Instruction(Op.FORWARD, m) not in seen:
            wrong.append((index, f"{instruction} before {Instruction(Op.FORWARD, m)}"))
        elif op is Op.FORWARD and in_flight >= most:
            wrong.append(
                (index, f"{instruction} would be number {in_flight + 1} of {most} in flight")
            )
        seen.add(instruction)
        in_flight += {Op.FORWARD: 1, Op.BACKWARD: -1}.get(op, 0)
        backwards_left -= op is Op.BACKWARD
    return wrong


def _missing(line: Sequence[Instruction], micro_batches: int, training: bool) -> list[Instruction]:
    wanted = [Instruction(Op.FORWARD, m) for m in range(micro_batches)]
    if training:
        wanted += [Instruction(Op.BACKWARD, m) for m in range(micro_batches)]
        wanted += [Instruction(Op.REDUCE), Instruction(Op.STEP)]
    there = set(line)
    return [instruction for instruction in wanted if instruction not in there]


def _deadlocks(lists: Lists, plan: Plan, layout: Layout | None) -> list[str]:
    stuck = run(lists, plan, layout).stuck
    problems = []
    for rank, (index, peers) in stuck.items():
        waits = ", ".join(
            f"rank {peer}" + (f" (at {lists[peer][stuck[peer][0]]})" if peer in stuck else "")
            for peer in peers
        )
        text = f"rank {rank} waits for ever at {lists[rank][index]} for {waits}"
        problems.append(f"{text}\n     {marked(rank, lists[rank], index)}")
    return problems
