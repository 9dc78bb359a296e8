r"""The least time a pipeline's step can take, and what an ideal executor needs at a given depth.

    f, b   seconds of one micro-batch forwards and backwards on each stage
    c      seconds of one message on a link (each link carries both ways at once)
    P, M   stages, micro-batches

    stage 0  F0 F1 F2 ...                     ... B7     No stage can start before the first
                 \ c                         / c         activations have come to it, and no step
    stage 1        F0 B0 F1 B1 ...  F7 B7 --+            ends before the last gradients are used.

Neither knows how any executor works: no packing, no posting, no threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def lower_bound_s(stages: int, micro_batches: int, f: float, b: float, c: float) -> float:
    """Return a time that no schedule can beat, for equal stages on equal links.

    The last stage has to wait for the pipe to fill, compute everything, and then the pipe has to
    drain. Where a link is slower than a stage, its messages replace the computing:
    ``fill + max(M (f + b), (M - 1) c + f + b) + drain``.
    """
    hops = stages - 1
    work = micro_batches * (f + b)
    if hops:
        work = max(work, (micro_batches - 1) * c + f + b)
    return hops * (f + c) + work + hops * (c + b)


def simulate_s(
    lists: Mapping[int, Sequence[str]], f: float, b: float, c: float, delay: float = 0.0
) -> float:
    """Return the step's seconds if every message leaves as soon as it is made.

    Args:
        lists: By stage, what it computes in order, such as ``["F0", "F1", "B0", ...]``.
        f: Seconds of a forward.
        b: Seconds of a backward.
        c: Seconds of a message; those of one direction of a link follow each other.
        delay: Seconds more until a message that has arrived is used.
    """
    last = max(lists)
    ready: dict[tuple[int, str], float] = {}  # when a message for (stage, instruction) is there
    link_free: dict[tuple[int, int], float] = {}  # by (from, to)
    clock = dict.fromkeys(lists, 0.0)
    position = dict.fromkeys(lists, 0)
    while any(position[stage] < len(lists[stage]) for stage in lists):
        moved = False
        for stage, todo in lists.items():
            if position[stage] == len(todo):
                continue
            op = todo[position[stage]]
            own = (op[0] == "F" and stage == 0) or (op[0] == "B" and stage == last)
            if not own and (stage, op) not in ready:
                continue
            start = max(clock[stage], ready.get((stage, op), 0.0))
            clock[stage] = start + (f if op[0] == "F" else b)
            position[stage] += 1
            moved = True
            to = stage + 1 if op[0] == "F" else stage - 1
            if to in lists:
                sent = max(clock[stage], link_free.get((stage, to), 0.0)) + c
                link_free[stage, to] = sent
                ready[to, op] = sent + delay
        assert moved, f"the lists wait for each other at {position}"
    return max(clock.values())


def one_f_one_b(micro_batches: int, depths: Sequence[int]) -> dict[int, list[str]]:
    """Return each stage's list when it launches ``depths[stage]`` forwards before a backward."""
    lists = {}
    for stage, depth in enumerate(depths):
        ahead = min(depth, micro_batches)
        lists[stage] = [f"F{m}" for m in range(ahead)]
        for m in range(micro_batches):
            lists[stage] += [f"B{m}"] + [f"F{m + ahead}"] * (m + ahead < micro_batches)
    return lists


def fitting_depths(
    stages: int, micro_batches: int, f: float, b: float, c: float, delay: float = 0.0
) -> list[int]:
    """Return the least depths that reach what depth can reach.

    They grow evenly from 1 on the last stage towards the first one.
    """
    best: list[int] = []
    best_s = float("inf")
    for growth in range(1, micro_batches):
        depths = [min(micro_batches, growth * (stages - s - 1) + 1) for s in range(stages)]
        needed_s = simulate_s(one_f_one_b(micro_batches, depths), f, b, c, delay)
        if needed_s < best_s - 1e-9:
            best, best_s = depths, needed_s
    return best
