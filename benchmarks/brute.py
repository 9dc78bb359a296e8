"""Small random planning problems, and their best plans by looking at every one.

Looked at are all devices, orders, cuts, shares in pieces of 4 rows, 2 or 4 micro-batches, power
modes and depths; activations are computed again where they do not fit. Plans are taken in the order
of a bound that none can beat (`Judge.bound`, tested by itself), so that most need no simulation.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import combinations, permutations, product
from typing import Any

from lightning_edge.plan.assignment import Assignment, Part
from lightning_edge.plan.judge import Judge, Verdict
from lightning_edge.plan.memory import peak_bytes
from lightning_edge.plan.objective import Objective
from lightning_edge.plan.profile import Block, Device, Link, Model, PowerMode, Profile, Timing
from lightning_edge.plan.rules import resolve
from lightning_edge.plan.simulate import Simulator

ROWS, PIECE, NUMBERS = 16, 4, (2, 4)


def problem(seed: int) -> tuple[Profile, dict[str, Any]]:
    """Return a profile and an objective."""
    draw = random.Random(seed)
    number, length = draw.randint(2, 4), draw.randint(2, 6)
    tight = draw.random() < 0.5
    state, kept = draw.uniform(1e6, 3e7), draw.uniform(1e5, 3e6)
    total = length * (4 * state + 4 * kept)
    devices, kinds = [], ["a", "b"]
    for i in range(number):
        idle, busy = draw.uniform(1, 6), draw.uniform(5, 30)
        speed, slow = draw.choice([1.0, 1.0, 2.0, 3.0, 5.0]), draw.uniform(0.4, 0.9)
        saved = busy * slow ** draw.uniform(0.8, 2)
        fast_mode = PowerMode("fast", speed, None, idle, idle + busy, idle + busy / 4)
        slow_mode = PowerMode(
            "slow", slow * speed, None, 0.9 * idle, 0.9 * idle + saved, idle + busy / 6
        )
        memory = round(total * draw.uniform(0.25, 1.2)) if tight else None
        devices.append(
            Device(
                f"d{i}",
                timing=draw.choice(kinds),
                memory_bytes=memory,
                modes=(fast_mode, slow_mode),
                instruction_s=draw.choice([0.0, 0.002]),
            )
        )
    crossing = 10 ** draw.uniform(3, 5.5)
    blocks = []
    for b in range(length):
        timings = {}
        for kind in kinds:
            fixed, each = draw.uniform(0, 0.02), draw.uniform(0.002, 0.02)
            seconds = [fixed + each * rows for rows in (1, 4, 16)]
            timings[kind] = Timing((1, 4, 16), tuple(seconds), tuple(2 * s for s in seconds), 0.001)
        blocks.append(
            Block(
                f"b{b}",
                timings,
                round(state * draw.uniform(0.3, 1.7)),
                activation_bytes=kept * draw.uniform(0.3, 1.7),
                forward_bytes=crossing * draw.uniform(0.5, 2) if b else 0.0,
            )
        )
    mbit = 10 ** draw.uniform(0.7, 3)
    air = ("air",) if draw.random() < 0.25 else ()
    links = tuple(
        Link(
            a.name,
            b.name,
            8e-6 / (mbit * draw.choice([1.0, 1.0, 0.3])),
            draw.choice([0, 0.002]),
            air,
        )
        for a in devices
        for b in devices
        if a != b
    )
    model = Model("random", tuple(blocks), batch_bytes=draw.choice([0.0, 1e4]))
    objective: dict[str, Any] = {"minimize": draw.choice(["time", "energy", "edp"])}
    if draw.random() < 0.2:
        objective["power_caps_w"] = {"d0": draw.uniform(5, 20)}
    if draw.random() < 0.2:
        objective = {"minimize": "energy", "max_slowdown": draw.uniform(1.05, 1.6)}
    return Profile(tuple(devices), model, links), objective


def best(judge: Judge) -> Verdict:
    """Return the best of all verdicts."""
    coarse = [(judge.promise(a), a) for number in NUMBERS for a in _coarse(judge, number)]
    found: Verdict | None = None
    for promise, a in sorted(coarse):
        if found is not None and found.excess <= 0 and promise >= found.value:
            break
        for assignment in _fine(judge, a):
            verdict = judge.judge(assignment, found)
            if found is None or verdict[:2] < found[:2]:
                found = verdict
    assert found is not None
    return found


def _coarse(judge: Judge, number: int) -> Iterator[Assignment]:
    blocks = len(judge.costs.blocks)
    for size in range(1, len(judge.rules.ranks) + 1):
        for members in combinations(judge.rules.ranks, size):
            for groups in _ordered_partitions(members):
                for cuts in combinations(range(1, blocks), len(groups) - 1):
                    edges = [0, *cuts, blocks]
                    shares = [list(_shares(len(group))) for group in groups]
                    modes = [list(product((0, 1), repeat=len(group))) for group in groups]
                    for rows in product(*shares):
                        for mode in product(*modes):
                            parts = [
                                Part(a, b, g, r, m)
                                for a, b, g, r, m in zip(
                                    edges, edges[1:], groups, rows, mode, strict=False
                                )
                            ]
                            yield Assignment(tuple(parts), number)


def _fine(judge: Judge, a: Assignment) -> Iterator[Assignment]:
    levels = range(1, a.micro_batches + 1)
    for depths in product(levels, repeat=len(a.parts)):
        if list(depths) != sorted(depths, reverse=True):
            continue
        parts = tuple(p._replace(depth=k) for p, k in zip(a.parts, depths, strict=True))
        deep = Assignment(parts, a.micro_batches)
        fitting = []
        for index, part in enumerate(parts):
            peaks = peak_bytes(deep, index, judge.costs)
            limits = [judge.costs.devices[r].memory_bytes for r in part.ranks]
            short = any(x is not None and peak > x for peak, x in zip(peaks, limits, strict=True))
            fitting.append(part._replace(checkpoint=short))
        yield Assignment(tuple(fitting), a.micro_batches)


def _ordered_partitions(members: Sequence[int]) -> list[tuple[tuple[int, ...], ...]]:
    found = set()
    for order in permutations(members):
        for count in range(len(order)):
            for places in combinations(range(1, len(order)), count):
                edges = [0, *places, len(order)]
                found.add(
                    tuple(tuple(sorted(order[a:b])) for a, b in zip(edges, edges[1:], strict=False))
                )
    return sorted(found)


def _shares(devices: int) -> Iterator[tuple[int, ...]]:
    for pieces in product(range(1, ROWS // PIECE + 1), repeat=devices):
        if sum(pieces) == ROWS // PIECE:
            yield tuple(PIECE * n for n in pieces)


def judges(profile: Profile, asked: dict[str, Any]) -> tuple[Judge, Judge]:
    """Return two judges that know nothing yet, for the search and for `best`."""
    simulator = Simulator(profile)
    goal = Objective.parse(asked)
    deadline = None
    if goal.max_slowdown is not None:
        quick = Objective.parse("time")
        fastest = best(Judge(simulator, quick, resolve(quick, simulator.costs), None))
        deadline = goal.max_slowdown * fastest.step_s
    rules = resolve(goal, simulator.costs)
    return Judge(simulator, goal, rules, deadline), Judge(simulator, goal, rules, deadline)
