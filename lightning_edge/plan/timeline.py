"""What each instruction waits for, when it then runs, and the timeline of all devices as a picture.

Sends never block, receives do: an instruction starts when the one before it on the same device is
done and when the other devices have produced what it receives.

    forward of micro-batch m     needs  forward m of the devices of the stage before that share rows
    backward of micro-batch m    needs  backward m of the devices of the stage after that share rows
    step                         needs  all backwards of the devices of the same stage
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lightning_edge.plan.instruction import Instruction, Lists, Op

if TYPE_CHECKING:
    from lightning_edge.plan.layout import Layout
    from lightning_edge.plan.plan import Plan

__all__: list[str] = []

DURATIONS = {Op.FORWARD: 1, Op.BACKWARD: 2, Op.REDUCE: 0, Op.STEP: 0}
"""Drawn time units; a backward takes about as long as two forwards."""


class Run(NamedTuple):
    """What happens when instruction lists are run."""

    starts: dict[int, list[int]]
    """Rank -> start of each instruction that runs, in time units."""
    stuck: dict[int, tuple[int, tuple[int, ...]]]
    """Rank that never ends -> index of the instruction it stands at, ranks it waits for."""


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
                needs = _needs(rank, instruction, lists, plan, layout)
                waits[rank] = tuple(dict.fromkeys(need[0] for need in needs if need not in ends))
                if waits[rank]:
                    break
                start = max([free[rank], *(ends[need] for need in needs)])
                free[rank] = start + _duration(rank, instruction, layout)
                ends[rank, instruction] = free[rank]
                starts[rank].append(start)
                advancing = True
    stuck = {
        rank: (len(starts[rank]), waits[rank])
        for rank, line in lists.items()
        if len(starts[rank]) < len(line)
    }
    return Run(starts, stuck)


def _needs(
    rank: int, instruction: Instruction, lists: Lists, plan: Plan, layout: Layout | None
) -> list[tuple[int, Instruction]]:
    """Return which instructions of which ranks have to come first.

    Without a layout, every device of a neighbouring stage counts as sharing rows.
    """
    op, m = instruction
    stage = plan.stage_of(rank)
    if stage is None or op is Op.REDUCE:
        return []
    if op is Op.STEP:
        return [
            (peer, other)
            for peer in plan.ranks(stage)
            for other in lists.get(peer, ())
            if peer != rank and other.op in (Op.BACKWARD, Op.REDUCE)
        ]
    neighbour = stage - 1 if op is Op.FORWARD else stage + 1
    if m is None or not 0 <= neighbour < len(plan.stages):
        return []
    if layout is None:
        return [(peer, instruction) for peer in plan.ranks(neighbour)]
    if m >= layout.micro_batches:
        return []
    return [(peer, instruction) for peer, _, _ in layout.overlaps(rank, m, neighbour)]


def _duration(rank: int, instruction: Instruction, layout: Layout | None) -> int:
    """Return the time units of an instruction: none if the device has no rows of it."""
    m = instruction.micro_batch
    if layout is not None and m is not None and m < layout.micro_batches:
        start, stop = layout.mine(rank, m)
        if start == stop:
            return 0
    return DURATIONS[instruction.op]


def draw(lists: Lists, plan: Plan, layout: Layout | None = None) -> str:
    """Draw when each device does what, one column per time unit.

    A forward takes one unit and a backward two, transfers none. `..` is waiting, `==` the second
    half of a backward, `R` stands between the units where reductions may begin. With a layout,
    what a device has no rows of takes no time and is left out. Lists that cannot end are drawn as
    far as they get.
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
            units = _duration(rank, instruction, layout)
            if units == 0 and instruction.op is not Op.STEP:
                continue
            row, gap = row + gap + str(instruction).ljust(width), " "
            row += (" " + "=" * width) * (units - 1)
            now += units
        if rank in result.stuck:
            index, ranks = result.stuck[rank]
            row += f"{gap}{line[index]} waits for rank {', '.join(map(str, ranks))} for ever"
        rows.append(row.rstrip())
    return "\n".join(rows)
