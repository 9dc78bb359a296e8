"""Assignments that a search always looks at: one device, data parallelism, even pipelines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lightning_edge.plan.assignment import Assignment
from lightning_edge.plan.balance import balance
from lightning_edge.plan.costs import Costs
from lightning_edge.plan.rules import Rules
from lightning_edge.plan.shaping import Draft, Shaper

__all__: list[str] = []


def mode_sets(costs: Costs, rules: Rules) -> list[tuple[int, ...]]:
    """Modes by rank to start from: current ones, fastest, and fewest joules per row."""
    current = tuple(costs.mode_index(rank, None) for rank in range(len(costs.devices)))
    if not rules.free_modes:
        return [current]
    fastest, saving = list(current), list(current)
    blocks = len(costs.blocks)
    for rank, device in enumerate(costs.devices):
        indices = range(len(device.modes))
        work_s = [sum(costs.pass_s(rank, mode, 0, blocks, 8, False)) for mode in indices]
        fastest[rank] = min(indices, key=lambda mode: work_s[mode])
        watts = [costs.power_w(rank, mode) for mode in indices]
        joules = [w[1] * s if w else s for w, s in zip(watts, work_s, strict=True)]
        saving[rank] = min(indices, key=lambda mode: joules[mode])
    return list(dict.fromkeys([tuple(fastest), tuple(saving), current]))


def orders(costs: Costs, rules: Rules, modes: Sequence[int]) -> list[tuple[int, ...]]:
    """Orders of the devices along a pipeline, those allowed in the first stage first."""
    blocks, ranks = len(costs.blocks), list(rules.ranks)
    work_s = {r: sum(costs.pass_s(r, modes[r], 0, blocks, 8, False)) for r in ranks}
    memory = {r: costs.devices[r].memory_bytes or float("inf") for r in ranks}
    found = [
        sorted(ranks, key=lambda r: (work_s[r], -memory[r])),
        sorted(ranks, key=lambda r: (-memory[r], work_s[r])),  # Asteroid's
        sorted(ranks, key=lambda r: (-work_s[r], -memory[r])),
        ranks,
        _near(costs, ranks, work_s),
    ]
    if rules.groups is not None:
        home = {r: i for i, group in enumerate(rules.groups) for r in group.shares}
        place = {r: j for group in rules.groups for j, r in enumerate(group.shares)}
        fixed = {i for i, group in enumerate(rules.groups) if group.parallelism == "pipeline"}
        found = [
            sorted(order, key=lambda r: (home[r], place[r] if home[r] in fixed else order.index(r)))
            for order in found
        ]
    else:
        found = [sorted(order, key=lambda r: r not in rules.first) for order in found]
    return list(dict.fromkeys(map(tuple, found)))


def _near(costs: Costs, ranks: Sequence[int], work_s: dict[int, float]) -> list[int]:
    """From the fastest device always on to the one with the fastest link."""
    left = list(ranks)
    found: list[int] = []
    while left:

        def pace(rank: int) -> tuple[float, float]:
            link = costs.profile.link(found[-1], rank) if found else None
            return (link.seconds_per_byte if link else float("inf"), work_s[rank])

        nearest = min(left, key=pace)
        found.append(nearest)
        left.remove(nearest)
    return found


def seeds(shaper: Shaper, rules: Rules, numbers: Sequence[int]) -> Iterator[Assignment]:
    """Yield them, as far as the rules allow."""
    for found in _seeds(shaper, rules, numbers):
        if found is not None and rules.allow(found):
            yield found


def _seeds(shaper: Shaper, rules: Rules, numbers: Sequence[int]) -> Iterator[Assignment | None]:
    costs = shaper.costs
    blocks = len(costs.blocks)
    for rank in rules.ranks:
        for mode in range(len(costs.devices[rank].modes)) if rules.free_modes else [None]:
            chosen = costs.mode_index(rank, None) if mode is None else mode
            for number in numbers:
                yield shaper.complete([Draft(0, blocks, (rank,), (chosen,))], number)
    for modes in mode_sets(costs, rules):
        for order in orders(costs, rules, modes):
            for count in range(2, len(order) + 1):
                team = tuple(sorted(order[:count]))
                draft = Draft(0, blocks, team, tuple(modes[r] for r in team))
                for number in numbers[:2]:
                    yield shaper.complete([draft], number)
                if count == len(order) or count & (count - 1) == 0:
                    yield _even(shaper, rules, order[:count], modes, numbers)


def _even(
    shaper: Shaper,
    rules: Rules,
    order: Sequence[int],
    modes: Sequence[int],
    numbers: Sequence[int],
) -> Assignment | None:
    """One stage per device, cut where the seconds of the blocks are about even for its speed."""
    cuts = rules.cuts
    if cuts is None:
        if len(order) > len(rules.legal) + 1:
            return None
        costs = shaper.costs
        edges = [0, *rules.legal, len(costs.blocks)]
        forward, backward = costs.table(order[0], modes[order[0]], 8)
        loads = [
            forward[b] - forward[a] + backward[b] - backward[a]
            for a, b in zip(edges[:-1], edges[1:], strict=True)
        ]
        sizes = balance(loads, [1] * len(order))
        at, found = 0, []
        for size in sizes[:-1]:
            at += size
            found.append(edges[at])
        cuts = tuple(found)
    if len(cuts) + 1 != len(order):
        return None
    starts = [0, *cuts, len(shaper.costs.blocks)]
    stages = [
        Draft(a, b, (rank,), (modes[rank],))
        for a, b, rank in zip(starts[:-1], starts[1:], order, strict=True)
    ]
    wanted = min(4 * len(order), numbers[-1])
    return shaper.complete(stages, min(numbers, key=lambda n: abs(n - wanted)))
