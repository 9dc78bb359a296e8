"""Plans as others would make them, for the same profiles: what a planner has to beat.

Each takes a profile and the rows of a batch and returns a plan, or None if it has none. They are as
good as their idea: each may choose the least number of micro-batches with which its plan fits, and
all of them run under this package's executor, which receives ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

from lightning_edge.errors import PlanError
from lightning_edge.plan.costs import Costs
from lightning_edge.plan.plan import Pipeline, Plan, Stage
from lightning_edge.plan.profile import Profile
from lightning_edge.plan.sharing import share_out
from lightning_edge.plan.simulate import simulate

Rival = Callable[[Profile, int], Plan | None]


def best_single(profile: Profile, rows: int) -> Plan | None:
    """Let the fastest device on which the model fits do everything."""
    plans = [_fitting(profile, rows, [{rank: 1.0}], [None]) for rank in _ranks(profile)]
    found = [plan for plan in plans if plan is not None]
    return min(found, key=lambda p: simulate(p, profile, rows=rows).step_s, default=None)


def equal_data(profile: Profile, rows: int) -> Plan | None:
    """Data parallelism as DDP does it: every device as many rows."""
    count = len(profile.devices)
    return _fitting(profile, rows, [dict.fromkeys(_ranks(profile), 1 / count)], [None])


def proportional_data(profile: Profile, rows: int) -> Plan | None:
    """Data parallelism with rows in proportion to speed."""
    pace = _paces(profile, max(1, rows // len(profile.devices)))
    total = sum(pace)
    return _fitting(profile, rows, [{r: p / total for r, p in enumerate(pace)}], [None])


def even_pipeline(profile: Profile, rows: int) -> Plan | None:
    """One stage per device with as many blocks each, 1F1B, four micro-batches per stage."""
    cuts, count = profile.model.cuts, len(profile.devices)
    if count > len(cuts) + 1:
        return None
    starts = [cuts[round((len(cuts) + 1) * i / count) - 1] for i in range(1, count)]
    stages = [
        Stage([rank], start, in_flight=count - rank)
        for rank, start in zip(_ranks(profile), [None, *starts], strict=True)
    ]
    return Plan([Pipeline(stages)], min(rows, 4 * count))


def pipedream(profile: Profile, rows: int) -> Plan | None:
    """PipeDream's partitioner: the lightest heaviest stage, for devices taken to be alike.

    A(j, m) = min over i, n of max(A(i, m - n), 2 a_i / B, T(i, j) / n + 2 (n - 1) w / (n B)) for
    the first j blocks on m devices; one step with a flush, 1F1B, as many micro-batches as even.
    """
    costs, count = Costs(profile), len(profile.devices)
    number = min(rows, 4 * count)
    size = max(1, rows // number)
    blocks = costs.blocks
    paces = _paces(profile, size)
    mean = sum(paces) / count
    forward, backward = costs.table(0, 0, size)
    scale = paces[0] / mean * (1 / costs.speeds[0][0])
    s_per_byte = sum(link.seconds_per_byte for link in profile.links) / max(1, len(profile.links))
    cuts = {0, *(i for i, b in enumerate(blocks) if i and b.cut)}

    def stage_s(i: int, j: int, n: int) -> float:
        compute = (forward[j] - forward[i] + backward[j] - backward[i]) * scale
        weights = sum(block.gradient_bytes for block in blocks[i:j])
        return compute / n + 2 * (n - 1) / n * weights * s_per_byte / number

    @cache
    def best(j: int, m: int) -> tuple[float, tuple[tuple[int, int], ...]]:
        found = (stage_s(0, j, m), ((0, m),))
        for i in range(1, j):
            if i not in cuts:
                continue
            sent = 2 * blocks[i].forward_bytes * size * s_per_byte
            for n in range(1, m):
                before, stages = best(i, m - n)
                value = max(before, sent, stage_s(i, j, n))
                if value < found[0]:
                    found = (value, (*stages, (i, n)))
        return found

    ranks = iter(_ranks(profile))
    parts = best(len(blocks), count)[1]
    depth = -(-count // parts[0][1])
    stages = []
    for index, (first, n) in enumerate(parts):
        name = blocks[first].name if first else None
        stages.append(Stage([next(ranks) for _ in range(n)], name, in_flight=max(1, depth - index)))
    return Plan([Pipeline(stages)], number)


class _Head(NamedTuple):
    """A stage of Asteroid's: blocks, ranks, rows of each per micro-batch."""

    first: int
    stop: int
    ranks: tuple[int, ...]
    rows: tuple[int, ...]


def asteroid(profile: Profile, rows: int) -> Plan | None:
    """Asteroid's planner: all devices by memory, hybrid pipelines, least latency of a round.

    As three public re-implementations have it; the depth is 2 (P - p) - 1, counted in memory.
    """
    numbers = [n for n in (2, 4, 8, 16, 32) if n <= rows] or [1]
    found = [plan for n in numbers for plan in [_Asteroid(profile, rows, n).plan()] if plan]
    return min(found, key=lambda pair: pair[0])[1] if found else None


class _Asteroid:
    """Algorithms 1 and 2 for one number of micro-batches."""

    def __init__(self, profile: Profile, rows: int, number: int) -> None:
        self.profile, self.number, self.size = profile, number, max(1, rows // number)
        self.costs = Costs(profile)
        memory = [d.memory_bytes or float("inf") for d in profile.devices]
        self.order = sorted(_ranks(profile), key=lambda r: -memory[r])
        self.memory = memory

    def plan(self) -> tuple[float, Plan] | None:
        blocks, count = len(self.costs.blocks), len(self.order)
        cuts = [i for i in range(1, blocks) if self.costs.blocks[i].cut]
        best: dict[tuple[int, int, int], tuple[_Head, ...]] = {}
        for stages in range(1, min(count, len(cuts) + 1) + 1):
            for first in [0, *cuts]:
                for devices in range(stages, count + 1):
                    self._extend(best, first, devices, stages, cuts)
        ways = [w for (first, n, _), w in best.items() if first == 0 and n == count]
        if not ways:
            return None
        way = min(ways, key=self.latency)
        parts = []
        for index, head in enumerate(way):
            shares = {r: n / self.size for r, n in zip(head.ranks, head.rows, strict=True) if n}
            name = self.costs.blocks[head.first].name if head.first else None
            depth = min(self.number, 2 * (len(way) - index) - 1)
            parts.append(Stage(shares, name, in_flight=depth))
        return self.latency(way), Plan([Pipeline(parts)], self.number)

    def _extend(
        self,
        best: dict[tuple[int, int, int], tuple[_Head, ...]],
        first: int,
        devices: int,
        stages: int,
        cuts: Sequence[int],
    ) -> None:
        """The last `devices` devices do blocks `first` on in so many stages."""
        tail = self.order[len(self.order) - devices :]
        depth = 2 * stages - 1
        if stages == 1:
            head = self._allocate(first, len(self.costs.blocks), tail, depth)
            if head is not None:
                best[first, devices, 1] = (head,)
            return
        found: tuple[float, tuple[_Head, ...]] | None = None
        for stop in cuts:
            for size in range(1, devices - stages + 2):
                rest = best.get((stop, devices - size, stages - 1))
                if stop <= first or rest is None:
                    continue
                head = self._allocate(first, stop, tail[:size], depth)
                if head is not None:
                    way = (head, *rest)
                    latency = self.latency(way)
                    if found is None or latency < found[0]:
                        found = (latency, way)
        if found is not None:
            best[first, devices, stages] = found[1]

    def _allocate(self, first: int, stop: int, ranks: Sequence[int], depth: int) -> _Head | None:
        """Algorithm 1: rows by capacity within memory, then from stragglers to others."""
        if len(ranks) > self.size:
            return None
        state = self.costs.state_bytes(first, stop)
        kept = self.costs.kept_bytes(first, stop, False) * min(depth, self.number)
        caps = []
        for rank in ranks:
            room = self.memory[rank] - state
            caps.append(self.size if room == float("inf") or not kept else int(room // kept))
        if any(cap < 0 for cap in caps) or sum(min(self.size, cap) for cap in caps) < self.size:
            return None

        def seconds(i: int, rows: int) -> float:
            return sum(self.costs.pass_s(ranks[i], 0, first, stop, rows, False))

        return _Head(first, stop, tuple(ranks), share_out(self.size, len(ranks), seconds, caps))

    def latency(self, way: Sequence[_Head]) -> float:
        """The latency of a round: steps of computing and of sending, the dominant one M times."""
        steps: list[tuple[float, float, float]] = []  # forward, backward, all-reduce
        for index, head in enumerate(way):
            if index:
                pace = self._pace(way[index - 1].ranks, head.ranks)
                ahead, back = self.costs.crossing_bytes(head.first)
                steps.append((self.size * ahead * pace, self.size * back * pace, 0.0))
            passes = [
                self.costs.pass_s(r, 0, head.first, head.stop, n, False)
                for r, n in zip(head.ranks, head.rows, strict=True)
            ]
            n = len(head.ranks)
            weights = sum(b.gradient_bytes for b in self.costs.blocks[head.first : head.stop])
            summing = 2 * (n - 1) / n * weights * self._pace(head.ranks, head.ranks)
            steps.append((max(f for f, _ in passes), max(b for _, b in passes), summing))
        both = [f + b for f, b, _ in steps]
        top = max(range(len(steps)), key=lambda s: both[s])
        latency = 0.0
        for s, (_, _, summing) in enumerate(steps):
            wait = sum(f for f, _, _ in steps[:s])
            work = self.number * both[top]
            work += sum(both[s:top]) if s < top else -sum(both[top:s])
            latency = max(latency, wait + work + summing)
        return latency

    def _pace(self, sources: Sequence[int], targets: Sequence[int]) -> float:
        """Seconds per byte of the slowest link between two groups."""
        links = [self.profile.link(a, b) for a in sources for b in targets if a != b]
        if any(link is None for link in links):
            return float("inf")
        return max((link.seconds_per_byte for link in links if link), default=0.0)


RIVALS: dict[str, Rival] = {
    "best single device": best_single,
    "equal data parallelism": equal_data,
    "proportional data parallelism": proportional_data,
    "even pipeline": even_pipeline,
    "PipeDream-style": pipedream,
    "Asteroid-style": asteroid,
}


def _ranks(profile: Profile) -> range:
    return range(len(profile.devices))


def _paces(profile: Profile, rows: int) -> list[float]:
    """Whole models per second of each device."""
    costs = Costs(profile)
    blocks = len(costs.blocks)
    modes = [costs.mode_index(rank, None) for rank in _ranks(profile)]
    return [
        1 / sum(costs.pass_s(rank, mode, 0, blocks, rows, False)) for rank, mode in enumerate(modes)
    ]


def _fitting(
    profile: Profile, rows: int, shares: Sequence[dict[int, float]], starts: Sequence[str | None]
) -> Plan | None:
    """Return the plan with the fewest micro-batches that fits."""
    number = 1
    while number <= rows:
        stages = [Stage(s, start, in_flight=1) for s, start in zip(shares, starts, strict=True)]
        plan = Plan([Pipeline(stages)], number)
        try:
            if simulate(plan, profile, rows=rows).fits:
                return plan
        except PlanError:
            return None
        number *= 2
    return None
