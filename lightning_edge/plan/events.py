r"""Running the work of a step event by event.

Every device goes through its list; an instruction starts when the one before is done and its
messages are there. When it ends, its messages take their turns on the network:

    device 0   [F0 ][F1 ][F2 ]......[B0     ]
    network         \==0==\==1==\==2==\   /==0==\
    device 1              [F0 ][B0     ]

Events are taken in the order of time, so turns are taken in the order of asking. Nothing is random
and nothing depends on the order of dictionaries: the same work gives the same trace.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import NamedTuple

from lightning_edge.plan.network import Network
from lightning_edge.plan.wiring import REDUCE, STEP, Work

__all__: list[str] = []


Transfer = tuple[int, int, int, float, float, float, float]
"""Source, target, code (as in `wiring`; -1: rows of the next batch), start, end, arrival, bytes."""


class Summing(NamedTuple):
    """A bucket of gradients being summed."""

    members: tuple[int, ...]
    start_s: float
    end_s: float
    bytes: float


@dataclass
class Trace:
    """What happened; lists are indexed by rank.

    Attributes:
        starts: When each instruction started, in the order of the list.
        ends: When it was done computing.
        first_s: When the first one started.
        end_s: When everything was done.
        transfers: In the order in which they were asked for.
        sums: Likewise.
        fed_s: When the rows of the next batch were there.
    """

    starts: list[list[float]]
    ends: list[list[float]]
    first_s: list[float]
    end_s: list[float]
    transfers: list[Transfer]
    sums: list[Summing]
    fed_s: list[float]


class StuckError(Exception):
    """Instructions wait for each other for ever."""


def run(work: Work, network: Network, copy_s_per_byte: list[float]) -> Trace:
    """Run one step in which all devices start together.

    Args:
        work: What to run.
        network: Paths between the devices.
        copy_s_per_byte: By rank, what packing costs.

    Raises:
        StuckError: If the lists wait for each other.
    """
    # Nothing here is cyclic, and a million tuples would be walked through again and again.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _run(work, network, copy_s_per_byte)
    finally:
        if collecting:
            gc.enable()


def _run(work: Work, network: Network, copy_s_per_byte: list[float]) -> Trace:
    size, lists, sends = work.size, work.lists, work.sends
    seconds, paths = work.seconds, network.paths
    output_free, input_free = [0.0] * size, [0.0] * size
    pair_free = [0.0] * (size * size)
    media_free = [0.0] * len(network.media)
    left = [list(needs) for needs in work.needs]
    there = [[0.0] * len(needs) for needs in work.needs]
    position = [0] * size
    free = [0.0] * size
    blocked: list[int | None] = [None] * size
    armed: list[bool] = [False] * size
    trace = Trace(
        [[] for _ in range(size)], [[] for _ in range(size)],
        [0.0] * size, [0.0] * size, [], [], [0.0] * size,
    )  # fmt: skip
    starts, ends, transfers = trace.starts, trace.ends, trace.transfers
    heap: list[tuple[float, int, int]] = []
    count = 0

    sums = work.sums
    sums_of: list[list[int]] = [[] for _ in range(size)]
    sums_left = [0] * size
    summed = [0.0] * size
    for index, each in enumerate(sums):
        for rank in each.ring.members:
            sums_of[rank].append(index)
            sums_left[rank] += len(each.buckets)
    missing = [[len(each.ring.members)] * len(each.buckets) for each in sums]
    ready = [[0.0] * len(each.buckets) for each in sums]
    begun = [0] * len(sums)
    ring_free = [0.0] * len(sums)

    def transmit(source: int, target: int, code: int, amount: float, now: float) -> float:
        path = paths[source * size + target]
        assert path is not None
        pace, latency_s, media, output_pace, input_pace = path
        begin = output_free[source]
        if begin < now:
            begin = now
        output_free[source] = begin + amount * output_pace
        pair = source * size + target
        if pair_free[pair] > begin:
            begin = pair_free[pair]
        for medium in media:
            if media_free[medium] > begin:
                begin = media_free[medium]
        end = begin + amount * pace
        pair_free[pair] = end
        for medium in media:
            media_free[medium] = end
        last = input_free[target]
        last = (begin if last < begin else last) + amount * input_pace
        if last < end:
            last = end
        input_free[target] = last
        transfers.append((source, target, code, begin, last, last + latency_s, amount))
        return last + latency_s

    def post(index: int, bucket: int, when: float) -> None:
        """One holder has a bucket ready."""
        nonlocal count
        if ready[index][bucket] < when:
            ready[index][bucket] = when
        missing[index][bucket] -= 1
        if not missing[index][bucket]:
            count += 1
            heappush(heap, (ready[index][bucket], count, ~index))

    def add_up(index: int, now: float) -> None:
        """All holders have the next bucket ready: it goes round the ring."""
        each = sums[index]
        amount = each.buckets[begun[index]]
        begun[index] += 1
        begin = max(now, ring_free[index])
        for rank in each.ring.members:
            begin = max(begin, output_free[rank])
        for medium in each.ring.media:
            begin = max(begin, media_free[medium])
        end = begin + amount * each.ring.seconds_per_byte
        ring_free[index] = end
        for rank in each.ring.members:
            output_free[rank] = end
        for medium in each.ring.media:
            media_free[medium] = end
        trace.sums.append(Summing(each.ring.members, begin, end, amount))
        done = end + each.ring.latency_s
        for rank in each.ring.members:
            sums_left[rank] -= 1
            summed[rank] = max(summed[rank], done)
            if blocked[rank] == STEP and not sums_left[rank]:
                resume(rank)

    def advance(rank: int) -> None:
        """Go to the next instruction that takes time, and start it if nothing is missing."""
        line = lists[rank]
        while True:
            at = position[rank]
            if at == len(line):
                trace.end_s[rank] = free[rank]
                return
            code = line[at]
            if code != REDUCE:
                break
            position[rank] += 1
            starts[rank].append(free[rank])
            ends[rank].append(free[rank])
            following = line[at + 1] if at + 1 < len(line) else STEP
            # in front of a backward that computes: buckets become final during it
            armed[rank] = following >= 0 and seconds[rank][following] > 0
            if not armed[rank]:
                for index in sums_of[rank]:
                    for bucket in range(len(sums[index].buckets)):
                        post(index, bucket, free[rank])
        waiting = sums_left[rank] if code == STEP else left[rank][code]
        blocked[rank] = code
        if not waiting:
            resume(rank)

    def resume(rank: int) -> None:
        """Start the instruction a device stands at; nothing is missing any more."""
        nonlocal count
        code = blocked[rank]
        assert code is not None
        blocked[rank] = None
        begin = summed[rank] if code == STEP else there[rank][code]
        if begin < free[rank]:
            begin = free[rank]
        lasts = work.step_s[rank] if code == STEP else seconds[rank][code]
        end = begin + lasts
        starts[rank].append(begin)
        ends[rank].append(end)
        count += 1
        heappush(heap, (end, count, rank))
        if armed[rank]:
            armed[rank] = False
            for index in sums_of[rank]:
                shares = sums[index].ready.get(rank)
                for bucket in range(len(sums[index].buckets)):
                    post(index, bucket, begin + lasts * (shares[bucket] if shares else 1.0))

    parcels = work.parcels
    owner = work.owner if parcels else None
    pieces = 1
    if owner is not None and lists[owner]:
        pieces = work.micro_batches
        free[owner] = sum(amount for _, _, amount in parcels) * copy_s_per_byte[owner]

    def feed(now: float) -> None:
        """Send the next piece of everybody's rows of the next batch."""
        assert owner is not None
        for target, _, amount in parcels:
            trace.fed_s[target] = transmit(owner, target, -1, amount / pieces, now)

    if owner is not None:
        feed(free[owner])
    for rank in range(size):
        if lists[rank]:
            advance(rank)
    finished = 0
    while heap:
        now, _, rank = heappop(heap)
        if rank < 0:
            add_up(~rank, now)
            continue
        code = lists[rank][position[rank]]
        position[rank] += 1
        if code >= 0:
            for target, sent, amount in sends[rank][code]:
                now += amount * copy_s_per_byte[rank]
                arrival = transmit(rank, target, sent, amount, now)
                missing_now = left[target]
                missing_now[sent] -= 1
                if there[target][sent] < arrival:
                    there[target][sent] = arrival
                if not missing_now[sent] and blocked[target] == sent:
                    resume(target)
            if rank == owner and 0 < code < pieces:
                feed(now)
        else:
            finished += 1
        free[rank] = now
        advance(rank)
    if finished < sum(1 for line in lists if line):
        raise StuckError
    for rank in range(size):
        if rank != owner:  # which begins by sending rows
            trace.first_s[rank] = _first(work, rank, starts[rank])
    return trace


def _first(work: Work, rank: int, starts: list[float]) -> float:
    """When the first instruction that takes time started."""
    for code, start in zip(work.lists[rank], starts, strict=True):
        if code == STEP or code >= 0 and work.seconds[rank][code]:
            return start
    return 0.0
