"""What a device did when: computing goes before communicating, the rest is waiting.

compute   [====]      [=========]
network      [-----]  [---]   [----]
counted    c c c n n . c c c c c n n .
"""

from __future__ import annotations

from collections.abc import Sequence

from lightning_edge.plan.events import Trace
from lightning_edge.plan.wiring import Work

__all__: list[str] = []

Interval = tuple[float, float]


def network_intervals(trace: Trace, size: int) -> list[list[Interval]]:
    """By rank, when its part of the network was in use."""
    found: list[list[Interval]] = [[] for _ in range(size)]
    for source, target, _, start, end, _, _ in trace.transfers:
        found[source].append((start, end))
        found[target].append((start, end))
    for members, start, end, _ in trace.sums:
        for rank in members:
            found[rank].append((start, end))
    return found


def outside_s(
    intervals: Sequence[Interval], starts: Sequence[float], ends: Sequence[float]
) -> float:
    """Return how long some interval lasts while none of the (ascending) spans does."""
    total, done, at = 0.0, 0.0, 0
    number = len(starts)
    for start, end in sorted(intervals):
        start = max(start, done)
        if end <= start:
            continue
        done = end
        while at < number and ends[at] <= start:
            at += 1
        i = at
        while i < number and starts[i] < end:
            if starts[i] > start:
                total += starts[i] - start
            if ends[i] > start:
                start = ends[i]
            i += 1
        if end > start:
            total += end - start
    return total


def communication_s(trace: Trace, work: Work, copy_s_per_byte: Sequence[float]) -> list[float]:
    """By rank, seconds of packing, unpacking, and of the network while nothing is computed."""
    found = []
    intervals = network_intervals(trace, work.size)
    for rank in range(work.size):
        if not work.lists[rank]:
            found.append(0.0)
            continue
        ends = trace.ends[rank]
        if copy_s_per_byte[rank]:
            ends = [
                end + sum(sent[2] for sent in work.sends[rank][code]) * copy_s_per_byte[rank]
                if code >= 0
                else end
                for code, end in zip(work.lists[rank], ends, strict=True)
            ]
        found.append(outside_s(intervals[rank], trace.starts[rank], ends) + work.copying_s[rank])
    return found
