"""What each instruction waits for, when it then runs, and the timeline of all devices as a picture.

Sends never block, receives do: an instruction starts when the one before it on the same device is
done and when the other devices have produced what it receives.

    forward of micro-batch m     needs  forward m of the devices of the stage before that share rows
    backward of micro-batch m    needs  backward m of the devices of the stage after that share rows
    step                         needs  every device to have allowed its reductions
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from lightning_edge.plan.instruction import Instruction, Lists, Op

if TYPE_CHECKING:
    from lightning_edge.plan.layout import Layout
    from lightning_edge.plan.plan import Plan

__all__: list[str] = []

DURATIONS = {Op.FORWARD: 1, Op.BACKWARD: 2, Op.REDUCE: 0, Op.STEP: 0}
"""Drawn time units; a backward takes about as long as two forwards."""

Needs = Mapping[tuple[int, Instruction], tuple[int, ...]]


class Run(NamedTuple):
    """What happens when instruction lists are run."""

    starts: dict[int, list[int]]
    """Rank -> start of each instruction that runs, in time units."""
    stuck: dict[int, tuple[int, tuple[int, ...]]]
    """Rank that never ends -> index of the instruction it stands at, ranks it waits for."""


def needed_ranks(
    plan: Plan, rank: int, instruction: Instruction, layout: Layout | None
) -> tuple[int, ...]:
    """Return the ranks whose same instruction (for `S`: whose `R`) has to come first.

    Without a layout, every device of a neighbouring stage counts as sharing rows.
    """
    stage = plan.stage_of(rank)
    if stage is None or instruction.op is Op.REDUCE:
        return ()
    if instruction.op is Op.STEP:
        return tuple(peer for s in range(len(plan.stages)) for peer in plan.ranks(s))
    neighbour = stage - 1 if instruction.op is Op.FORWARD else stage + 1
    if not 0 <= neighbour < len(plan.stages) or instruction.micro_batch is None:
        return ()
    if layout is None:
        return plan.ranks(neighbour)
    if instruction.micro_batch >= layout.micro_batches:
        return ()
    return tuple(peer for peer, _, _ in layout.overlaps(rank, instruction.micro_batch, neighbour))


def run(lists: Lists, plan: Plan, layout: Layout | None = None) -> Run:
    """Run instruction lists in drawn time units, as far as they get."""
    ends: dict[tuple[int, Instruction], int] = {}
    starts: dict[int, list[int]] = {rank: [] for rank in lists}
    free = dict.fromkeys(lists, 0)
    waits: dict[int, tuple[int, ...]] = {}
    advancing = True
    while advancing:
        advancing = False
        for rank, line in lists.items():
            for instruction in line[len(starts[rank]) :]:
                wanted = Instruction(Op.REDUCE) if instruction.op is Op.STEP else instruction
                needed = needed_ranks(plan, rank, instruction, layout)
                waits[rank] = tuple(peer for peer in needed if (peer, wanted) not in ends)
                if waits[rank]:
                    break
                start = max([free[rank], *(ends[peer, wanted] for peer in needed)])
                free[rank] = start + DURATIONS[instruction.op]
                ends[rank, instruction] = free[rank]
                starts[rank].append(start)
                advancing = True
    stuck = {
        rank: (len(starts[rank]), waits[rank])
        for rank, line in lists.items()
        if len(starts[rank]) < len(line)
    }
    return Run(starts, stuck)


def draw(lists: Lists, plan: Plan, layout: Layout | None = None) -> str:
    """Draw when each device does what, one column per time unit.

    A forward takes one unit and a backward two, transfers none. `..` is waiting, `==` the second
    half of a backward, `R` stands between the units where reductions may begin. Lists that cannot
    end are drawn as far as they get.
    """
    result = run(lists, plan, layout)
    cells = [str(instruction) for line in lists.values() for instruction in line]
    width = max(map(len, cells), default=2)
    names = {rank: f"rank {rank}, stage {plan.stage_of(rank)}" for rank in lists}
    margin = max(map(len, names.values()), default=0)
    rows = []
    for rank, line in lists.items():
        row = names[rank].ljust(margin) + " |"
        now = 0
        gap = " "
        for instruction, start in zip(line, result.starts[rank], strict=False):
            while now < start:
                row, gap, now = row + gap + "." * width, " ", now + 1
            if instruction.op is Op.REDUCE:
                gap = "R"
                continue
            row, gap = row + gap + str(instruction).ljust(width), " "
            for _ in range(DURATIONS[instruction.op] - 1):
                row += " " + "=" * width
            now += DURATIONS[instruction.op]
        if rank in result.stuck:
            index, ranks = result.stuck[rank]
            row += f"{gap}{line[index]} waits for rank {', '.join(map(str, ranks))} for ever"
        rows.append(row.rstrip())
    return "\n".join(rows)
