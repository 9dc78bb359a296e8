"""From a plan to one list of instructions per device: 1F1B with a depth per stage.

A stage of depth K (its `in_flight`, see `depth.py`) launches K forwards, then alternates backward
and forward, so that it never keeps the activations of more than K micro-batches. A backward takes
about as long as two forwards. Three stages of one device each, 4 micro-batches:

    1F1B, depths 3, 2, 1
    rank 0, stage 0 | F0 F1 F2 .. .. .. .. B0 == F3 B1 == .. B2 ==R.. B3 == S
    rank 1, stage 1 | .. F0 F1 .. .. B0 == F2 B1 == F3 B2 == .. B3 ==RS
    rank 2, stage 2 | .. .. F0 B0 == F1 B1 == F2 B2 == F3 B3 ==RS

    GPipe, depths 4, 4, 4 (all forwards, then all backwards)
    rank 0, stage 0 | F0 F1 F2 F3 .. .. .. .. .. .. B0 == B1 == B2 ==RB3 == S
    rank 1, stage 1 | .. F0 F1 F2 F3 .. .. .. B0 == B1 == B2 == B3 ==RS
    rank 2, stage 2 | .. .. F0 F1 F2 F3 B0 == B1 == B2 == B3 ==RS

`R` allows the reduction of gradients that are final. The first stage has it before its last
backward, which makes gradients final one by one: their reduction overlaps the rest. Later stages
have it after their last backward, as it would delay the gradient that the stage before is waiting
for on the same link. `S` waits for all reductions and is always last.

A device without rows of a micro-batch still has its instructions; running them does nothing.
"""

from __future__ import annotations

from lightning_edge.errors import ScheduleError
from lightning_edge.plan.instruction import Instruction, Lists, Op, parse_text, to_text
from lightning_edge.plan.plan import Plan
from lightning_edge.plan.timeline import draw
from lightning_edge.plan.verify import check

__all__ = [
    "Instruction",
    "Lists",
    "Op",
    "check",
    "draw",
    "forward_schedule",
    "parse_text",
    "schedule",
    "stage_list",
    "to_text",
]


def schedule(plan: Plan, micro_batches: int) -> dict[int, tuple[Instruction, ...]]:
    """Return the instructions of one training step for every rank that has a stage.

    Args:
        plan: A resolved plan.
        micro_batches: Micro-batches of this batch; fewer than the plan's if it has fewer rows.
    """
    lists = {}
    for stage in range(len(plan.stages)):
        line = stage_list(_depth(plan, stage), micro_batches, first=stage == 0)
        lists.update(dict.fromkeys(plan.ranks(stage), line))
    return lists


def forward_schedule(plan: Plan, micro_batches: int) -> dict[int, tuple[Instruction, ...]]:
    """Return the instructions of one evaluation step: forwards only."""
    line = tuple(Instruction(Op.FORWARD, m) for m in range(micro_batches))
    return {rank: line for stage in range(len(plan.stages)) for rank in plan.ranks(stage)}


def _depth(plan: Plan, stage: int) -> int:
    depth = plan.stages[stage].in_flight
    if depth == "auto":
        raise ScheduleError("a schedule needs a resolved plan: call plan.resolve(names) first")
    return depth


def stage_list(depth: int, micro_batches: int, *, first: bool) -> tuple[Instruction, ...]:
    """Return the instructions of one training step for the devices of one stage.

    Args:
        depth: Most micro-batches in flight.
        micro_batches: Micro-batches of the batch.
        first: Whether it is the first stage, whose reduction overlaps its last backward.
    """
    line = [Instruction(Op.FORWARD, m) for m in range(min(depth, micro_batches))]
    for m in range(micro_batches):
        line.append(Instruction(Op.BACKWARD, m))
        if m + depth < micro_batches:
            line.append(Instruction(Op.FORWARD, m + depth))
    line.insert(len(line) - 1 if first else len(line), Instruction(Op.REDUCE))
    return (*line, Instruction(Op.STEP))
